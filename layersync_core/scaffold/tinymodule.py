"""The source code of ``tiny.py``: how the small model is built and fed, as it was tried."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import indent, shorten
from typing import Any

from torch import Tensor, nn

from layersync_core.scaffold.building import Built
from layersync_core.scaffold.classes import ModelClass
from layersync_core.scaffold.feeding import attempt
from layersync_core.scaffold.given import TEXT, Given
from layersync_core.scaffold.scaling import role_of
from layersync_core.scaffold.writing import FILL_IN

_LONGER = 4
"""Number of additional text tokens beyond those in the examples."""


@dataclass(frozen=True)
class Facts:
    """What was found out about a small model that runs.

    Attributes:
        longer: Another number of text tokens that works; 0 if their number is fixed or there are none.
        batch: Samples in a batch: 2, or 1 if it takes one at a time.
        prediction: Source code that extracts the prediction from its output; empty if the output is the prediction.
        classes: How many classes it knows; 0 if it takes none.
    """

    longer: int = 0
    batch: int = 2
    prediction: str = ""
    classes: int = 0


def facts_of(built: Built) -> Facts:
    """Try other inputs of a small model, and inspect its output."""
    model, inputs = built.model, built.fed.inputs
    if built.fed.error:
        return Facts()
    longer = inputs.text + _LONGER
    takes = inputs.takes_text and attempt(model, inputs.make(2, longer), {}) is None
    alone = attempt(model, inputs.make(3), {}) is not None and attempt(model, inputs.make(1), {}) is None
    labels = next((name for name, given in inputs.given.items() if _is_label(built, name, given)), None)
    return Facts(
        longer=longer if takes else 0,
        batch=1 if alone else 2,
        prediction=_prediction(model, inputs.make(2), built.guesses.sample),
        classes=_classes(built, labels) if labels else 0,
    )


def tiny_values(kind: ModelClass, built: Built, facts: Facts) -> dict[str, str]:
    """Return the values for the template of ``tiny.py``."""
    inputs = built.fed.inputs
    rows = [f'"{name}": {given.source()},{_mark(inputs.unknown.get(name))}' for name, given in inputs.given.items()]
    rows += [f'"{name}": None,{_mark(said)}' for name, said in inputs.unknown.items() if name not in inputs.given]
    uses_text = inputs.takes_text
    return {
        "weights": f"{sum(parameter.numel() for parameter in built.model.parameters()):,}",
        "imports": _imports(kind),
        "facts": "\n".join(_said(built, facts)),
        "settings": call_arguments(built.settings),
        "parameters": f", {TEXT}: int = {inputs.text}" if uses_text else "",
        "parameters_text": f"\n        {TEXT}: Text tokens." if uses_text else "",
        "inputs": indent("\n".join(rows), " " * 8),
        "more": _functions(built, facts),
    }


def _imports(kind: ModelClass) -> str:
    names = {"layersync_core": "Modality", "torch": "nn", kind.module: kind.name}
    return "\n".join(f"from {module} import {name}" for module, name in sorted(names.items()))


def call_arguments(values: Mapping[str, Any]) -> str:
    """Return the source code of a call's arguments, one per line."""
    rows = "".join(f"        {name}={source(value)},\n" for name, value in values.items())
    return f"\n{rows}    " if rows else ""


def source(value: Any) -> str:
    """Return a value as source code."""
    return f'"{value}"' if isinstance(value, str) and '"' not in value and "\\" not in value else repr(value)


def text_names(built: Built) -> list[str]:
    """Return the arguments that are text, or as long as the text."""
    return [name for name, given in built.fed.inputs.given.items() if given.uses(TEXT)]


def _mark(said: str | None) -> str:
    return f"  {FILL_IN} {shorten(said, 150, placeholder=' …')}" if said else ""


def _said(built: Built, facts: Facts) -> list[str]:
    """Return what ``layersync train`` needs to know about the sample."""
    sample = built.guesses.sample
    given = built.fed.inputs.given.get(sample, Given("noise"))
    axes, grid = given.axes[1:] if given.listed else given.axes, built.guesses.grid(given)
    sound, moving = "L" in axes, "T" in axes or (grid is not None and grid[0] > 1)
    if grid is not None:
        axes = "B(THW)C" if grid[0] > 1 else "B(HW)C"
    lines = [f'modality: Modality = "{"audio" if sound else "video" if moving else "image"}"']
    lines.append(f'sample, axes = "{sample}", "{axes}"')
    if grid is not None:
        lines.append(f"grid = {grid if grid[0] > 1 else grid[1:]}")
    steps = [name for name in built.fed.inputs.given if built.guesses.role(name) == "timestep"]
    lines += [f'timestep = "{steps[0]}"'] if steps else []
    labels = [name for name, item in built.fed.inputs.given.items() if _is_label(built, name, item)]
    return lines + ([f'labels = "{labels[0]}"'] if labels and facts.classes else [])


def _functions(built: Built, facts: Facts) -> str:
    """Return the functions that some models need in addition to the two that every module has."""
    text = ""
    if facts.classes:
        text += '\n\ndef classes(model: nn.Module) -> int:\n    """Return how many classes a model knows."""\n'
        text += f"    return {facts.classes}\n"
    if facts.prediction:
        text += "\n\ndef prediction(output: Any, sample: torch.Tensor) -> torch.Tensor:\n"
        text += '    """Return the prediction from a forward\'s output, which has more than that."""\n'
        text += f"    predicted: torch.Tensor = {facts.prediction}\n    return predicted\n"
    return f"\n{text.rstrip()}" if text else ""


def _is_label(built: Built, name: str, given: Given) -> bool:
    return built.guesses.role(name) == "labels" and given.kind == "indices"


def _classes(built: Built, labels: str) -> int:
    """Return the number of classes according to the model's settings, if it accepts the last one."""
    named = (value for name, value in built.guesses.settings.items() if re.search("classes|num_embeds", name))
    for number in (value for value in named if type(value) is int and value > 1):
        inputs = built.fed.inputs.make(2)
        inputs[labels] = inputs[labels] * 0 + number - 1
        if attempt(built.model, inputs, {}) is None:
            return number
    return 0


def _prediction(model: nn.Module, inputs: Mapping[str, Any], sample: str) -> str:
    """Return source code for the part of a larger tensor that has the sample's shape; empty if not needed."""
    output, noisy = model(**inputs), inputs.get(sample)
    first = output if isinstance(output, Tensor) else next(iter(_values(output)), None)
    if not isinstance(first, Tensor) or not isinstance(noisy, Tensor) or first.ndim != noisy.ndim:
        return ""
    wider = [axis for axis in range(noisy.ndim) if first.shape[axis] != noisy.shape[axis]]
    if len(wider) != 1 or first.shape[wider[0]] < noisy.shape[wider[0]]:
        return ""
    taken = "output" if isinstance(output, Tensor) else "output[0]"
    return f"{taken}.narrow({wider[0]}, 0, sample.shape[{wider[0]}])"


def _values(output: Any) -> Any:
    return output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()


def patch_settings(built: Built) -> list[str]:
    """Return the settings that give the size of a token."""
    return [name for name in built.guesses.settings if role_of(name) == "patch"]
