"""Where the tokens of one tensor are in another, found by their values or by gradients between the two."""

# Shapes: B batch, S tokens of the tensor that holds them, N tokens of the one that is looked for, D channels

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from layersync_core.capture.discovery.found import Range
from layersync_core.capture.discovery.record import Path, by_token
from layersync_core.capture.seen import gradients, seen_tokens


def located(part_BND: Tensor, whole_BSD: Tensor) -> int | None:
    """Return where a tensor occurs unchanged in another one; None where it doesn't, or occurs at several places."""
    tokens = part_BND.shape[-2]
    if part_BND.ndim != whole_BSD.ndim or part_BND.dtype != whole_BSD.dtype or tokens > whole_BSD.shape[-2]:
        return None
    if (*part_BND.shape[:-2], part_BND.shape[-1]) != (*whole_BSD.shape[:-2], whole_BSD.shape[-1]) or not tokens:
        return None
    part_BND, whole_BSD = part_BND.detach(), whole_BSD.detach().to(part_BND.device)
    first_S = (whole_BSD == part_BND[..., :1, :]).flatten(2 if whole_BSD.ndim > 2 else 1).all(-1)
    first_S = first_S.all(0) if first_S.ndim > 1 else first_S
    starts = [start for start in first_S.nonzero().flatten().tolist() if start + tokens <= whole_BSD.shape[-2]]
    found = [start for start in starts if torch.equal(whole_BSD[..., start : start + tokens, :], part_BND)]
    return found[0] if len(found) == 1 else None


def gradients_at(of: Tensor, tensors: Sequence[Tensor], weights: Tensor | None = None) -> list[Tensor | None]:
    """Return the gradients with respect to tensors; for views (B, S, D), through the tensors they stand for."""
    raw = [getattr(tensor, "raw", tensor) for tensor in tensors]
    found = gradients(of, raw, weights)
    views = [tensor is not inner for tensor, inner in zip(tensors, raw, strict=True)]
    return [by_token(item) if view and item is not None else item for item, view in zip(found, views, strict=True)]


def sources(of_BSD: Tensor, tokens_BS: Tensor, among: Mapping[Path, Tensor]) -> dict[Path, Tensor]:
    """Return the tensors that some tokens depend on, each with (B, N) bool, True for those of its tokens.

    Args:
        of_BSD: The tensor with the tokens, (S, D) for one sample.
        tokens_BS: Which tokens, (B, S) bool.
        among: Where to look.
    """
    weights = torch.randn_like(of_BSD) * (tokens_BS if of_BSD.ndim > 2 else tokens_BS[0])[..., None]
    found = gradients_at(of_BSD, list(among.values()), weights)
    seen = {place: seen_tokens(item) for place, item in zip(among, found, strict=True) if item is not None}
    return {place: mask for place, mask in seen.items() if bool(mask.any())}


def depending(of_BSD: Tensor, on: Tensor) -> Tensor | None:
    """Return (B, S) bool, True for the tokens of a tensor that depend on another one; None where that is unknown.

    It is the gradient of a gradient: a product with the transposed Jacobian is linear in the vector it multiplies.
    """
    weights = torch.randn_like(of_BSD, requires_grad=True)
    try:
        (first,) = torch.autograd.grad(of_BSD, getattr(on, "raw", on), weights, create_graph=True, allow_unused=True)
        if first is None or not first.requires_grad:
            return None
        (second,) = torch.autograd.grad(first, weights, torch.randn_like(first), allow_unused=True)
    except RuntimeError:  # an operation between the two has no second derivative
        return None
    return None if second is None else seen_tokens(second)


def ranges(seen_S: Tensor) -> tuple[Range, ...]:
    """Return the runs of True in (S,) bool."""
    found: list[Range] = []
    for place in seen_S.nonzero().flatten().tolist():
        if found and found[-1][1] == place:
            found[-1] = found[-1][0], place + 1
        else:
            found.append((place, place + 1))
    return tuple(found)


def hull(seen_BS: Tensor) -> Range:
    """Return the first token that any sample has, and the one after the last."""
    places = seen_BS.any(0).nonzero().flatten()
    return int(places[0]), int(places[-1]) + 1
