"""The target time of an unmodified model: a hook adds it to the model's time embedding.

There are two conventions. ``delta``, the authors': a second embedder for t - t'; the model's own embedder gets negative
times as they are. ``sign``, SimpleTuner's: an embedding for negative times, of which the model's own embedder gets only
the magnitude; t' is not embedded. Here both add exactly 0 if t' = t and t is not negative, however long they were
trained: without the hook a model is the plain flow-matching model F(x, t, t).
"""

# Shapes: B batch, R rows of an embedding (samples, or samples and tokens), D channels, K features

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu
from torch.utils.checkpoint import checkpoint

from layersync_core import ConfigError, LayerSyncError
from layersync_plugin_twinflow.places import Place, places_of

NAME = "twinflow_time"
"""Name of the part inside its model."""
Convention = Literal["delta", "sign"]
_FEATURES = 256


class Part(nn.Module):
    """What is added to one embedding.

    Args:
        width: Channels of the embedding.
        delta: Whether the distance t - t' is embedded.
        sign: Whether negative times are embedded.
    """

    def __init__(self, width: int, delta: bool, sign: bool) -> None:
        super().__init__()
        self.delta = self.sign = None
        if delta:
            # Without a bias, since the output for a distance of 0 is subtracted again.
            self.delta = nn.Sequential(nn.Linear(_FEATURES, width), nn.SiLU(), nn.Linear(width, width, bias=False))
            nn.init.zeros_(self.delta[2].weight)  # type: ignore[arg-type]
        if sign:
            self.sign = nn.Parameter(torch.zeros(width))

    def forward(self, delta_R: Tensor, negative_R: Tensor) -> Tensor | None:
        """Return the addend, (R, D); None if nothing is added."""
        added = None
        if self.delta is not None:
            first, second = self.delta[0], self.delta[2]
            weight: Any = first.weight
            distance_RK, none_RK = (_features(value).to(weight.dtype) for value in (delta_R, torch.zeros_like(delta_R)))
            added = second(silu(first(distance_RK)) - silu(first(none_RK)))
        if self.sign is not None:
            sign_RD = negative_R[:, None].to(self.sign.dtype) * self.sign
            added = sign_RD if added is None else added + sign_RD
        return added


@dataclass(frozen=True)
class _Target:
    delta: Tensor
    negative: Tensor


