"""What the tokens that a main loss trains say of those that were chosen: counted on the device, judged on the host."""

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
    """What is to be said of a measurement.

    Attributes:
        kind: What it is about; a warning of one kind is said once.
        text: A sentence for the user.
        is_error: No honest training looks like this.
    """

    kind: str
    text: str
    is_error: bool = False


class Counts(NamedTuple):
    """Numbers of tokens in the sample that has most of them; samples without any gradient do not count.

    Attributes:
        active: Samples whose loss reaches the last block.
        seen: Chosen tokens that the loss sees, in the whole batch.
        chosen: Tokens that were chosen.
        missed: Chosen tokens that the loss does not see.
        extra: Other tokens of the same tensor that it sees, padding left out.
        swapped: Samples that have both: tokens missed, and others seen in their place.
        elsewhere: Tokens that it sees in other tensors of the same output.
        at: Positions that are missed in some sample.
        first: The first of these positions.
        last: The last of them.
    """

    active: int
    seen: int
    chosen: int
    missed: int
    extra: int
    swapped: int
    elsewhere: int
    at: int
    first: int
    last: int


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
    unpadded = extra if real is None else extra & real
    missed_S = missed.any(0).int()
    length = len(missed_S)
    most = [(tokens & active_B[:, None]).sum(1).max() for tokens in (chosen, missed, unpadded)]
    elsewhere = torch.stack([other.sum() for other in others]).sum() if others else seen.new_zeros((), dtype=torch.long)
    return torch.stack(
        [
            active_B.sum(),
            (seen & chosen).sum(),
            *most,
            (missed.any(1) & extra.any(1)).sum(),
            elsewhere,
            missed_S.sum(),
            missed_S.argmax(),
            length - 1 - missed_S.flip(0).argmax(),
        ]
    )


def judge_joined(seen: int, lengths: Sequence[int], where: str) -> Finding | None:
    """Return what is to be said of streams that later blocks join; None where nothing can be told.

    Args:
        seen: Tokens of the joined sequence that the loss sees.
        lengths: Tokens of each stream, the aligned one first.
        where: The last block and the adapter, for the message.
    """
    aligned, *others = lengths
    if seen == aligned or seen not in others:
        return None
    return Finding(
        "stream",
        f"the main loss sees {seen} tokens, as many as another stream has than the aligned one, which has {aligned} "
        f"({where}): text is aligned in place of the sample. In the adapter's BlockStack, element names the image or "
        "video among what its blocks return",
        is_error=True,
    )


def judge(counts: Counts, length: int, tokens: TokenSet, lengths: Sequence[int], where: str) -> Finding | None:
    """Return what is to be said; None where all is as it should be, or nothing can be told.

    Args:
        counts: What was measured.
        length: Tokens in the aligned tensor, S.
        tokens: The token set that was chosen.
        lengths: Lengths of the forward's arguments that are sequences.
        where: The last block and the adapter, for the message.
    """
    missed = f"the main loss does not see {counts.missed} of the {counts.chosen} tokens"
    place = f"positions {counts.first} to {counts.last} of {length}"
    if not counts.seen and counts.elsewhere and not counts.extra:
        return Finding(
            "stream",
            f"the main loss trains {counts.elsewhere} tokens of another stream and none of those that are aligned "
            f"({where}): LayerSync would train weights that your loss never touches, or the adapter names the wrong "
            "element of what its blocks return",
            is_error=True,
        )
    if counts.swapped:
        return Finding(
            "order",
            f"{missed} that are aligned ({place}), but others in their place ({where}): the tokens were chosen at the "
            "wrong end of the sequence or in another order. In an adapter of your own correct joined, element, target "
            "or real; where reference tokens stand beside the generated ones, say how many are generated: "
            "layersync_generated_tokens N for the first N of the image or video tokens, -N for the last N",
            is_error=True,
        )
    if counts.missed and counts.at == counts.last - counts.first + 1 and counts.seen:
        rest, at_end = length - counts.at, counts.first == 0 or counts.last == length - 1
        if at_end and counts.chosen == length and length not in lengths and {rest, counts.at} <= {*lengths}:
            return Finding(
                "text",
                f"{missed} that are aligned ({place}, as many as an argument of the forward that is no sample has; "
                f"{where}): text stands among them. In the adapter's BlockStack, joined says where the image tokens "
                "stand in a sequence of text and image, and embedder how many there are",
                is_error=True,
            )
    if counts.missed and tokens == "target":
        return Finding(
            "missed",
            f"{missed} that are aligned ({place}; {where}). They may be conditioning frames or a mask of your loss, "
            "and all is well; or reference tokens that nothing marks as such: then set layersync_generated_tokens to "
            "N where the first N tokens are generated, to -N where the last N are",
        )
    if counts.extra and not counts.missed:
        return Finding(
            "extra",
            f"the main loss sees {counts.extra} tokens beside the {counts.chosen} that are aligned ({where}): "
            "references or text that you train on, or generated tokens that were taken for references; "
            "layersync_tokens all aligns references as well",
        )
    return None
