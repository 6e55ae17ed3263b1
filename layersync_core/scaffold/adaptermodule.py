"""The source code of an adapter: what discovery found, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from layersync_core.capture.discovery.found import Discovery, FoundStack, Latents
from layersync_core.scaffold.building import Built
from layersync_core.scaffold.tinymodule import patch_settings, source
from layersync_core.scaffold.writing import FILL_IN

_WIDTHS = ("inner_dim", "hidden_size", "hidden_dim", "model_dim", "embed_dim", "dim", "width", "d_model", "n_embd")


@dataclass
class AdapterSource:
    """An adapter in the making.

    Attributes:
        imports: Names of the public face that it imports.
        fields: Lines of its fields.
        functions: Functions defined before it.
    """

    imports: set[str] = field(default_factory=lambda: {"BlockStackAdapter"})
    fields: list[str] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)

    def values(self) -> dict[str, str]:
        """Return the values for the template of the adapter's module."""
        functions = "".join(f"\n\n{function}\n" for function in self.functions)
        return {
            "imports": ", ".join(sorted(self.imports)),
            "functions": f"{functions}\n" if functions else "",
            "fields": "\n".join(f"    {line}" for line in self.fields),
        }


def adapter_source(built: Built, found: Discovery | None, why: str = "") -> AdapterSource:
    """Return the source code of an adapter.

    Args:
        built: The small model.
        found: What discovery found in it; None if it could not run.
        why: Why it could not run.
    """
    made = AdapterSource()
    if found is None or not found.stacks:
        asked = why or "; ".join(map(str, found.questions if found else ()))
        lists = ", ".join(_outermost(built.model)) or "none"
        made.fields.append(f"stacks=(),  {FILL_IN} which lists of blocks (there are {lists}); {_line(asked)}")
        return made
    marks = [f"  {FILL_IN} {_line(str(question))}" for question in found.questions]
    _write_stacks(made, found.stacks, "".join(marks[:1]))
    made.fields += [f"# one more question: {_line(str(question))}" for question in found.questions[1:]]
    if found.embedder:
        made.fields.append(f"embedder={source(found.embedder)},")
    width = _width(built.model, found.stacks)
    if width:
        made.fields.append(f"width={source(width)},")
    if found.measured:
        asked = f"embedder= or image_tokens=, with joined= and offset=: {found.lines()[-1]}"
        made.fields.append(f"measured=True,  {FILL_IN} {_line(asked)}")
    if found.latents is not None:
        _write_grid(made, built, found.latents)
        if found.by_latents:
            made.imports.add("ForwardCall")
            made.functions.append(_COUNT)
            made.fields.append("image_tokens=_tokens,")
    if found.latents is not None and "T" in found.latents.axes:
        made.fields.append("video=True,")
    return made


_COUNT = '''def _tokens(call: ForwardCall) -> int:
    """Return the number of tokens of a sample, which no module's output shows."""
    frames, rows, columns = _grid(call) or (0, 0, 0)
    return frames * rows * columns'''


def _outermost(model: nn.Module) -> list[str]:
    """Return the paths of the lists in a model that aren't inside another list."""
    found: list[str] = []
    for path, part in model.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) > 1 and not any(path.startswith(f"{one}.") for one in found):
            found.append(path)
    return found


def _write_stacks(made: AdapterSource, stacks: Sequence[FoundStack], mark: str) -> None:
    written = [_stack(stack) for stack in stacks]
    if any(text.startswith("BlockStack(") for text in written):
        made.imports.add("BlockStack")
    if len(written) == 1:
        made.fields.append(f"stacks={written[0]},{mark}")
        return
    made.fields += [f"stacks=[{mark}", *(f"    {text}," for text in written), "],"]


