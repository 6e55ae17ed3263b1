"""What an error of a forward reveals: sizes that do not fit, missing axes, and the argument that was involved."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from linecache import getline
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from layersync_core.capture.graph import tensors_in

# Patterns of torch's messages: each captures a size that was there and one that was wanted.
_SIZES = (
    (r"shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)", ((0, 1),)),
    (r"to have (\d+) channels, but got (\d+) channels", ((1, 0),)),
    (r"normalized_shape=\[(\d+)\].*?got input of size\s*\[(?:\d+, )*(\d+)\]", ((1, 0),)),
    (r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)", ((0, 1), (1, 0))),
    (r"Expected size (\d+) but got size (\d+)", ((1, 0), (0, 1))),
    (r"expanded size of the tensor \((\d+)\) must match the existing size \((\d+)\)", ((0, 1), (1, 0))),
    (r"weight of size \[(?:\d+), (\d+).*?expected input\[\d+, (\d+)", ((1, 0),)),
)
_AXES = (
    (r"not enough values to unpack \(expected (\d), got \d\)", 0),
    (r"too many values to unpack \(expected (\d)", 0),
    (r"[Ee]xpected (\d)D\b", 0),
    (r"must be (\d)-?D", 0),
    (r"got (\d)-D indices", None),
)
_WHOLE = r"type Long|scalar types: Long|must be Long|indices must be integer|integer type|LongTensor|used as indices"
_REAL = r"same dtype|not implemented for '(Long|Int|Bool)'|expected scalar type Float|Long and Float|Float and Long"


@dataclass(frozen=True)
class Clues:
    """What an error reveals.

    Attributes:
        text: The error in one line.
        sizes: (actual size, expected size), likeliest first.
        axes: How many axes a tensor should have; None if unknown.
        whole: True if integers are expected, False if floats are, None if unknown.
        missing: Arguments that were None where they were used.
        blamed: Arguments involved where the error was raised, the nearest first.
        progress: How far the forward got: modules that had returned, then the line in the model's own forward.
    """

    text: str
    sizes: tuple[tuple[int, int], ...]
    axes: int | None
    whole: bool | None
    missing: tuple[str, ...]
    blamed: tuple[str, ...]
    progress: tuple[int, int]


def read(error: BaseException, model: nn.Module, given: Mapping[str, Any], done: int) -> Clues:
    """Return what an error of a forward reveals.

    Args:
        error: The error that it raised.
        model: The model.
        given: Its arguments by name, including those that were left at None.
        done: How many modules had returned.
    """
    text = " ".join(str(error).split())
    frames = list(_frames(error.__traceback__))
    own = [(frame, line) for frame, line in frames if frame.f_locals.get("self") is model]
    nothing = "NoneType" in text or isinstance(error, (AssertionError, UnboundLocalError))
    blamed, missing = _standing(frames, given, nothing, text)
    return Clues(
        text=f"{type(error).__name__}: {text}" if text else type(error).__name__,
        sizes=tuple(_sizes(text)),
        axes=next(
            (int(found[1]) for pattern, at in _AXES if at is not None and (found := re.search(pattern, text))), None
        ),
        whole=True if re.search(_WHOLE, text) else False if re.search(_REAL, text) else None,
        missing=missing,
        blamed=blamed,
        progress=(done, own[-1][1] if own else 0),
    )


def _sizes(text: str) -> Iterator[tuple[int, int]]:
    for pattern, pairs in _SIZES:
        for found in re.finditer(pattern, text):
            for there, wanted in pairs:
                yield int(found[there + 1]), int(found[wanted + 1])


def _frames(trace: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _standing(
    frames: list[tuple[FrameType, int]], given: Mapping[str, Any], nothing: bool, text: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the arguments involved where an error was raised, and those of them that were None."""
    homes = {_home(tensor): name for name, value in given.items() for tensor in tensors_in(value)}
    said = [name for name in given if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text)]
    blamed: dict[str, None] = dict.fromkeys(said)
    missing: dict[str, None] = dict.fromkeys(name for name in said if given[name] is None)
    for frame, line in reversed(frames):
        source = _statement(frame.f_code.co_filename, line)
        for name, value in frame.f_locals.items():
            if not re.search(rf"(?<![\w.]){re.escape(name)}\b", source):
                continue
            if isinstance(value, (Tensor, list, tuple)):
                blamed |= dict.fromkeys(homes[home] for home in map(_home, tensors_in(value)) if home in homes)
            elif value is None and nothing and name in given and given[name] is None:
                missing[name] = None
    return tuple(name for name in blamed if given[name] is not None), tuple(missing)


def _statement(file: str, line: int) -> str:
    """Return the source code of the statement that begins on a line, judging its end by parentheses."""
    text = ""
    for number in range(line, line + 20):
        text += getline(file, number)
        if text.count("(") + text.count("[") <= text.count(")") + text.count("]"):
            break
    return text


def _home(tensor: Tensor) -> Any:
    """Return the storage that a tensor shares with its views."""
    return tensor.untyped_storage().data_ptr() if tensor.device.type != "meta" else id(tensor)


def output_tensors(output: Any) -> list[Tensor]:
    """Return the floating-point tensors that a forward returned."""
    values = output if isinstance(output, (Tensor, list, tuple, dict)) else vars(output)
    return [tensor for tensor in tensors_in(values) if tensor.is_floating_point()]


def is_finite(output: Any) -> bool:
    """Return whether a forward returned tensors, all of them finite."""
    tensors = output_tensors(output)
    return bool(tensors) and all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
