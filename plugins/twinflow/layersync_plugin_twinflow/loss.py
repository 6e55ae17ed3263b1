"""TwinFlow's objective (arXiv 2512.05150) as a function of a model call, in the form that SimpleTuner's users know.

x_t = (1 - t) x + t z with data x and noise z; F(x_t, t, t') is the velocity that a model predicts for the time t and
the target time t'. A negative time asks for the fake path, the one that ends in the model's own samples.
"""

# Shapes: B batch

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from layersync_plugin_twinflow.randomness import Randomness

Model = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""F(x, t, t', condition): (B, *shape), (B,), (B,) and whatever the model is conditioned on, to (B, *shape)."""


@dataclass(frozen=True)
class Rule:
    """The options of the loss; names and defaults as in the settings.

    Attributes:
        order: Teacher's steps from t to t'.
        enhanced_ratio: Share of the teacher's guidance in the target.
        delta_t: How far before t the recursion's inner steps end.
        clamp: Bound of the consistency loss's correction.
        adversarial: Whether the fake path is trained as well.
        adversarial_weight: Weight of the fake path's velocity loss.
        rectify_weight: Weight of the loss that compares both paths.
    """

    order: int = 2
    enhanced_ratio: float = 0.5
    delta_t: float = 0.01
    clamp: float = 1.0
    adversarial: bool = False
    adversarial_weight: float = 1.0
    rectify_weight: float = 1.0


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch.

    Attributes:
        target: (B,) uniform in [0, 1): where t' lies between t and 0.
        fake_noise: (B, *shape) standard normal: the noise that the fake samples start from.
        fake_time: (B,) uniform in [0, 1): the time on the fake path.
    """

    target: Tensor
    fake_noise: Tensor | None = None
    fake_time: Tensor | None = None

    @classmethod
    def of(cls, clean: Tensor, rule: Rule, generator: torch.Generator | None = None) -> Draws:
        """Draw them for a batch of data on the generator's device; None: torch's own, on the batch's device."""
        device = clean.device if generator is None else generator.device
        count = len(clean)

        def uniform() -> Tensor:
            return torch.rand(count, generator=generator, device=device, dtype=clean.dtype).to(clean.device)

        target = uniform()
        if not rule.adversarial:
            return cls(target)
        noise = torch.randn(clean.shape, generator=generator, device=device, dtype=clean.dtype)
        return cls(target, noise.to(clean.device), uniform())


def twinflow_loss(
    model_fn: Model,
    clean: Tensor,
    noise: Tensor,
    time: Tensor,
    condition: Any = None,
    *,
    rule: Rule = Rule(),
    teacher_fn: Model | None = None,
    unconditional: Any = None,
    generator: torch.Generator | None = None,
    draws: Draws | None = None,
    paused: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Return the loss of a batch, a scalar, and its parts.

    The first call of ``model_fn`` is the main pass; the only other one with gradients runs inside ``paused()``.

    Args:
        model_fn: The model that is trained; negative times ask for the fake path.
        clean: (B, *shape) data.
        noise: (B, *shape) standard normal.
        time: (B,) in [0, 1]: 0 is data, 1 is noise.
        condition: Passed to the models.
        rule: The options of the loss.
        teacher_fn: The teacher, called without gradient; None: ``model_fn``.
        unconditional: The empty condition, for guidance in the target; None: no guidance.
        generator: Source of random numbers; None: torch's own generator on the batch's device.
        draws: The random numbers themselves, instead of a generator.
        paused: Context for forwards with gradients other than the main pass.

    Returns:
        ``twinflow_base + twinflow_realvel``, plus the weighted ``twinflow_adv`` and ``twinflow_rectify`` if the rule is
        adversarial; and these parts by name, detached and without weights.

    Examples:
        >>> import torch
        >>> from layersync_plugin_twinflow import twinflow_loss
        >>> clean, noise = torch.zeros(2, 3), torch.ones(2, 3)
        >>> def velocity(x, time, target_time, condition):  # a model that knows the straight path
        ...     return torch.ones_like(x)
        >>> loss, parts = twinflow_loss(velocity, clean, noise, torch.tensor([0.3, 0.9]))
        >>> loss.shape, sorted(parts)
        (torch.Size([]), ['twinflow_base', 'twinflow_realvel'])
    """
    draws = Draws.of(clean, rule, generator) if draws is None else draws
    target_time = earlier(time, draws.target)
    noisy = _mixed(clean, noise, time)
    randomness = Randomness(clean.device)
    prediction = model_fn(noisy, time, target_time, condition)
    held = prediction.detach()

    @torch.no_grad()
    def teacher(x: Tensor, t: Tensor, target: Tensor, told: Any) -> Tensor:
        with randomness.again():
            return (teacher_fn or model_fn)(x, t, target, told)

    velocity = noise - clean
    if unconditional is not None and rule.enhanced_ratio:
        guided, free = (teacher(noisy, time, time, told) for told in (condition, unconditional))
        velocity = velocity + rule.enhanced_ratio * (guided - free)
    path = teacher_path(lambda x, t, target: teacher(x, t, target, condition), noisy, time, target_time, rule)
    consistent = held - (held - path - velocity).clamp(-rule.clamp, rule.clamp)
    parts = {"twinflow_base": _mse(prediction, consistent), "twinflow_realvel": _mse(prediction, velocity)}
    loss = parts["twinflow_base"] + parts["twinflow_realvel"]
    if rule.adversarial:
        assert draws.fake_noise is not None
        assert draws.fake_time is not None
        fake_time = 0.01 + 0.98 * draws.fake_time
        with torch.no_grad():
            fake = _one_step(model_fn, draws.fake_noise, condition)
            with randomness.again():
                fake_path = model_fn(noisy, -time, -time, condition)
        with paused():
            on_fake_path = model_fn(_mixed(fake, draws.fake_noise, fake_time), -fake_time, -fake_time, condition)
        parts["twinflow_adv"] = _mse(on_fake_path, draws.fake_noise - fake)
        parts["twinflow_rectify"] = _mse(prediction, held - (fake_path - held))
        loss = loss + rule.adversarial_weight * parts["twinflow_adv"] + rule.rectify_weight * parts["twinflow_rectify"]
    return loss, {name: value.detach() for name, value in parts.items()}


def earlier(time: Tensor, share: Tensor) -> Tensor:
    """Return the (B,) target times t' = t - share · t, at most t - eps and at least 0."""
    target = torch.minimum(time - share * time, time - torch.finfo(time.dtype).eps)
    return target.clamp(min=0)


def teacher_path(
    teacher: Callable[[Tensor, Tensor, Tensor], Tensor], noisy: Tensor, time: Tensor, target: Tensor, rule: Rule
) -> Tensor:
    """Return how far a teacher moves the sample from ``time`` to ``target`` in ``rule.order`` steps, (B, *shape).

    The inner steps end evenly between t and max(t', t - delta_t), the last one at t'.
    """
    anchor = torch.maximum(target, time - rule.delta_t)
    inner = [step / rule.order for step in range(1, rule.order)]
    times = [*(anchor * share + time * (1 - share) for share in inner), target]
    way, x, before = torch.zeros_like(noisy), noisy, time
    for after in times:
        velocity = teacher(x, before, after)
        x = moved(x, velocity, before, after)
        way = way + velocity * over(before - after, velocity)
        before = after
    return way


def moved(x: Tensor, velocity: Tensor, time: Tensor, after: Tensor) -> Tensor:
    """Return the point at time ``after`` on the path from data to noise that a velocity at ``time`` implies."""
    t, t_after = over(time, x), over(after, x)
    data, noise = x - t * velocity, x + (1 - t) * velocity
    return t_after * noise + (1 - t_after) * data


def over(time: Tensor, like: Tensor) -> Tensor:
    """Reshape (B,) times so that they broadcast over (B, *shape)."""
    return time.reshape(-1, *[1] * (like.dim() - 1))


def _one_step(model_fn: Model, noise: Tensor, condition: Any) -> Tensor:
    ones = noise.new_ones(len(noise))
    return noise - model_fn(noise, ones, torch.zeros_like(ones), condition)


def _mixed(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    t = over(time, clean)
    return (1 - t) * clean + t * noise


def _mse(prediction: Tensor, target: Tensor) -> Tensor:
    # In fp32 at least, whatever the model's dtype.
    wide = prediction if prediction.dtype == torch.float64 else prediction.float()
    return mse_loss(wide, target.to(wide.dtype))
