"""The hidden states of one training forward, as regularizers see them."""

# Shapes: B batch, S tokens, D channels, T frames, P tokens per frame

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from layersync_core.capture.buffer import HiddenStateBuffer
from layersync_core.capture.forward import Forward
from layersync_core.capture.graph import measured
from layersync_core.capture.trained import Way, find_way
from layersync_core.distributed import first_rank
from layersync_core.errors import CaptureError, ConfigError
from layersync_core.inputs import assert_on_device
from layersync_core.metrics import Meter
from layersync_core.protocol import Block, TokenSet

log = logging.getLogger(__name__)


def choose_generated(forward: Forward, buffer: HiddenStateBuffer, number: int) -> None:
    """Set which of a forward's image, video or audio tokens are generated, as the user says.

    Args:
        forward: A forward that was read.
        buffer: Its states.
        number: N for the first N tokens of each sample, -N for the last N, not counting padding.

    Raises:
        ConfigError: There are fewer tokens.
    """
    state_BSD = next(iter(buffer.values()))
    batch, tokens, _ = state_BSD.shape
    if abs(number) > tokens:
        raise ConfigError(f"layersync_generated_tokens is {number}, but the forward has {tokens} tokens")
    real_BS = forward.real
    if real_BS is None:
        real_BS = torch.ones(batch, tokens, dtype=torch.bool, device=state_BSD.device)
    place_BS = real_BS.cumsum(1) if number > 0 else real_BS.flip(1).cumsum(1).flip(1)
    forward.target = real_BS & (place_BS <= abs(number))


def require_tokens(forward: Forward) -> None:
    """Refuse a forward without a token to align, whose term would always be 0.

    Raises:
        CaptureError: It has none. On a GPU the device stops the program instead, since the host does not wait for it.
    """
    counted = forward.real if forward.target is None else forward.target
    if counted is not None:
        message = (
            "no generated token in the batch, only references or padding, so there is nothing to align; set "
            "layersync_generated_tokens to the number of generated tokens, or correct the adapter: its target and real "
            "are True for the tokens that count"
        )
        assert_on_device(counted.any(), message, CaptureError)


class HiddenStates:
    """The hidden states of one training forward; implements ``States``."""

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        buffer: HiddenStateBuffer,
        blocks: list[Block],
        meter: Meter,
        sample_weight: Tensor | None,
        ways: dict[int, Way],
    ) -> None:
        self._model, self._forward, self._buffer, self._blocks = model, forward, buffer, blocks
        self._ways = ways
        self._tracked = forward.tracked  # empty for a custom adapter that does not fill it
        self.sample_weight = sample_weight
        self.sets: set[TokenSet] = set()  # the token sets that were asked for
        self._meter = meter
        self.reader = ""  # name of the regularizer that computes its term from them

    @property
    def mask(self) -> Tensor | None:
        """(B, S) bool, True for the generated tokens; None when every token counts."""
        return self.mask_of("target")

    @property
    def grid(self) -> tuple[int, int, int] | None:
        """(T, H, W) of the tokens in raster order, or None."""
        return self._forward.grid

    def mask_of(self, tokens: TokenSet) -> Tensor | None:
        """Return the (B, S) mask of a token set; None when every token counts."""
        self.sets.add(tokens)
        if tokens == "target" and self._forward.target is not None:
            return self._forward.target
        return self._forward.real

    def tell_no_references(self) -> None:
        """Say so in one line, on one rank, where reference tokens were asked for and nothing marks any."""
        if self.sets == {"all"} and self._forward.target is None and first_rank():
            log.warning(
                "layersync_tokens all counts the same tokens as target here: no token of this forward is marked as one "
                "of a reference"
            )

    def tokens(self, layer: int) -> Tensor:
        """Return (B, S, D): the image, video or audio tokens of a layer."""
        try:
            return self._buffer[self._buffer.key(layer)]
        except KeyError:
            raise CaptureError(f"layer {layer} was not requested before the forward; declare it in layers()") from None

    def frames(self, layer: int) -> Tensor:
        """Return (B, T, P, D): the same tokens by frame; T is 1 for images."""
        state_BSD = self.tokens(layer)
        batch, tokens, channels = state_BSD.shape
        if self.grid is None and self._forward.video:
            raise CaptureError(
                "the frames of this forward's tokens are unknown: they are not in raster order, or the model's own "
                "forward did not run"
            )
        frames, rows, columns = self.grid or (1, tokens, 1)
        if frames * rows * columns != tokens:
            raise CaptureError(f"{tokens} tokens do not fill {frames} frames of {rows} by {columns}")
        return state_BSD.reshape(batch, frames, rows * columns, channels)

    def trainable_tokens(self, layer: int) -> Tensor:
        """Return ``tokens(layer)``; raise CaptureError unless they depend on a trainable parameter."""
        tokens = self.tokens(layer)
        state = self._tracked.get(layer, tokens)
        known = self._ways.get(layer)
        if known is None or not known.leads(state):
            way = find_way(state, self._model, self._blocks, layer)
            if way is None:
                raise CaptureError(self._why_untrained(layer, known is not None))
            self._ways[layer] = way
        return tokens

    def _why_untrained(self, layer: int, before: bool) -> str:
        what = f"{self._blocks[layer]} depends on nothing trainable, so LayerSync would train nothing"
        if before:
            return (
                f"{what} from here on: weights up to this block were trained before, and are frozen now or no longer "
                "in use (if that is intended, set layersync_cutoff_step to that step)"
            )
        return (
            f"{what}: no parameter up to this block gets a gradient (train weights before it, or, with re-entrant "
            "checkpointing of a frozen model, let the embedder's output require grad or use use_reentrant=False)"
        )

    def tokens_with_grad_ratio(self, layer: int, name: str) -> Tensor:
        """Return ``trainable_tokens(layer)``, and record the relative norm of their gradient under ``name``."""
        tokens = self.trainable_tokens(layer)
        owner = self.reader
        self._meter.claim(name, owner)
        span = self._forward.spans.get(layer, slice(None))
        return measured(self._tracked.get(layer, tokens), span, lambda ratio: self._meter.add(name, ratio, owner))
