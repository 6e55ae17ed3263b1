"""Where the image, video or audio tokens are in what each list returns, and what counts them in other calls."""

# Shapes: B batch, S tokens of a block's tensor, D channels

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from layersync_core.capture.discovery.chain import Link
from layersync_core.capture.discovery.found import FoundStack, Question, Range
from layersync_core.capture.discovery.places import depending, hull, located, sources
from layersync_core.capture.discovery.record import Recording, Run, element_at

_Place = tuple[Literal["all", "first", "last"], int]


@dataclass
class Counted:
    """What a chain implies for other calls.

    Attributes:
        stacks: As data.
        tokens: Image, video or audio tokens of a sample, including references and padding.
        embedder: Path of the module that counts them; None where none is needed, or none does.
        counts: They must be counted, since they share a sequence with other tokens.
        measured: Some of them aren't generated.
        questions: What is open.
    """

    stacks: list[FoundStack] = field(default_factory=list)
    tokens: int = 0
    embedder: str | None = None
    counts: bool = False
    measured: bool = False
    questions: list[Question] = field(default_factory=list)


def count(model: nn.Module, recording: Recording, chain: Sequence[Link]) -> Counted:
    """Return how the lists of a chain are described, and what counts their tokens.

    Args:
        model: The model.
        recording: The forward.
        chain: Its lists, in execution order.
    """
    result, first = Counted(), chain[0]
    embedders = _embedders(recording, first)
    spans = _spans(chain, embedders)
    places = [_place(model, link, span) for link, span in zip(chain, spans, strict=True)]
    # Where every list has the same sequence nothing has to be cut out: what is generated is measured in each call.
    if any(isinstance(place, Question) for place in places) and len({link.state.shape[-2] for link in chain}) == 1:
        spans, places = [(0, link.state.shape[-2]) for link in chain], [("all", 0) for _ in chain]
    for link, span, place in zip(chain, spans, places, strict=True):
        if isinstance(place, Question):
            result.questions.append(place)
            return result
        assert not isinstance(span, Question)
        result.stacks.append(_stack(link, *place, stage=_stage(link, chain)))
        result.measured = not bool(link.tokens[:, slice(*span)].all())
        result.counts = result.counts or place[0] != "all"
        result.tokens = span[1] - span[0]
    if result.counts:
        result.embedder = _embedder(first, embedders, result.tokens)
    return result


def _spans(chain: Sequence[Link], embedders: Sequence[Run]) -> list[Range | Question]:
    """Return where the image stream is in the tensor of each list, or what is open about it."""
    spans: list[Range | Question] = []
    for place, link in enumerate(chain):
        if link.is_whole:
            span: Range | None = (0, link.state.shape[-2])
        elif not place:
            span = _span_at_first(link, embedders)
        else:
            ahead = spans[-1]
            span = None if isinstance(ahead, Question) else _span_behind(chain[place - 1], link, ahead)
        spans.append(_which_are_image(link) if span is None else span)
    return spans


def no_embedder(tokens: int, recording: Recording) -> Question:
    """Return the question of which module counts the tokens that share a sequence with others."""
    like = [run.path for run in recording.outside if run.output.shape[1] == tokens]
    text = f"no module returns exactly the {tokens} image, video or audio tokens, so nothing counts them"
    return Question("embedder", text, tuple(like))


def _embedders(recording: Recording, first: Link) -> list[Run]:
    """Return the modules that ran before the first block and returned (B, S, D), including refiners."""
    began = first.runs[0].began
    runs = [run for run in (*recording.outside, *recording.blocks) if run.number < began]
    alone = [run for run in runs if isinstance(run.output, Tensor) and run.output.ndim == 3]
    return sorted(alone, key=lambda run: (run.name.count("."), run.number))


def _span_at_first(link: Link, embedders: Sequence[Run]) -> Range:
    """Return where the image stream is in the tensor of the first list: all of it, unless something shows less."""
    length = link.state.shape[-2]
    start, stop = hull(link.tokens)
    spans = [span for run in embedders if (span := _span_of(link, run)) is not None]
    around = [span for span in spans if span[0] <= start and stop <= span[1] <= length]
    return min(around, key=lambda span: span[1] - span[0], default=(0, length))


