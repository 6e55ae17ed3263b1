"""Attachments' state in a file beside a host's checkpoint: step, trainable parts, and the code that made them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layersync_core.errors import ConfigError
from layersync_core.participants import libraries

STATE_FILE = "layersync_state.safetensors"
_VERSION = 2
# An earlier trainer wrote the step and the names of the parts here, and only tensors into the file above.
_EARLIER = "layersync_state.json"

State = dict[str, Any]
"""What ``Attachment.state_dict`` returns."""


def save_states(folder: Path, states: Mapping[str, State]) -> None:
    """Write the states of attachments into a folder, atomically replacing an existing file.

    Args:
        folder: A checkpoint's folder.
        states: The states by name of the attachment; "" for a single one.

    Raises:
        OSError: It cannot be written.
    """
    from safetensors.torch import save

    about: dict[str, Any] = {}
    tensors = {}
    for name, state in states.items():
        about[name] = {"step": state["step"], "modules": list(state["modules"])}
        about[name]["distributions"] = state.get("distributions", [])
        for module, values in state["modules"].items():
            for key, value in values.items():
                place = f"{name}/{module}/{key}" if name else f"{module}/{key}"
                tensors[place] = value.detach().cpu().contiguous()
    temporary = folder / f"{STATE_FILE}.tmp"
    content = {"version": _VERSION, "states": about, "libraries": libraries()}
    written = save(tensors, metadata={"layersync": json.dumps(content)})
    try:
        temporary.write_bytes(written)  # not by safetensors, which does not raise OSError
        temporary.replace(folder / STATE_FILE)
    finally:
        temporary.unlink(missing_ok=True)


def load_states(folder: Path) -> dict[str, State] | None:
    """Read the states in a folder, in this version or an earlier one; None if it has none.

    Raises:
        ConfigError: The file cannot be read, or has an unknown version.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("layersync")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if text is None:
            about = json.loads((folder / _EARLIER).read_text())
            return _of_trainer(about, tensors)
        about = json.loads(text)
        return {1: _of_run, _VERSION: _current}[about["version"]](about, tensors)
    except (KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path} isn't a state file of this version of layersync") from None
    except Exception as error:  # safetensors has its own exception for a truncated file
        raise ConfigError(f"{path} cannot be read: {error}") from None


def _current(about: Any, tensors: Mapping[str, Any]) -> dict[str, State]:
    states = {
        name: _state(entry["step"], {module: {} for module in entry["modules"]})
        | {"distributions": entry.get("distributions", [])}  # earlier files have none
        for name, entry in about["states"].items()
    }
    for key, value in tensors.items():
        name, rest = ("", key) if "" in states else key.split("/", 1)
        module, parameter = rest.split("/", 1)
        states[name]["modules"][module][parameter] = value
    return states


def _of_run(about: Any, tensors: Mapping[str, Any]) -> dict[str, State]:
    """Read version 1: one step for all, and tensors such as ``WanModel#1/crepa.linear.weight``."""
    states: dict[str, State] = {}
    for key, value in tensors.items():
        name, path = key.split("/", 1)
        module, parameter = path.split(".", 1)
        modules = states.setdefault(name, _state(about["step"], {}))["modules"]
        modules.setdefault(module, {})[parameter] = value
    return states or {"": _state(about["step"], {})}


def _of_trainer(about: Any, tensors: Mapping[str, Any]) -> dict[str, State]:
    """Read the trainer's earlier form: tensors such as ``crepa/linear.weight``, the rest in JSON."""
    state = _state(about["step"], {module: {} for module in about["modules"]})
    for key, value in tensors.items():
        module, parameter = key.split("/", 1)
        state["modules"][module][parameter] = value
    return {"": state}


def _state(step: Any, modules: dict[str, dict[str, Any]]) -> State:
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise KeyError("step")
    return {"version": 1, "step": step, "modules": modules}
