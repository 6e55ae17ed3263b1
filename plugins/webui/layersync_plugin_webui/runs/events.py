"""Tensorboard's event files: scalars of complete records, as they are written.

The messages are tensorboard's own; its readers aren't used, since they import TensorFlow if it is installed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

_HEADER = struct.Struct("<QI")
_FOOTER = 4
LARGEST = 2 * 1024 * 1024
"""Largest record that is read, in bytes, less than a piece of a file; pictures and models are larger."""

_FLOAT, _DOUBLE = 1, 2


class Scalar(NamedTuple):
    """A number that was logged at a step."""

    tag: str
    step: int
    time: float
    value: float


def split(data: bytes) -> tuple[list[bytes], int]:
    """Return the complete records at the beginning of a piece of a file, and how many bytes to advance.

    That is more than the piece if a record is too large to be read.

    Args:
        data: The piece, which starts with a record.
    """
    records: list[bytes] = []
    place = 0
    while place + _HEADER.size <= len(data):
        length, _checksum = _HEADER.unpack_from(data, place)
        end = place + _HEADER.size + length + _FOOTER
        if length > LARGEST:
            return records, end
        if end > len(data):
            break
        records.append(data[place + _HEADER.size : end - _FOOTER])
        place = end
    return records, place


def scalars(record: bytes) -> Iterator[Scalar]:
    """Return the scalars in a record; none if it holds something else or cannot be read."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    try:
        event = Event.FromString(record)
    except DecodeError:
        return
    for value in event.summary.value:
        kind = value.WhichOneof("value")
        if kind == "simple_value":
            yield Scalar(value.tag, event.step, event.wall_time, value.simple_value)
        elif kind == "tensor" and (number := _number(value.tensor)) is not None:
            yield Scalar(value.tag, event.step, event.wall_time, number)


def _number(tensor: Any) -> float | None:
    """Return the single number in a tensor, as TensorFlow 2 writes scalars."""
    for values in (tensor.float_val, tensor.double_val):
        if len(values) == 1:
            return float(values[0])
    form = {_FLOAT: "<f", _DOUBLE: "<d"}.get(tensor.dtype)
    if form is None or len(tensor.tensor_content) != struct.calcsize(form):
        return None
    return float(struct.unpack(form, tensor.tensor_content)[0])