def _span_of(link: Link, run: Run) -> Range | None:
    """Return where an embedder's tokens are in what the first block took; None where they aren't there unchanged."""
    taken, tensor = link.taken, run.output
    if taken is None or taken.ndim != tensor.ndim:
        return None
    at = located(tensor, taken)
    if at is not None:
        return at, at + tensor.shape[-2]
    if not (taken.requires_grad and tensor.requires_grad):
        return None
    own = sources(taken, link.tokens, {(): tensor}).get(())
    if own is None or len(own) != len(link.tokens) or not bool((own.sum(1) == link.tokens.sum(1)).all()):
        return None  # not token by token: text, or something of another length
    if bool(own.all()):
        return _contiguous(link.tokens)
    there = depending(taken, tensor)
    span = None if there is None else _contiguous(there)
    return span if span is not None and span[1] - span[0] == tensor.shape[-2] else None


def _contiguous(tokens_BS: Tensor) -> Range | None:
    start, stop = hull(tokens_BS)
    return (start, stop) if bool(tokens_BS[:, start:stop].all()) else None


def _span_behind(before: Link, link: Link, span: Range) -> Range | None:
    """Return where the image stream is in a list's tensor, given where it is in the tensor of the list before."""
    if link.taken is None:
        return None
    length = before.state.shape[-2]
    if link.taken.shape[-2] == length:
        return span
    at = located(before.state, link.taken)
    if at is None and link.taken.requires_grad and before.state.requires_grad:
        there = depending(link.taken, before.state)
        whole = None if there is None or not bool(there.any()) else _contiguous(there)
        at = whole[0] if whole is not None and whole[1] - whole[0] == length else None
    return None if at is None else (at + span[0], at + span[1])


def _place(model: nn.Module, link: Link, span: Range | Question) -> _Place | Question:
    """Return at which end of a list's tensor the image tokens are, and how many others are always beyond them."""
    if isinstance(span, Question):
        return span
    length = link.state.shape[-2]
    front, back = span[0], length - span[1]
    if not front or not back:
        return ("first" if not front else "last") if front or back else "all", 0
    if link.taken is not None and link.taken.shape[-2] == length:
        if _is_constant(model, link.taken[..., :front, :]):
            return "first", front
        if _is_constant(model, link.taken[..., length - back :, :]):
            return "last", back
    return Question(
        "tokens",
        f"the image tokens of {link.path} are at {span[0]} to {span[1] - 1} of {length}, and it is not known whether "
        "the tokens before or those after them are equally many in every call",
        (f"always {front} before them", f"always {back} behind them"),
    )


def _is_constant(model: nn.Module, part_BSD: Tensor) -> bool:
    """Return whether tokens are a parameter of the model: registers, the same in every sample."""
    part_BSD = part_BSD.detach()
    one_SD = part_BSD[0] if part_BSD.ndim > 2 else part_BSD
    if part_BSD.ndim > 2 and not bool((part_BSD == one_SD).all()):
        return False
    like: Iterable[Any] = (item for item in model.parameters() if item.numel() == one_SD.numel())
    return any(bool((item.detach().reshape(one_SD.shape).to(one_SD.dtype) == one_SD).all()) for item in like)


def _which_are_image(link: Link) -> Question:
    start, stop = hull(link.tokens)
    return Question(
        "tokens",
        f"the loss sees tokens {start} to {stop - 1} of {link.state.shape[-2]} in {link.path}, and it is not known "
        "where the tokens of the list before it are among these",
        ('joined="first"', 'joined="last"'),
    )


def _embedder(first: Link, embedders: Sequence[Run], tokens: int) -> str | None:
    """Return the path of the module that counts the tokens: the outermost of those that return them."""
    for run in embedders:
        if run.output.shape[1] == tokens and _span_of(first, run) is not None:
            return run.name
    return None


def _stage(link: Link, chain: Sequence[Link]) -> str:
    sizes = list(dict.fromkeys((item.state.shape[-2], item.state.shape[-1]) for item in chain))
    if len(sizes) == 1 or not any(item.resolution for item in chain):
        return ""
    length, width = link.state.shape[-2:]
    largest = max(tokens for tokens, _ in sizes)
    order = sorted({tokens for tokens, _ in sizes}, reverse=True).index(length) if largest else 0
    return f"resolution {order + 1}, width {width}"


def _axes(state: Tensor) -> int:
    """Return how many axes the tensor behind a view has; 0 where the state isn't a view."""
    raw = getattr(state, "raw", None)
    return 0 if raw is None else int(raw.ndim)


def _stack(link: Link, joined: Any, offset: int, stage: str) -> FoundStack:
    state = link.state
    return FoundStack(
        link.path,
        len(link.runs),
        type(link.runs[0].module).__name__,
        element_at(link.place),
        joined,
        offset,
        length=state.shape[-2],
        width=state.shape[-1],
        stage=stage,
        batched=state.ndim > 2,
        sequence_first=_axes(state) == 3,
        gridded=_axes(state) == 5,
    )