class TargetTime(nn.Module):
    """The parts of one model, added to it as its child ``twinflow_time``, and the hooks that use them.

    Attributes:
        places: Where the model embeds its time.
        convention: ``delta`` or ``sign``.
        adversarial: Whether negative times will be used.
        rule: Target times (R,) from times (R,), for forwards without given ones, as in sampling. None: t' = t.
        watched: A forward with gradients but without a target time is an error, since it must be a recomputation.

    Args:
        model: The model.
        convention: ``delta`` or ``sign``.
        adversarial: Whether negative times will be used.

    Raises:
        ConfigError: It isn't known where the model embeds its time, or the model already has such a part.
    """

    def __init__(self, model: nn.Module, convention: Convention, adversarial: bool) -> None:
        super().__init__()
        self.places: list[Place] = places_of(model)
        if hasattr(model, NAME):
            raise ConfigError(f"this {type(model).__name__} already has a target time; take that off with remove()")
        self.convention, self.adversarial = convention, adversarial
        self.rule: Callable[[Tensor], Tensor] | None = None
        self.watched = False
        self._target: _Target | None = None
        self._times: dict[str, Tensor] = {}
        with_sign = convention == "sign" and adversarial  # otherwise its weights would never get a gradient
        parts = (Part(place.width, convention == "delta", with_sign) for place in self.places)
        self.parts = nn.ModuleList(parts).to(next(model.parameters()).device)
        self._handles: list[Any] = []
        for place, part in zip(self.places, self.parts, strict=True):
            projection, embedder = model.get_submodule(place.projection), model.get_submodule(place.path)
            self._handles += [
                projection.register_forward_pre_hook(self._sees(place), with_kwargs=True),
                embedder.register_forward_hook(self._adds(place, part)),
            ]
        model.add_module(NAME, self)
        self._remember_in_checkpoints(model)

    def own_time(self, time: Tensor) -> Tensor:
        """Return the time for the model's own embedder, (B,)."""
        return time if self.convention == "delta" else time.abs()

    @contextmanager
    def told(self, time: Tensor, target: Tensor) -> Iterator[None]:
        """Set target times (B,) for samples at times (B,) in the forwards inside the context."""
        with self._with_target(_Target(time - target, time < 0)):
            yield

    def remove(self, model: nn.Module) -> None:
        """Remove hooks and parts, so that the model is again exactly what its class defines."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        delattr(model, NAME)

    @contextmanager
    def _with_target(self, target: _Target | None) -> Iterator[None]:
        before, self._target = self._target, target
        try:
            yield
        finally:
            self._target = before

    def _sees(self, place: Place) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.rule is not None:
                self._times[place.path] = (args or tuple(kwargs.values()))[0] / place.scale

        return see

    def _adds(self, place: Place, part: nn.Module) -> Callable[..., Tensor]:
        def add(module: nn.Module, args: Any, embedding: Tensor) -> Tensor:
            target = self._target
            if target is None and self.rule is not None:
                time_R = self._times.pop(place.path).float()
                target = _Target(time_R - self.rule(time_R), torch.zeros_like(time_R))
            if target is None:
                if self.watched and torch.is_grad_enabled():
                    raise LayerSyncError(
                        f"{place.path} ran without a target time: something other than the model's own "
                        "enable_gradient_checkpointing() recomputes activations; switch it off with TwinFlow"
                    )
                return embedding
            added = part(target.delta, target.negative)
            return embedding if added is None else embedding + _like(added, embedding, place).to(embedding.dtype)

        return add

    def _remember_in_checkpoints(self, model: Any) -> None:
        """Give a block that is recomputed in the backward pass the target time that it had in the forward pass."""
        if not getattr(model, "is_gradient_checkpointing", False):
            return

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), self._with_target(self._target)

        def run(module: nn.Module, *args: Any) -> Any:
            return checkpoint(module.__call__, *args, use_reentrant=False, context_fn=contexts)

        try:
            model.enable_gradient_checkpointing(gradient_checkpointing_func=run)
        except TypeError:
            raise ConfigError(
                f"{type(model).__name__} takes no function for its gradient checkpointing, which TwinFlow needs; leave "
                "gradient_checkpointing out, or update diffusers to 0.33 or later"
            ) from None


def _like(added_RD: Tensor, embedding: Tensor, place: Place) -> Tensor:
    """Return the addend in the embedding's shape: (R, D), (B, tokens, D), or with rows for references at the end."""
    rows = len(added_RD)
    if rows == embedding.shape[:-1].numel():
        return added_RD.reshape(embedding.shape)
    if rows == len(embedding):
        return added_RD.reshape(rows, *[1] * (embedding.dim() - 2), -1)
    if 2 * rows == len(embedding) and embedding.dim() == 2:
        # References are embedded after the samples, at time 0, and have no target time.
        return pad(added_RD, (0, 0, 0, rows))
    raise LayerSyncError(
        f"{place.path} embeds {tuple(embedding.shape[:-1])} times, but target times were given for {rows} samples"
    )


def _features(delta_R: Tensor) -> Tensor:
    """Return sines and cosines of 1000 times a distance, (R, K), as for times in diffusers."""
    half = _FEATURES // 2
    steps = torch.arange(half, device=delta_R.device, dtype=torch.float32)
    angle_RK = 1000 * delta_R.float()[:, None] * torch.exp(-math.log(10000) / half * steps)
    return torch.cat([angle_RK.cos(), angle_RK.sin()], dim=-1)
