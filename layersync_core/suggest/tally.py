"""How similar blocks are at one noise level: sums over batches, from which CKA and mean cosines follow.

Only sums of numbers for each pair are kept, never the states of an earlier batch.
"""

# Shapes: G blocks of one kind, N tokens of the sub-sample, D channels

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

ESTIMATOR = (
    "minibatch linear CKA (Nguyen et al., arXiv 2010.15327): unbiased HSIC (Song et al. 2012) of each forward's "
    "sub-sample, summed over forwards, sum HSIC(K, L) / sqrt(sum HSIC(K, K) * sum HSIC(L, L)); cosines are means over "
    "the tokens of all sub-samples, the centred one after subtracting the sub-sample's mean token from each block"
)
_LEAST = 4  # tokens; with fewer the unbiased estimator is undefined


@dataclass
class Tally:
    """Sums for every two of some blocks of one width and resolution.

    Attributes:
        hsic: (G, G) fp64, sum of unbiased HSIC over forwards.
        cosine: (G, G) fp64, sum over tokens of the cosine.
        centered: (G, G) fp64, the same after subtracting the mean token.
        forwards: Forwards with enough tokens for ``hsic``.
        tokens: Tokens in the sums of cosines.
    """

    hsic: Tensor | float = 0.0
    cosine: Tensor | float = 0.0
    centered: Tensor | float = 0.0
    forwards: int = 0
    tokens: int = 0

    def add(self, states_GND: Tensor) -> None:
        """Add the sub-sample of one forward.

        Args:
            states_GND: fp64, the same N tokens of each block.
        """
        _, count, _ = states_GND.shape
        apart_GND = states_GND - states_GND.mean(1, keepdim=True)
        self.cosine = self.cosine + _cosines(states_GND)
        self.centered = self.centered + _cosines(apart_GND)
        self.tokens += count
        if count >= _LEAST:
            # HSIC does not depend on the mean token, and subtracting it avoids cancellation of large numbers.
            self.hsic = self.hsic + unbiased_hsic(apart_GND @ apart_GND.mT)
            self.forwards += 1

    def not_finite(self, indices: Sequence[int]) -> list[int]:
        """Return the indices of the blocks whose tokens were not finite in some forward."""
        own = torch.as_tensor(self.cosine).diagonal() if self.tokens else torch.zeros(len(indices))
        return [index for index, bad in zip(indices, (~own.isfinite()).tolist(), strict=True) if bad]

    def cka(self) -> Tensor | None:
        """Return (G, G) fp64 on the CPU, NaN where a block's tokens are all equal; None where nothing was measured."""
        if not isinstance(self.hsic, Tensor):
            return None
        hsic = self.hsic.cpu()
        own = hsic.diagonal().clone()
        own[own <= 0] = torch.nan
        return hsic / (own[:, None] * own).sqrt()


def unbiased_hsic(grams_GNN: Tensor) -> Tensor:
    """Return the unbiased HSIC of every two kernels (Song et al., JMLR 13, 2012), (G, G).

    Args:
        grams_GNN: Kernels of the same N samples, N at least 4; their diagonals do not count.
    """
    groups, count, _ = grams_GNN.shape
    grams_GNN = grams_GNN - torch.diag_embed(grams_GNN.diagonal(dim1=1, dim2=2))
    flat, rows_GN = grams_GNN.reshape(groups, -1), grams_GNN.sum(2)
    whole_G = rows_GN.sum(1)
    total = flat @ flat.T + whole_G[:, None] * whole_G / ((count - 1) * (count - 2))
    return (total - 2 / (count - 2) * rows_GN @ rows_GN.T) / (count * (count - 3))


def _cosines(states_GND: Tensor) -> Tensor:
    """Return the sum over tokens of the cosine of every two blocks, (G, G)."""
    units = torch.nn.functional.normalize(states_GND, dim=-1).flatten(1)
    return units @ units.T


@dataclass
class Level:
    """One noise level.

    Attributes:
        tallies: Tallies by the indices of their blocks, since only blocks of one kind can be paired.
        pooled: By block, the mean token of each sample with a known class, (B, D) fp32 on the CPU, in order.
        labels: Their classes, (B,).
    """

    tallies: dict[tuple[int, ...], Tally] = field(default_factory=dict)
    pooled: dict[int, list[Tensor]] = field(default_factory=dict)
    labels: list[Tensor] = field(default_factory=list)
