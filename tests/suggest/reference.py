"""The same figures in plain fp64 from activations that were stored, written in another form than the product's."""

# Shapes: N tokens, D channels

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from layersync_core import Adapter
from layersync_core.testing import look

Floats = NDArray[np.float64]


def stored(adapter: Adapter, model: nn.Module, inputs: dict[str, Any]) -> list[Floats]:
    """Return (N, D) for each block: the generated tokens of the whole batch, in order."""
    seen = look(adapter, model, inputs)
    mask = seen.tokens.real if seen.tokens.target is None else seen.tokens.target
    found = []
    for layer in sorted(seen.states):
        state_BSD = seen.states[layer].detach().double()
        kept = state_BSD.flatten(0, 1) if mask is None else state_BSD[mask]
        found.append(kept.numpy())
    return found


def centred(one_ND: Floats, two_ND: Floats) -> float:
    return cosine(one_ND - one_ND.mean(0), two_ND - two_ND.mean(0))


def cosine(one_ND: Floats, two_ND: Floats) -> float:
    products = (one_ND * two_ND).sum(1)
    return float((products / np.linalg.norm(one_ND, axis=1) / np.linalg.norm(two_ND, axis=1)).mean())


def u_centred(states_ND: Floats) -> Floats:
    """Return the U-centred kernel (Székely and Rizzo 2014), whose products are the unbiased HSIC."""
    kernel = states_ND @ states_ND.T
    np.fill_diagonal(kernel, 0.0)
    count = len(kernel)
    rows = kernel.sum(1, keepdims=True)
    kernel = kernel - (rows + rows.T) / (count - 2) + kernel.sum() / ((count - 1) * (count - 2))
    np.fill_diagonal(kernel, 0.0)
    return kernel


def hsic(one_ND: Floats, two_ND: Floats) -> float:
    count = len(one_ND)
    return float((u_centred(one_ND) * u_centred(two_ND)).sum() / (count * (count - 3)))


def cka(forwards: list[list[Floats]], one: int, two: int) -> float:
    """Return minibatch CKA of two blocks over forwards."""
    sums = [sum(hsic(states[i], states[j]) for states in forwards) for i, j in ((one, two), (one, one), (two, two))]
    return sums[0] / float(np.sqrt(sums[1] * sums[2]))


def pick(states: list[Floats], tokens: int, draw: torch.Generator) -> list[Floats]:
    """Return the sub-sample as the product describes it: drawn without replacement, in the order of the tokens."""
    count = len(states[0])
    if count <= tokens:
        return states
    chosen = torch.randperm(count, generator=draw)[:tokens].sort().values.numpy()
    return [state[chosen] for state in states]
