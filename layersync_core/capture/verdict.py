"""Compare the tokens that a main loss trains with the chosen ones: counted on the device, judged on the host."""

# Shapes: B batch, S tokens

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from layersync_core.protocol import TokenSet


@dataclass(frozen=True)
class Finding:
    """What to report about a measurement.

    Attributes:
        kind: What it is about; a warning of one kind is shown once.
        text: A sentence for the user.
        is_error: No honest training looks like this.
    """

    kind: str
    text: str
    is_error: bool = False


class Counts(NamedTuple):
    """Numbers of tokens, each in the sample with the most of them; samples without any gradient do not count.

    Attributes:
        active: Samples whose loss reaches the last block.
        seen: Chosen tokens that the loss sees, in the whole batch.
        chosen: Tokens that were chosen.
        missed: Chosen tokens that the loss does not see.
        extra: Other tokens of the same tensor that it sees, without padding.
        padding: Padding tokens that it sees.
        swapped: Samples that have both: tokens missed, and others seen in their place.
        elsewhere: Tokens that it sees in other tensors of the same output.
        at: Positions that are missed in some sample.
        first: The first of these positions.
        last: The last of them.
        turned: 1 where the loss sees exactly the chosen tokens once samples and tokens are swapped, else 0.
    """

    active: int
    seen: int
    chosen: int
    missed: int
    extra: int
    padding: int
    swapped: int
    elsewhere: int
    at: int
    first: int
    last: int
    turned: int

    @property
    def in_a_row(self) -> bool:
        """Whether the missed tokens are consecutive."""
        return self.at == self.last - self.first + 1

    def place(self, length: int) -> str:
        """Return in words where the missed tokens are."""
        return f"{'' if self.in_a_row else 'scattered over '}positions {self.first} to {self.last} of {length}"


def count(seen: Tensor, chosen: Tensor, real: Tensor | None, others: Sequence[Tensor]) -> Tensor:
    """Return the fields of ``Counts`` as one tensor, without waiting for the device.

    Args:
        seen: (B, S) bool, True for tokens of the aligned tensor that the loss sees.
        chosen: (B, S) bool, True for tokens that count.
        real: (B, S) bool, False for padding; None where nothing is padded.
        others: The same as ``seen``, of other tensors in the same output.
    """
    active_B = seen.any(1)
    for other in others:
        active_B = active_B | (other.any(1) if len(other) == len(seen) else other.any())
    missed = chosen & ~seen & active_B[:, None]
    extra = seen & ~chosen
    padding = torch.zeros_like(extra) if real is None else extra & ~real
    extra = extra & ~padding
    missed_S = missed.any(0).int()
    elsewhere = torch.stack([other.sum() for other in others]).sum() if others else seen.new_zeros((), dtype=torch.long)
    return torch.stack(
        [
            active_B.sum(),
            (seen & chosen).sum(),
            *((tokens & active_B[:, None]).sum(1).max() for tokens in (chosen, missed, extra, padding)),
            (missed.any(1) & extra.any(1)).sum(),
            elsewhere,
            missed_S.sum(),
            missed_S.argmax(),
            len(missed_S) - 1 - missed_S.flip(0).argmax(),
            _turned(seen, chosen),
        ]
    )


def _turned(seen: Tensor, chosen: Tensor) -> Tensor:
    """Return whether tokens are among the chosen ones only when samples and tokens are swapped."""
    if seen.shape[0] != seen.shape[1]:
        return seen.new_zeros((), dtype=torch.long)  # the shapes already show it
    return ((seen & ~chosen).any() & ~(seen.T & ~chosen).any()).long()


_OFF = "(set layersync_guard false if this is intended)"


def judge_joined(counts: Counts, streams: Sequence[int], where: str) -> Finding | None:
    """Return what to report about streams that later blocks join; None where all is right, or nothing is known.

    Args:
        counts: What was measured, with every token of the joined sequence chosen.
        streams: Tokens of each stream, the aligned one first.
        where: The last block and the adapter, for the message.
    """
    aligned, *others = streams
    seen = counts.chosen - counts.missed
    at_end = counts.first == 0 or counts.last == counts.chosen - 1
    if seen == aligned or seen not in others or not (counts.in_a_row and at_end):
        return None
    return Finding(
        "stream",
        f"the main loss sees {seen} tokens, which is the length of another stream than the aligned one, which has "
        f"{aligned} ({where}): text is aligned in place of the sample. In the adapter's BlockStack, element picks the "
        f"image or video from what its blocks return {_OFF}",
        is_error=True,
    )


def judge(counts: Counts, length: int, tokens: TokenSet, sequences: Sequence[int], where: str) -> Finding | None:
    """Return what to report; None where all is right, or nothing is known.

    Args:
        counts: What was measured.
        length: Tokens in the aligned tensor, S.
        tokens: The token set that was chosen.
        sequences: Lengths of the forward's arguments, where all of them are sequences; else none.
        where: The last block and the adapter, for the message.
    """
    missed = f"the main loss does not see {counts.missed} of the {counts.chosen} tokens"
    place = f"{counts.place(length)}; {where}"
    if counts.turned:
        return Finding(
            "axes",
            f"the main loss sees the aligned tokens only if samples and tokens are swapped ({where}): sequence_first "
            f"of the adapter's BlockStack is the wrong way round {_OFF}",
            is_error=True,
        )
    if not counts.seen and counts.elsewhere and not counts.extra:
        return Finding(
            "stream",
            f"the main loss trains {counts.elsewhere} tokens of another stream and none of those that are aligned "
            f"({where}): LayerSync would train weights that your loss never touches, or the adapter names the wrong "
            f"element of what its blocks return {_OFF}",
            is_error=True,
        )
    # A mask over generated and reference tokens alike looks like the second, but is scattered.
    if (not counts.seen and counts.extra + counts.padding) or (counts.swapped and counts.in_a_row):
        return Finding(
            "order",
            f"{missed} that are aligned ({place}), but others in their place: the tokens were chosen at the wrong end "
            "of the sequence or in another order. If there are reference tokens beside the generated ones, say how "
            "many are generated: layersync_generated_tokens N for the first N of the image or video tokens, -N for the "
            f"last N; in your own adapter correct joined, element, target or real {_OFF}",
            is_error=True,
        )
    if counts.missed and counts.in_a_row and counts.chosen == length and _are_text(counts, length, sequences):
        return Finding(
            "text",
            f"{missed} that are aligned ({place}), as many as one argument of the forward has, and sees as many as "
            "another one has: there is text among them. In the adapter's BlockStack, joined says where the image "
            f"tokens are in a sequence of text and image, and embedder how many there are {_OFF}",
            is_error=True,
        )
    if counts.missed and tokens == "target":
        return Finding(
            "missed",
            f"{missed} that are aligned ({place}). They may be conditioning frames or a mask of your loss, and all is "
            "well; or reference tokens that nothing marks as such: then set layersync_generated_tokens to N if the "
            "first N tokens are generated, to -N if the last N are; or, with your own adapter, text",
        )
    if counts.extra:
        return Finding(
            "extra",
            f"the main loss sees {counts.extra} tokens beside the {counts.chosen} that are aligned ({where}): "
            "references or text that you train on, or generated tokens that were mistaken for references; "
            "layersync_tokens all aligns references as well, layersync_generated_tokens says how many are generated",
        )
    return None


def _are_text(counts: Counts, length: int, sequences: Sequence[int]) -> bool:
    at_end = counts.first == 0 or counts.last == length - 1
    left = list(sequences)
    for part in (counts.at, length - counts.at):
        if part not in left:
            return False
        left.remove(part)
    return at_end and length not in sequences
