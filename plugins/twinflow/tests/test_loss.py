"""The objective against numbers worked out by hand for linear models, and its gradients against finite differences."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional as F

from layersync_plugin_twinflow import Draws, Rule, few_steps, twinflow_loss
from layersync_plugin_twinflow.loss import earlier, moved, teacher_path


def scalar(value):
    return torch.tensor([[float(value)]], dtype=torch.float64)


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


class Linear:
    """F(x, t, t') = slope · x + b · t + c · t', and what it was called with."""

    def __init__(self, slope=1.0, b=0.0, c=0.0, by_condition=0.0):
        self.slope, self.b, self.c, self.by_condition = slope, b, c, by_condition
        self.calls = []

    def __call__(self, x, t, target, condition):
        self.calls.append((x, t, target, condition, torch.is_grad_enabled()))
        told = self.by_condition if condition == "told" else 0.0
        return self.slope * x + self.b * t[:, None] + self.c * target[:, None] + told


# x = 1, z = 3, t = 0.5: x_t = 2, v = 2. A share of 0.5 gives t' = 0.25.
HALF = {"clean": scalar(1), "noise": scalar(3), "time": times(0.5), "draws": Draws(times(0.5))}


def test_order_one_is_one_step_of_the_teacher():
    # Teacher F = 0.4 x + t + 2 t': 0.8 + 0.5 + 0.5 = 1.8 at (2, 0.5, 0.25); A = 1.8 · 0.25 = 0.45.
    # Student F = 0.5 x: p = 1. y = 2. p - A - y = -1.45, within the clamp of 10: R = A + y = 2.45.
    teacher = Linear(0.4, 1, 2)
    loss, parts = twinflow_loss(Linear(0.5), **HALF, teacher_fn=teacher, rule=Rule(order=1, clamp=10))
    assert parts["twinflow_base"].item() == pytest.approx(1.45**2)
    assert parts["twinflow_realvel"].item() == pytest.approx(1.0)
    assert loss.item() == pytest.approx(1.45**2 + 1)
    assert [(x.item(), t.item(), target.item()) for x, t, target, *_ in teacher.calls] == [(2.0, 0.5, 0.25)]


def test_order_two_goes_on_from_where_the_first_step_ended():
    # t_a = max(0.25, 0.5 - 0.2) = 0.3; t_1 = (0.3 + 0.5) / 2 = 0.4. Teacher F = 0.5 x + t':
    # F_1 = 1 + 0.4 = 1.4 at (2, 0.5, 0.4); x_1 = 2 - 0.1 · 1.4 = 1.86; A = 0.14.
    # F_2 = 0.93 + 0.25 = 1.18 at (1.86, 0.4, 0.25); A = 0.14 + 0.15 · 1.18 = 0.317.
    # p = 0.5 · 2 = 1, y = 2: p - A - y = -1.317.
    teacher = Linear(0.5, 0, 1)
    rule = Rule(order=2, clamp=10, delta_t=0.2)
    _, parts = twinflow_loss(Linear(0.5), **HALF, teacher_fn=teacher, rule=rule)
    told = [(x.item(), t.item(), target.item()) for x, t, target, *_ in teacher.calls]
    assert told == [pytest.approx((2.0, 0.5, 0.4)), pytest.approx((1.86, 0.4, 0.25))]
    assert parts["twinflow_base"].item() == pytest.approx(1.317**2)


def test_the_anchor_is_at_least_the_target_time():
    # t' = 0.45 lies after 0.5 - 0.2: t_1 = (0.45 + 0.5) / 2.
    teacher = Linear(0.5)
    teacher_path(lambda x, t, s: teacher(x, t, s, None), scalar(2), times(0.5), times(0.45), Rule(delta_t=0.2))
    assert [call[2].item() for call in teacher.calls] == pytest.approx([0.475, 0.45])


def test_the_correction_is_clamped():
    # As in order one, where the correction is 1.45: within ±1 the target is p + 1.
    _, parts = twinflow_loss(Linear(0.5), **HALF, teacher_fn=Linear(0.4, 1, 2), rule=Rule(order=1))
    assert parts["twinflow_base"].item() == pytest.approx(1.0)
    _, parts = twinflow_loss(Linear(0.5), **HALF, teacher_fn=Linear(0.4, 1, 2), rule=Rule(order=1, clamp=0.25))
    assert parts["twinflow_base"].item() == pytest.approx(0.0625)
    # And from above: p = 5 · 2 = 10, p - A - y = 10 - 2.45.
    _, parts = twinflow_loss(Linear(5.0), **HALF, teacher_fn=Linear(0.4, 1, 2), rule=Rule(order=1))
    assert parts["twinflow_base"].item() == pytest.approx(1.0)


def test_the_teachers_guidance_is_in_the_target():
    # The teacher predicts 0.6 more with the condition: y = 2 + 0.5 · 0.6 = 2.3, p = 1.
    teacher = Linear(0.5, by_condition=0.6)
    told = {"condition": "told", "unconditional": "none", "teacher_fn": teacher, "rule": Rule(order=1)}
    _, parts = twinflow_loss(Linear(0.5), **HALF, **told)
    assert parts["twinflow_realvel"].item() == pytest.approx(1.3**2)
    assert [(t.item(), target.item(), told) for _, t, target, told, _ in teacher.calls] == [
        (0.5, 0.5, "told"),
        (0.5, 0.5, "none"),
        (0.5, 0.25, "told"),
    ]
    for more in ({"unconditional": None}, {"rule": Rule(order=1, enhanced_ratio=0)}):
        _, parts = twinflow_loss(Linear(0.5), **HALF, **told | more)
        assert parts["twinflow_realvel"].item() == pytest.approx(1.0)


def test_the_fake_path():
    # Student F = 0.5 x + t + 3 t'. p = 1 + 0.5 + 0.75 = 2.25.
    # z' = 2: x_f = 2 - F(2, 1, 0) = 2 - 2 = 0. t_f = 0.01 + 0.98 · 0.5 = 0.5: x = 1; F(1, -0.5, -0.5) = 0.5 - 2 = -1.5;
    # L_adv = (-1.5 - 2)² = 12.25. F(2, -0.5, -0.5) = 1 - 2 = -1; L_rect = (-1 - 2.25)² = 10.5625.
    student = Linear(0.5, 1, 3)
    half = HALF | {"draws": Draws(times(0.5), scalar(2), times(0.5))}
    entered = []

    @contextmanager
    def paused():
        entered.append(len(student.calls))
        yield

    rule = Rule(order=1, adversarial=True, adversarial_weight=2, rectify_weight=0.5)
    loss, parts = twinflow_loss(student, **half, teacher_fn=Linear(0.4), rule=rule, paused=paused)
    assert parts["twinflow_adv"].item() == pytest.approx(12.25)
    assert parts["twinflow_rectify"].item() == pytest.approx(10.5625)
    main = parts["twinflow_base"] + parts["twinflow_realvel"]
    assert loss.item() == pytest.approx(main.item() + 2 * 12.25 + 0.5 * 10.5625)
    assert [grad for *_, grad in student.calls] == [True, False, False, True]
    assert entered == [3], "the second forward with gradients is outside of the main pass"
    zero = Rule(order=1, adversarial=True, adversarial_weight=0, rectify_weight=0)
    loss, _ = twinflow_loss(student, **half, teacher_fn=Linear(0.4), rule=zero)
    assert loss.item() == pytest.approx(main.item())


def test_target_times_lie_between_0_and_t():
    time = torch.tensor([0.0, 1e-9, 0.5, 1.0])
    assert earlier(time, torch.zeros(4)).tolist() == [0, 0, *(time[2:] - torch.finfo(torch.float32).eps).tolist()]
    assert earlier(time, torch.ones(4)).tolist() == [0, 0, 0, 0]
    assert earlier(time, torch.full((4,), 0.5)).tolist() == [0, 0, 0.25, 0.5]


def network():
    torch.manual_seed(3)
    weights = [torch.randn(2, 2, dtype=torch.float64), torch.randn(2, dtype=torch.float64)]
    return [weight.requires_grad_() for weight in weights]


def model_of(weights):
    def model(x, t, target, condition):
        return torch.tanh(x @ weights[0]) * weights[1] * (1 + t[:, None]) + x * target[:, None]

    return model


def stopped(student, teacher, batch, draws, rule, held):
    """The same loss with every detached part replaced by a constant, so that finite differences give the gradient."""
    clean, noise, time = batch
    target = earlier(time, draws.target)
    t = time[:, None]
    noisy = (1 - t) * clean + t * noise
    model, fixed, of_teacher = model_of(student), model_of(held), model_of(teacher)
    p, frozen = model(noisy, time, target, None), fixed(noisy, time, target, None).detach()
    y = noise - clean
    way = teacher_path(lambda x, a, b: of_teacher(x, a, b, None), noisy, time, target, rule)
    consistent = (frozen - (frozen - way - y).clamp(-rule.clamp, rule.clamp)).detach()
    loss = F.mse_loss(p, consistent) + F.mse_loss(p, y)
    ones = torch.ones_like(time)
    fake = (draws.fake_noise - fixed(draws.fake_noise, ones, 0 * ones, None)).detach()
    fake_time = (0.01 + 0.98 * draws.fake_time)[:, None]
    along = (1 - fake_time) * fake + fake_time * draws.fake_noise
    on_path = model(along, -fake_time[:, 0], -fake_time[:, 0], None)
    wanted = (frozen - (fixed(noisy, -time, -time, None) - frozen)).detach()
    adversarial = F.mse_loss(on_path, draws.fake_noise - fake)
    return loss + rule.adversarial_weight * adversarial + rule.rectify_weight * F.mse_loss(p, wanted)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_gradients_are_those_of_finite_differences_and_the_teacher_has_none(order):
    weights, teacher = network(), [weight.detach().clone().requires_grad_() * 0.9 for weight in network()]
    for weight in teacher:
        weight.retain_grad()
    source = torch.Generator().manual_seed(5)
    clean, noise = torch.randn(2, 3, 2, generator=source, dtype=torch.float64)
    batch = clean, noise, torch.rand(3, generator=source, dtype=torch.float64)
    rule = Rule(order=order, adversarial=True, adversarial_weight=0.7, rectify_weight=0.3)
    draws = Draws.of(clean, rule, source)
    loss, _ = twinflow_loss(model_of(weights), *batch, teacher_fn=model_of(teacher), rule=rule, draws=draws)
    held = [weight.detach().clone() for weight in weights]
    assert loss.item() == pytest.approx(stopped(weights, teacher, batch, draws, rule, held).item(), rel=1e-12)
    loss.backward()
    assert all(weight.grad is None for weight in teacher)
    for weight in weights:
        for place in range(weight.numel()):
            values = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    weight.view(-1)[place] += step
                    values.append(stopped(weights, teacher, batch, draws, rule, held).item())
                    weight.view(-1)[place] -= step
            difference = (values[0] - values[1]) / 2e-6
            assert weight.grad.view(-1)[place].item() == pytest.approx(difference, rel=1e-6, abs=1e-8)


def test_the_same_generator_gives_the_same_loss():
    clean, noise = torch.randn(2, 4, 2, dtype=torch.float64)
    batch = clean, noise, torch.rand(4, dtype=torch.float64)
    weights = network()

    def loss(seed):
        source = torch.Generator().manual_seed(seed)
        return twinflow_loss(model_of(weights), *batch, rule=Rule(adversarial=True), generator=source)[0].item()

    before = torch.get_rng_state()
    assert loss(1) == loss(1) != loss(2)
    assert torch.equal(torch.get_rng_state(), before), "no other generator was asked"


def test_teacher_and_student_draw_the_same_random_numbers():
    drawn = []

    def dropping(x, t, target, condition):
        drawn.append(torch.rand(3))
        return x

    torch.manual_seed(0)
    twinflow_loss(dropping, **HALF, unconditional="none", rule=Rule(order=2))
    assert len(drawn) == 5
    assert all(torch.equal(each, drawn[0]) for each in drawn)
    torch.manual_seed(0)
    torch.rand(3)
    after = torch.rand(1)
    torch.manual_seed(0)
    twinflow_loss(dropping, **HALF, rule=Rule(order=2))
    assert torch.equal(torch.rand(1), after), "the teacher's forwards leave the generator where the student's did"


def test_a_half_precision_model_has_a_loss_in_fp32():
    batch = torch.randn(2, 2, dtype=torch.bfloat16), torch.randn(2, 2, dtype=torch.bfloat16), torch.rand(2)
    loss, _ = twinflow_loss(lambda x, t, target, condition: x.bfloat16(), *batch)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("sampler", "targets"), [("few", [0, 0, 0, 0]), ("mul", [1, 0.75, 0.5, 0.25]), ("any", [0.75, 0.5, 0.25, 0])]
)
def test_samplers_pass_their_target_times_and_take_eulers_steps(sampler, targets):
    seen = []

    def velocity(x, t, target):
        seen.append((t[0].item(), target[0].item()))
        return 0.5 * x

    drawn = few_steps(velocity, scalar(2), 4, sampler)
    assert seen == [*zip([1, 0.75, 0.5, 0.25], targets, strict=True)]
    assert drawn.item() == pytest.approx(2 * (1 - 0.25 * 0.5) ** 4)  # from x̂ and ẑ, which is an Euler step


def test_a_point_moves_along_its_line():
    # x_t = 2 at 0.5 with velocity 2 lies between 1 and 3: at 0.25 it is 1.5.
    assert moved(scalar(2), scalar(2), times(0.5), times(0.25)).item() == pytest.approx(1.5)