def _stack(stack: FoundStack) -> str:
    said: Mapping[str, Any] = {
        "element": stack.element,
        "joined": "all" if stack.joined == "all" else stack.joined,
        "offset": stack.offset,
        "whole": stack.joined != "all" and stack.element is not None,
        "stage": stack.stage,
        "batched": stack.batched,
        "sequence_first": stack.sequence_first,
        "gridded": stack.gridded,
    }
    usual = {
        "element": None, "joined": "all", "offset": 0, "whole": False, "stage": "", "batched": True,
        "sequence_first": False, "gridded": False,
    }  # fmt: skip
    fields = [f"{name}={_value(value)}" for name, value in said.items() if value != usual[name]]
    return f"BlockStack({', '.join([source(stack.path), *fields])})" if fields else source(stack.path)


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(source, value))}{',' if len(value) == 1 else ''})"
    return source(value)


def _width(model: nn.Module, stacks: Sequence[FoundStack]) -> str:
    """Return the attribute with the width of the blocks; empty if none has such a name, or the widths differ."""
    widths = {stack.width for stack in stacks}
    config = getattr(model, "config", None)
    if len(widths) != 1 or None in widths:
        return ""
    for name in _WIDTHS:
        for path, owner in (("", model), ("config.", config)):
            if getattr(owner, name, None) in widths:
                return f"{path}{name}"
    return ""


def _write_grid(made: AdapterSource, built: Built, latents: Latents) -> None:
    """Write a grid of tokens: the latents' shape, cut into patches of the size that the model itself has."""
    patch = _patch(built, latents.patch)
    if latents.axes in ("BCHW", "BCTHW") and patch is not None and "image_tokens" not in made.fields:
        frames, rows, columns = patch
        made.imports.add("latent_grid")
        made.fields.append(f'grid=latent_grid("{latents.argument}", lambda model: ({frames}, {rows}, {columns})),')
        return
    sizes = patch or tuple(map(str, latents.patch))
    made.imports.add("ForwardCall")
    letters = {"B": "_", "C": "_", "T": "frames", "H": "rows", "W": "columns"}
    names = ", ".join(letters[axis] for axis in latents.axes)
    needs_model = any("model" in size for size in sizes)
    cut = [
        f"{name} // {size}" if size != "1" else name
        for name, size in zip(("frames" if "T" in latents.axes else "1", "rows", "columns"), sizes, strict=True)
    ]
    made.functions.append(
        "def _grid(call: ForwardCall) -> tuple[int, int, int] | None:\n"
        '    """Return (T, H, W) of the tokens."""\n'
        f'    latents = call.arguments.get("{latents.argument}")\n'
        "    if latents is None:\n        return None\n"
        + ("    model = call.model\n" if needs_model else "")
        + f"    {names} = latents.shape\n"
        f"    return {', '.join(cut)}"
    )
    made.fields.append("grid=_grid,")


def _patch(built: Built, patch: tuple[int, int, int]) -> tuple[str, str, str] | None:
    """Return the sizes of a token along T, H and W in terms of the model, so that they fit others of its class."""
    model, written = built.model, ["1" if size == 1 else "" for size in patch]
    for name in patch_settings(built):
        places = [f"{owner}.{name}" for owner, holder in _holders(model) if getattr(holder, name, None) is not None]
        if not places:
            continue
        value = built.guesses.settings[name]
        if isinstance(value, (list, tuple)):
            for place in range(len(value)):
                axis = 3 - len(value) + place
                if axis >= 0 and value[place] == patch[axis]:
                    written[axis] = f"{places[0]}[{place}]"
        elif name.endswith(("_t", "_temporal")) and value == patch[0]:
            written[0] = places[0]
        elif value == patch[1]:
            written[1:] = [places[0]] * 2
    if not all(written):
        return None
    return written[0], written[1], written[2]


def _holders(model: nn.Module) -> list[tuple[str, Any]]:
    return [("model.config", getattr(model, "config", None)), ("model", model)]


def _line(text: str) -> str:
    """Return a text that fits into a comment."""
    return " ".join(text.split())[:300]
