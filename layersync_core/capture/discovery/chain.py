"""Which lists of blocks the generated tokens run through, found backwards from the last one, before the head.

Only the head stands between the last block and the loss, and it works token by token: the loss's gradient is nonzero
exactly at the generated tokens. Between two lists there is at most something that joins or cuts streams, also token by
token, so the same holds for the gradient of a list's first input with respect to the output of the list before it.
"""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from layersync_core.capture.discovery.found import Question
from layersync_core.capture.discovery.places import hull, located, sources
from layersync_core.capture.discovery.record import Path, Run, element_at
from layersync_core.capture.graph import reached
from layersync_core.capture.seen import seen_tokens

_NODES = 200_000


@dataclass(eq=False)
class Link:
    """A list of blocks that the generated tokens run through.

    Attributes:
        runs: Its blocks, in the order in which they ran.
        place: Where the stream is in what its blocks return.
        tokens: (B, S) bool, True for the generated tokens of that tensor.
        taken: What its first block took of the stream; None where that is unknown.
        resolution: Its resolution differs from that of the list behind it.
    """

    runs: Sequence[Run]
    place: Path
    tokens: Tensor
    taken: Tensor | None = None
    resolution: bool = False

    @property
    def path(self) -> str:
        """Path of the list."""
        return self.runs[0].path

    @property
    def state(self) -> Tensor:
        """What its last block returned of the stream."""
        return self.runs[-1].outputs()[self.place]

    @property
    def is_whole(self) -> bool:
        """Whether every token is generated."""
        return bool(self.tokens.all())


def without_branches(lists: Sequence[Sequence[Run]]) -> tuple[list[Sequence[Run]], list[Question]]:
    """Leave out the lists that run between the blocks of another list without passing a stream on themselves.

    Args:
        lists: Runs of each list; the one that ended last comes last.
    """
    left, questions = list(lists), []
    for one in lists:
        for other in lists:
            if one is other or one not in left or other not in left or not _interleaved(one, other):
                continue
            handing = _hands_on(one), _hands_on(other)
            if handing[0] and not handing[1]:
                left.remove(other)
            elif not (handing[0] or handing[1]):
                questions.append(
                    Question(
                        "blocks",
                        "two lists of blocks run in turns, and measuring cannot tell which of them a pair may use",
                        (one[0].path, other[0].path),
                    )
                )
                left.remove(other)
    return left, questions


def _interleaved(one: Sequence[Run], other: Sequence[Run]) -> bool:
    return any(one[0].number < run.number < one[-1].number for run in other)


def _hands_on(runs: Sequence[Run]) -> bool:
    """Return whether some block took the output of the block before it."""
    return any(
        any(given is made for given in after.inputs().values() for made in before.outputs().values())
        for before, after in pairwise(runs)
    )


def place_taken(runs: Sequence[Run], place: Path, tokens: Tensor) -> Tensor | None:
    """Return what the first block of a list took of the stream that its blocks return at a place; None if unclear."""
    start, stop = hull(tokens)
    first = runs[0].inputs()
    for before, after in pairwise(runs):
        made = before.outputs().get(place)
        if made is None:
            continue
        given = after.inputs()
        found = [key for key, tensor in given.items() if tensor is made]
        found = found or [key for key, tensor in given.items() if located(_part(made, start, stop), tensor) is not None]
        # A tensor of another length is text, whose place the stream takes where blocks begin again.
        if len(found) == 1 and found[0] in first and first[found[0]].shape[-2] == made.shape[-2]:
            return first[found[0]]
    like = runs[0].outputs().get(place)
    same = [tensor for tensor in first.values() if like is not None and tensor.shape == like.shape]
    return same[0] if len(same) == 1 else None


def begins_again(link: Link) -> Question | None:
    """Return the question to ask where a block takes the previous block's output elsewhere, as a condition."""
    usual: list[Path] = []
    for former, latter in pairwise(link.runs):
        made = former.outputs().get(link.place)
        found = [key for key, tensor in latter.inputs().items() if tensor is made]
        if usual and found and not {*usual} & {*found}:
            return Question(
                "blocks",
                f"{latter.name} takes the output of {former.name} in another place than the blocks before it do, as "
                "happens where blocks begin again from the embedding, which an adapter describes as a separate stage",
            )
        usual = found or usual
    return None


def _part(tensor: Tensor, start: int, stop: int) -> Tensor:
    return tensor[..., start : min(stop, tensor.shape[-2]), :]


