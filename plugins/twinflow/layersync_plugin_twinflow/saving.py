"""Save the target time's weights beside the model's, and load them into a plain diffusers model or pipeline."""

# Shapes: R rows of an embedding (samples, or samples and tokens)

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn

from layersync_core import ConfigError
from layersync_plugin_twinflow.sampling import Sampler, target_of
from layersync_plugin_twinflow.target_time import TargetTime

FILE = "twinflow.safetensors"
_KEY, _VERSION = "twinflow", 1


def save(time: TargetTime, folder: Path, sampler: Sampler) -> None:
    """Write the weights and the metadata needed to use them.

    Raises:
        OSError: The file cannot be written.
    """
    from safetensors.torch import save as as_bytes

    about = {
        "version": _VERSION,
        "convention": time.convention,
        "adversarial": time.adversarial,
        "places": [place.path for place in time.places],
        "sampler": sampler,
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in time.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(as_bytes(weights, metadata={_KEY: json.dumps(about)}))


def load_twinflow(model: Any, folder: str | Path, sampler: Sampler | None = None) -> TargetTime:
    """Put the target time back on a plain model, or on the transformer of a pipeline.

    A pipeline then samples in few steps by itself: ``pipe(…, num_inference_steps=4, guidance_scale=1)``. A bare
    model gets target times through ``told``, or sets them itself with the sampler ``few`` or ``mul``.

    Args:
        model: A model, or a pipeline that has a ``transformer``.
        folder: Where ``twinflow.safetensors`` is, or the folder above its ``transformer`` or ``model``.
        sampler: Target time that forwards get; default: the one the model was trained to be sampled with. A bare model
            doesn't know the next step, so ``any`` leaves it to ``told``, and a plain call is F(x, t, t).

    Raises:
        ConfigError: There is no such file, or it doesn't belong to this model.
    """
    places = [Path(folder, part, FILE) for part in ("", "transformer", "model")]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ConfigError(f"{folder} has no {FILE}; give a model that layersync train exported with twinflow_enabled")
    about, weights = _read(file)
    root = model if isinstance(model, nn.Module) else getattr(model, "transformer", None)
    if not isinstance(root, nn.Module):
        raise ConfigError(f"a {type(model).__name__} is not a model, and has no transformer that is one")
    time = TargetTime(root, about["convention"], about["adversarial"])
    try:
        _fill(time, about, weights, file)
        time.rule = _rule_of(sampler or about["sampler"], None if root is model else model)
    except BaseException:
        time.remove(root)
        raise
    time.requires_grad_(False)
    return time


def load_weights(time: TargetTime, model: Any) -> Path | None:
    """Continue from the weights in the folder that a model was loaded from; return their file, if there is one.

    Raises:
        ConfigError: The weights use another convention.
    """
    config = getattr(model, "config", None)
    source = getattr(config, "_name_or_path", None) or (config or {}).get("_name_or_path")
    file = Path(source, FILE) if source else None
    if file is None or not file.is_file():
        return None
    about, weights = _read(file)
    for key, own in (("convention", time.convention), ("adversarial", time.adversarial)):
        if about[key] != own:
            raise ConfigError(
                f"{file} was trained with {key} {about[key]}, these settings say {own}; give the same "
                "twinflow_time_embedding and twinflow_adversarial_enabled, or move the file away"
            )
    _fill(time, about, weights, file)
    return file


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import safe_open

    try:
        with safe_open(file, framework="pt") as content:
            about = json.loads((content.metadata() or {})[_KEY])
            weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        if about["version"] != _VERSION or not {"convention", "adversarial", "places", "sampler"} <= about.keys():
            raise KeyError("version")
    except Exception as error:  # safetensors has its own exception for a truncated file
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{file} cannot be read ({reason}); export the model anew") from None
    return about, weights


def _fill(time: TargetTime, about: dict[str, Any], weights: dict[str, Tensor], file: Path) -> None:
    own = [place.path for place in time.places]
    if about["places"] != own:
        raise ConfigError(
            f"{file} is of another model: it embeds the time at {', '.join(about['places'])}, this one at "
            f"{', '.join(own)}"
        )
    try:
        time.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(f"{file} does not fit this model: {' '.join(str(error).split())}") from None


def _rule_of(sampler: Sampler, pipeline: Any) -> Callable[[Tensor], Tensor] | None:
    if sampler not in get_args(Sampler):
        raise ConfigError(f"sampler {sampler!r} is none of {', '.join(get_args(Sampler))}")
    if sampler == "any" and pipeline is None:
        return None

    def rule(time_R: Tensor) -> Tensor:
        return target_of(sampler, time_R, _next(pipeline, time_R) if sampler == "any" else time_R)

    return rule


def _next(pipeline: Any, time_R: Tensor) -> Tensor:
    """Return the times (R,) of the pipeline's next step: the largest of its times below the current one."""
    times = pipeline.scheduler.sigmas.to(time_R)
    earlier = times[None] < time_R[:, None] - 1e-4  # models get rounded times
    following: Tensor = times[None].where(earlier, times.new_zeros(())).amax(dim=1)
    return following
