"""Which training forwards of a program a loss depends on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from layersync_core.capture.forward import Forward
from layersync_core.capture.graph import reached, tensors_in
from layersync_core.run.candidates import Candidate

# There are dozens of nodes between a loss and the model's output, or thousands with a decoder in between.
_NODES = 20_000


def depends_on(loss: Tensor, ends: Iterable[Any]) -> bool:
    """Return whether a loss depends on one of some forwards, given as their ``Forward.end``."""
    wanted = {mark for end in ends if (mark := end()) is not None}
    return bool(wanted and reached(loss, wanted, _NODES))


Found = dict[Candidate, list[Forward]]


def forwards_of(loss: Tensor, candidates: Iterable[Candidate]) -> list[Found]:
    """Return the forwards that a loss depends on, in order, those whose results are nearest to it first.

    There may be another model behind one that is found, such as a generator behind its critic.
    """
    owners: dict[Forward, Candidate] = {}
    keys: dict[Any, list[Forward]] = {}
    for candidate in candidates:
        for forward in candidate.attached_to.forwards:
            end = forward.end() if forward.end is not None else None
            if end is not None:
                keys.setdefault(end, []).append(forward)
            elif forward.end is None:
                for state in tensors_in(tuple(forward.outputs.values())):
                    if state.grad_fn is not None:
                        keys.setdefault(state.grad_fn, []).append(forward)
            owners[forward] = candidate
    rounds: list[Found] = []
    while keys:
        hit = {forward for key in reached(loss, keys.keys(), _NODES) for forward in keys[key]}
        if not hit:
            break
        found: Found = {}
        for forward, candidate in owners.items():
            if forward in hit:
                found.setdefault(candidate, []).append(forward)
        rounds.append(found)
        keys = {key: forwards for key, forwards in keys.items() if owners[forwards[0]] not in found}
    return rounds
