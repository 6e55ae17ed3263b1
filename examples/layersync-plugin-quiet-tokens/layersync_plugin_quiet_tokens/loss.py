"""The loss of quiet_tokens."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

from collections.abc import Sequence

import torch
from layersync_core import Block, ConfigError, RegularizerBase, Schedule, States, Term
from torch import Tensor

from layersync_plugin_quiet_tokens import QuietTokensConfig


class QuietTokens(RegularizerBase):
    """Pull back the tokens of a block whose norm stands out in their sample.

    Args:
        config: The plugin's settings.
    """

    name, order = "quiet_tokens", 150

    def __init__(self, config: QuietTokensConfig) -> None:
        self.config = config
        warmup = config.quiet_tokens_warmup_steps
        self.schedule: Schedule | None = Schedule(warmup_steps=warmup) if warmup else None

    def layers(self, blocks: Sequence[Block]) -> set[int]:
        """Return the indices of the blocks to capture, before the first forward.

        Raises:
            ConfigError: The model has no such block.
        """
        if self.config.quiet_tokens_block > len(blocks):
            raise ConfigError(f"quiet_tokens_block is {self.config.quiet_tokens_block}; valid are 1 to {len(blocks)}")
        self.block = blocks[self.config.quiet_tokens_block - 1]
        return {self.block.index}

    def compute(self, states: States, step: int) -> Term:
        """Return the term of a step, weight included; nothing here may wait for the device (no ``.item()``)."""
        state_BSD = states.trainable_tokens(self.block.index)
        counts_BS = torch.ones(state_BSD.shape[:2], device=state_BSD.device)
        if states.mask is not None:  # padding and reference images do not count
            counts_BS = counts_BS * states.mask
        loudness_BS = loudness(state_BSD, counts_BS)
        excess_BS = (loudness_BS - self.config.quiet_tokens_limit).relu().square()
        weight_BS = counts_BS if states.sample_weight is None else counts_BS * states.sample_weight[:, None]
        factor = 1.0 if self.schedule is None else self.schedule.factor(step)
        loss = self.config.quiet_tokens_lambda * factor * (weight_BS * excess_BS).sum() / counts_BS.sum()
        return Term(loss, {"quiet_tokens_loss": loss, "quiet_tokens_loudest": (counts_BS * loudness_BS).amax()})

    def describe(self) -> list[str]:
        """Return lines to print when the run begins."""
        return [f"quiet_tokens: {self.block}, up to {self.config.quiet_tokens_limit:g} times the mean norm"]


def loudness(state_BSD: Tensor, counts_BS: Tensor) -> Tensor:
    """Return (B, S), each token's norm as a multiple of the mean norm in its sample.

    Args:
        state_BSD: (B, S, D) tokens.
        counts_BS: (B, S) 1 for tokens that count, 0 for padding and references.
    """
    norm_BS = state_BSD.float().norm(dim=-1)
    mean_B1 = (counts_BS * norm_BS).sum(dim=1, keepdim=True) / counts_BS.sum(dim=1, keepdim=True).clamp(min=1)
    # Detached: loud tokens are to become quieter, not all others louder.
    loudness_BS: Tensor = norm_BS / mean_B1.detach().clamp(min=1e-6)
    return loudness_BS