def before(model: nn.Module, link: Link, runs: Sequence[Run]) -> Link | None:
    """Return an earlier list as a link of the chain; None where the generated tokens did not run through it.

    Args:
        model: The model.
        link: The list behind it.
        runs: Its runs.
    """
    taken, last = link.taken, runs[-1]
    made = {
        place: tensor for place, tensor in last.outputs().items() if taken is not None and tensor.ndim == taken.ndim
    }
    if taken is None or not made:
        return None
    found = _by_value(taken, link.tokens, made) or _by_gradient(taken, link.tokens, made)
    if found is None:
        return _of_other_resolution(model, link, taken, runs, made)
    place, tokens = found
    length, joint = made[place].shape[-2], taken.shape[-2]
    others = [tensor for key, tensor in made.items() if key != place]
    behind = [tensor for key, tensor in link.runs[-1].outputs().items() if key != link.place]
    # Joined with other tokens it is a refiner; where the text goes on in a separate stream, these are references.
    if length < joint and not others and not any(tensor.ndim == taken.ndim for tensor in behind):
        return None
    if made[place].shape[-1] != taken.shape[-1]:
        return None  # there is a projection between the two
    return Link(runs, place, tokens, place_taken(runs, place, tokens))


def _by_value(taken: Tensor, tokens_BS: Tensor, made: Mapping[Path, Tensor]) -> tuple[Path, Tensor] | None:
    start, stop = hull(tokens_BS)
    for place, tensor in made.items():
        at = located(tensor, taken)
        if at is not None and at <= start and stop <= at + tensor.shape[-2]:
            return place, tokens_BS[:, at : at + tensor.shape[-2]]
        at = located(taken, tensor)
        if at is not None:
            tokens = torch.zeros(len(tokens_BS), tensor.shape[-2], dtype=torch.bool, device=tokens_BS.device)
            tokens[:, at : at + taken.shape[-2]] = tokens_BS
            return place, tokens
    return None


def _by_gradient(taken: Tensor, tokens_BS: Tensor, made: Mapping[Path, Tensor]) -> tuple[Path, Tensor] | None:
    found = sources(taken, tokens_BS, made)
    if len(found) != 1:
        return None
    ((place, tokens),) = found.items()
    same = tokens.shape[0] == tokens_BS.shape[0] and bool((tokens.sum(1) == tokens_BS.sum(1)).all())
    return (place, tokens) if same else None


def _of_other_resolution(
    model: nn.Module, link: Link, taken: Tensor, runs: Sequence[Run], made: Mapping[Path, Tensor]
) -> Link | None:
    """Return a list of the same blocks at another resolution, with convolutions between the two, as in UNets."""
    kinds = {type(run.module).__name__ for run in (runs[0], link.runs[0])}
    # Each must sit in its own part of the model, of the same kind, since a text refiner may have the same blocks.
    parts = [model.get_submodule(one.path.rpartition(".")[0]) for one in (runs[0], link.runs[0])]
    alike = parts[0] is not parts[1] and type(parts[0]) is type(parts[1])
    if len(kinds) > 1 or not alike or len(made) != 1 or not link.is_whole:
        return None
    ((place, tensor),) = made.items()
    if tensor.grad_fn is None or not reached(taken, {tensor.grad_fn}, _NODES):
        return None
    tokens = torch.ones(
        tensor.shape[:-1] if tensor.ndim > 2 else (1, len(tensor)), dtype=torch.bool, device=tensor.device
    )
    return Link(runs, place, tokens, place_taken(runs, place, tokens), resolution=True)


def last_link(runs: Sequence[Run], found: Mapping[Path, Tensor]) -> tuple[Link | None, Question | None]:
    """Return the list whose last block the head follows, or the question of which of its tensors is generated.

    Args:
        runs: Its runs.
        found: The gradient of the loss, by place in what its last block returned.
    """
    seen = {place: seen_tokens(item) for place, item in found.items() if bool(item.any())}
    deepest = max((found[place].ndim for place in seen), default=0)  # (B, D) beside (B, S, D) aren't tokens
    seen = {place: mask for place, mask in seen.items() if found[place].ndim == deepest}
    if not seen:
        return None, None
    made = runs[-1].outputs()
    # Keys and values that a block returns get a gradient from the tensor that it made of them.
    inner = [one for one in seen if any(_is_made_of(made[other], made[one]) for other in seen if other != one)]
    seen = {place: mask for place, mask in seen.items() if place not in inner}
    if len(seen) > 1:
        what = f"the loss sees several of the tensors that {runs[-1].name} returns"
        return None, Question("element", what, tuple(f"element {element_at(place)!r}" for place in seen))
    ((place, tokens),) = seen.items()
    return Link(runs, place, tokens, place_taken(runs, place, tokens)), None


def _is_made_of(one: Tensor, other: Tensor) -> bool:
    if one.grad_fn is None or other.grad_fn is None or one.grad_fn is other.grad_fn:
        return False
    return bool(reached(one, {other.grad_fn}, _NODES))
