# Shapes: B batch, S tokens, D channels, T frames, P tokens per frame
"""`alignment_loss` against an fp64 reference: values, gradients, masks, memory, and what it must refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from layersync_core.errors import ConfigError
from layersync_core.losses import alignment
from layersync_core.losses.alignment import alignment_loss, centered_similarity, similarity

SHAPES = [(1, 1, 8), (2, 33, 48), (1, 1500, 256), (3, 7, 1536), (2, 3, 50, 64), (2, 40, 5, 96)]


def states(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(shape, generator=generator)
    student = 0.7 * teacher + torch.randn(shape, generator=generator)
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def formula(student: Tensor, teacher: Tensor) -> Tensor:
    return -(F.normalize(student, dim=-1) * F.normalize(teacher, dim=-1)).sum(dim=-1).mean()


def value_and_gradient(loss: Callable[..., Tensor], student: Tensor, *others: Any) -> tuple[float, Tensor]:
    leaf = student.detach().clone().requires_grad_()
    value = loss(leaf, *others)
    value.backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == student.dtype
    return float(value.detach()), leaf.grad


def relative_error(gradient: Tensor, exact: Tensor) -> float:
    return float((gradient.double() - exact).norm() / exact.norm())


@pytest.fixture(params=["cpu", "device"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test through the CPU's functions and through the ones that other devices take."""
    if request.param == "device":
        monkeypatch.setattr(alignment, "_is_eager_cpu", lambda states: False)
        monkeypatch.setattr(alignment, "_CPU_PIECE", 5000)
    return str(request.param)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_equals_the_fp64_reference(shape: tuple[int, ...]) -> None:
    student, teacher = states(*shape)
    exact_value, exact_gradient = value_and_gradient(formula, student.double(), teacher.double())
    value, gradient = value_and_gradient(alignment_loss, student, teacher)
    assert abs(value - exact_value) < 1e-6
    assert relative_error(gradient, exact_gradient) < 1e-5


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_is_better_than_the_formula_in_bf16(shape: tuple[int, ...]) -> None:
    student, teacher = states(*shape, dtype=torch.bfloat16)
    exact_value, exact_gradient = value_and_gradient(formula, student.double(), teacher.double())
    value, gradient = value_and_gradient(alignment_loss, student, teacher)
    _, formula_gradient = value_and_gradient(formula, student, teacher)
    assert abs(value - exact_value) < 1e-4
    assert relative_error(gradient, exact_gradient) <= relative_error(formula_gradient, exact_gradient)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "float16"), ("float64", "bfloat16")])
def test_mixed_dtypes(dtypes: tuple[str, str]) -> None:
    student, teacher = states(2, 9, 32)
    student, teacher = student.to(getattr(torch, dtypes[0])), teacher.to(getattr(torch, dtypes[1]))
    exact_value, exact_gradient = value_and_gradient(formula, student.double(), teacher.double())
    value, gradient = value_and_gradient(alignment_loss, student, teacher)
    assert value == pytest.approx(exact_value, abs=1e-6)
    assert relative_error(gradient, exact_gradient) < (4e-3 if dtypes[0] == "bfloat16" else 1e-6)
    expected = torch.float64 if "float64" in dtypes else torch.float32
    assert alignment_loss(student, teacher).dtype == expected


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 3, 4, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(shape: tuple[int, ...], masked: bool) -> None:
    student, teacher = states(*shape, dtype=torch.float64)
    mask = torch.arange(student[..., 0].numel()).view(shape[:-1]) % 3 != 0 if masked else None
    weight = torch.tensor([0.5, 2.0])
    assert torch.autograd.gradcheck(lambda x: alignment_loss(x, teacher, mask), student)
    assert torch.autograd.gradcheck(lambda x: similarity(x, teacher, mask, weight).weighted, student)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.bfloat16])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(3, 20, 16), (3, 4, 5, 16)])
def test_padding_counts_neither_in_value_nor_in_gradient(
    shape: tuple[int, ...], poison: float, mask_dtype: torch.dtype
) -> None:
    student, teacher = states(*shape)
    real = torch.rand(shape[:-1], generator=torch.Generator().manual_seed(1)) > 0.4
    exact_value, exact_gradient = value_and_gradient(formula, student.double()[real], teacher.double()[real])
    student, teacher = (x.detach().masked_fill(~real.unsqueeze(-1), poison) for x in (student, teacher))
    value, gradient = value_and_gradient(alignment_loss, student, teacher, real.to(mask_dtype))
    assert value == pytest.approx(exact_value, abs=1e-6)
    assert relative_error(gradient[real], exact_gradient) < 1e-5
    assert gradient[~real].eq(0).all()


@pytest.mark.usefixtures("route")
def test_a_mask_without_real_tokens_gives_zero() -> None:
    student, teacher = states(2, 4, 8)
    value, gradient = value_and_gradient(alignment_loss, student, teacher, torch.zeros(2, 4, dtype=torch.bool))
    assert value == 0
    assert gradient.eq(0).all()


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("which", ["student", "teacher", "both"])
def test_zero_vectors_give_zero(dtype: torch.dtype, which: str) -> None:
    student, teacher = (x.detach().clone() for x in states(1, 3, 8, dtype=dtype))
    for name, tensor in (("student", student), ("teacher", teacher)):
        if which in (name, "both"):
            tensor[:, 0] = 0
    value, gradient = value_and_gradient(alignment_loss, student, teacher)
    rest, _ = value_and_gradient(alignment_loss, student[:, 1:], teacher[:, 1:])
    assert value == pytest.approx(rest * 2 / 3, abs=1e-6)
    assert gradient[:, 0].eq(0).all()
    assert gradient.isfinite().all()


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float16, 6e-8),
        (torch.float16, 6e4),
        (torch.bfloat16, 1e-40),
        (torch.bfloat16, 1e-12),
        (torch.bfloat16, 1e17),
        (torch.float32, 1e-42),
        (torch.float32, 1e17),
    ],
)
def test_extreme_magnitudes_stay_finite(dtype: torch.dtype, scale: float) -> None:
    student = torch.full((1, 4, 64), scale, dtype=dtype)
    value, gradient = value_and_gradient(alignment_loss, student, student.clone())
    assert value == pytest.approx(0 if scale < 1e-30 else -1, abs=1e-5)
    assert gradient.isfinite().all()


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("bad", [1e25, float("inf"), float("nan")])
def test_an_overflow_at_a_real_token_is_visible(bad: float) -> None:
    student, teacher = (x.detach().clone() for x in states(1, 3, 8))
    student[0, 1, 2] = bad
    assert alignment_loss(student, teacher).isnan()


@pytest.mark.usefixtures("route")
def test_slices_of_a_joined_sequence() -> None:
    joined, other = states(2, 60, 32)
    exact_value, exact_gradient = value_and_gradient(formula, joined[:, -40:], other[:, -40:])
    value, gradient = value_and_gradient(lambda x, t: alignment_loss(x[:, -40:], t[:, -40:]), joined, other)
    assert value == pytest.approx(exact_value, abs=1e-6)
    assert gradient[:, :20].eq(0).all()
    torch.testing.assert_close(gradient[:, -40:], exact_gradient, rtol=1e-4, atol=1e-7)
    transposed, other_transposed = (x.detach().transpose(1, 2) for x in (joined, other))
    assert value_and_gradient(alignment_loss, transposed, other_transposed)[0] == pytest.approx(
        float(formula(transposed, other_transposed)), abs=1e-6
    )


def test_pieces_are_views_that_cover_all_tokens_in_order() -> None:
    tokens = torch.arange(3 * 4 * 50 * 2).view(3, 4, 50, 2)[:, 1:, 10:]
    for size in (1, 7, 30, 100, 1000, None):
        pieces = [piece for piece, _ in alignment._pieces(size, tokens, tokens[..., 0])]
        assert torch.equal(torch.cat([piece.reshape(-1, 2) for piece in pieces]), tokens.reshape(-1, 2))
        assert all(piece.untyped_storage().data_ptr() == tokens.untyped_storage().data_ptr() for piece in pieces)
        assert size is None or all(piece.numel() <= 2 * size for piece in pieces)


@pytest.mark.parametrize("scale", [0.7, -0.7])
def test_rounding_gives_no_cosine_beyond_one(scale: float) -> None:
    _, teacher = states(60, 1, 1, 8)
    cosines = [float(similarity(scale * token, token).raw) for token in teacher]
    assert max(map(abs, cosines)) == 1
    assert min(map(abs, cosines)) > 1 - 1e-6


def test_no_gradient_reaches_the_teacher() -> None:
    student, _ = states(2, 5, 8)
    source = torch.randn(2, 5, 8, requires_grad=True)
    reached: list[Any] = []
    teacher = source * 2
    teacher.register_hook(reached.append)
    alignment_loss(student, teacher).backward()
    assert source.grad is None
    assert not reached
    assert student.grad is not None


def test_student_and_teacher_may_be_one_tensor() -> None:
    student, _ = states(2, 30, 64)
    loss = alignment_loss(student, student)
    loss.backward()
    assert loss.item() == pytest.approx(-1, abs=1e-6)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-8


def test_sample_weights() -> None:
    student, teacher = states(3, 6, 8)
    mask = torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0], [0] + [1] * 5])
    weight = torch.tensor([1.0, 0.0, 2.5])
    cosine = F.cosine_similarity(student.double(), teacher.double(), dim=-1)
    exact = (cosine * mask * weight[:, None]).sum() / mask.sum()
    result = similarity(student, teacher, mask, weight)
    assert result.weighted.item() == pytest.approx(exact.item(), abs=1e-6)
    assert result.raw.item() == pytest.approx(((cosine * mask).sum() / mask.sum()).item(), abs=1e-6)
    assert not result.raw.requires_grad
    (expected,) = torch.autograd.grad(exact, student)
    (gradient,) = torch.autograd.grad(result.weighted, student)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)
    assert gradient[1].eq(0).all()
    plain = similarity(student, teacher, mask)
    assert plain.weighted.item() == plain.raw.item()


def test_the_gradient_follows_a_loss_scale() -> None:
    student, teacher = states(2, 700, 32, dtype=torch.float16)
    _, plain = value_and_gradient(formula, student.double(), teacher.double())
    _, scaled = value_and_gradient(lambda s, t: alignment_loss(s, t) * 65536, student, teacher)
    assert relative_error(scaled.double() / 65536, plain) < 1e-3


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((2, 3, 4), (2, 5, 4)),
        ((2, 3, 4), (1, 3, 4)),
        ((2, 3, 4), (2, 3, 1)),
        ((6, 4), (6, 4)),
        ((1, 2, 3, 4), (2, 3, 4)),
        ((1, 1, 2, 3, 4), (1, 1, 2, 3, 4)),
    ],
)
def test_shapes_are_never_broadcast(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    for function in (alignment_loss, similarity, centered_similarity):
        with pytest.raises(ConfigError, match=re.escape(f"student {student} and teacher {teacher}")):
            function(torch.ones(student), torch.ones(teacher))


def test_wrong_masks_weights_and_dtypes_are_refused() -> None:
    x = torch.ones(2, 3, 4)
    for mask in (torch.ones(2, 1), torch.ones(3), torch.ones(2, 3, 4)):
        with pytest.raises(ConfigError, match=re.escape(f"(2, 3), got {tuple(mask.shape)} for a student of (2, 3, 4)")):
            alignment_loss(x, x, mask)
    with pytest.raises(ConfigError, match=re.escape("(2, 3, 4), got (2, 12) for a student of (2, 3, 4, 5)")):
        alignment_loss(torch.ones(2, 3, 4, 5), torch.ones(2, 3, 4, 5), torch.ones(2, 12))
    for weight in (torch.ones(1), torch.ones(()), torch.ones(2, 3)):
        with pytest.raises(ConfigError, match="sample_weight"):
            similarity(x, x, None, weight)
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(ConfigError, match=re.escape(str(dtype))):
            alignment_loss(x, x.to(dtype))
        with pytest.raises(ConfigError, match=re.escape(str(dtype))):
            alignment_loss(x.to(dtype), x)


token = st.lists(st.floats(-10, 10, width=16), min_size=3, max_size=3)
pairs = st.lists(st.tuples(token, token), min_size=1, max_size=6)


def to_states(tokens: list[tuple[list[float], list[float]]]) -> tuple[Tensor, Tensor]:
    student, teacher = torch.tensor(tokens).unbind(1)
    return student[None], teacher[None]


@settings(deadline=None, max_examples=60)
@given(pairs)
def test_property_bounded_and_finite(tokens: list[tuple[list[float], list[float]]]) -> None:
    student, teacher = to_states(tokens)
    value, gradient = value_and_gradient(alignment_loss, student, teacher)
    assert -1 <= value <= 1
    assert gradient.isfinite().all()


@settings(deadline=None, max_examples=60)
@given(pairs, st.sampled_from([2.0**k for k in range(-20, 21)]), st.sampled_from([0.5, 1.0, 1024.0]))
def test_property_scale_of_a_token_does_not_count(tokens: Any, scale: float, teacher_scale: float) -> None:
    student, teacher = to_states(tokens)
    scaled = alignment_loss(student * scale, teacher * teacher_scale)
    assert float(scaled) == pytest.approx(float(alignment_loss(student, teacher)), abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(pairs, st.randoms(use_true_random=False))
def test_property_order_of_tokens_does_not_count(tokens: Any, random: Any) -> None:
    shuffled = list(tokens)
    random.shuffle(shuffled)
    assert float(alignment_loss(*to_states(shuffled))) == pytest.approx(
        float(alignment_loss(*to_states(tokens))), abs=1e-6
    )


@pytest.mark.usefixtures("route")
def test_autocast_changes_nothing() -> None:
    student, teacher = states(2, 40, 64)
    plain_value, plain_gradient = value_and_gradient(alignment_loss, student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradient = value_and_gradient(alignment_loss, student, teacher)
        assert alignment_loss(student.bfloat16(), teacher).dtype == torch.float32
    assert value == plain_value
    assert torch.equal(gradient, plain_gradient)


@pytest.mark.parametrize("loss", [alignment_loss, centered_similarity])
def test_autocast_is_off_where_products_are_summed(
    loss: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the operators there, the CPU's autocast rounds none; others' do.
    seen: list[bool] = []
    products = alignment._products

    def watched(*tensors: Tensor) -> None:
        seen.append(torch.is_autocast_enabled("cpu"))
        products(*tensors)

    monkeypatch.setattr(alignment, "_products", watched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss(*states(2, 40, 64))
        assert torch.is_autocast_enabled("cpu")
    assert seen == [False]


class CountSyncs(TorchDispatchMode):
    """Count the operators that would make the host wait for a device."""

    syncs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.syncs += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_reads_a_value_on_the_host(dtype: torch.dtype) -> None:
    student, teacher = states(2, 300, 64, dtype=dtype)
    mask, weight = torch.rand(2, 300) > 0.5, torch.rand(2)
    with CountSyncs() as counter:  # type: ignore[no-untyped-call]
        result = similarity(student, teacher, mask, weight)
        centered_similarity(student, teacher, mask)
        (result.weighted * 0.2).backward()
        alignment_loss(student, teacher).backward()
    assert counter.syncs == 0


@pytest.mark.parametrize("masked", [False, True])
def test_saves_almost_nothing_beyond_the_inputs(masked: bool) -> None:
    student, teacher = states(2, 100, 1152)
    mask = torch.ones(2, 100, dtype=torch.bool) if masked else None
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = alignment_loss(student, teacher, mask)
    inputs = [saved.pop(tensor.untyped_storage().data_ptr()) for tensor in (student, teacher)]
    assert sum(saved.values()) <= 0.01 * inputs[0]
    assert loss.requires_grad


def test_without_gradient_nothing_is_saved() -> None:
    student, teacher = states(2, 10, 16)
    with torch.no_grad():
        assert not alignment_loss(student, teacher).requires_grad
    assert not alignment_loss(student.detach(), teacher).requires_grad


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_in_place_change_before_backward_is_caught(which: str) -> None:
    leaf, teacher = states(2, 10, 16)
    student = leaf * 1
    loss = alignment_loss(student, teacher)
    with torch.no_grad():
        (student if which == "student" else teacher).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("shape", [(2, 40, 16), (2, 4, 10, 16)])
@pytest.mark.parametrize("masked", [False, True])
def test_centered_similarity(shape: tuple[int, ...], masked: bool) -> None:
    student, teacher = states(*shape, dtype=torch.bfloat16)
    student, teacher = student + 3, teacher + 3
    real = torch.ones(shape[:-1], dtype=torch.bool)
    if masked:
        real[1, 2:] = False
        student, teacher = (x.detach().masked_fill(~real.unsqueeze(-1), float("nan")) for x in (student, teacher))
    a, b = (x.detach()[real].double() for x in (student, teacher))
    exact = F.cosine_similarity(a - a.mean(0), b - b.mean(0), dim=-1).mean()
    result = centered_similarity(student, teacher, real if masked else None)
    assert result.item() == pytest.approx(exact.item(), abs=1e-4)
    assert not result.requires_grad


# Dynamo itself instantiates the function, and warns that one should not.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.skipif(torch.__version__ < "2.5", reason="this Dynamo breaks the graph at is_autocast_available")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("masked", [False, True])
def test_compiles_into_one_graph(backend: str, masked: bool) -> None:
    student, teacher = states(2, 20, 16)
    mask = torch.arange(40).view(2, 20) % 3 != 0 if masked else None
    value, gradient = value_and_gradient(alignment_loss, student, teacher, mask)
    torch.compiler.reset()
    compiled = torch.compile(alignment_loss, fullgraph=True, backend=backend)
    compiled_value, compiled_gradient = value_and_gradient(compiled, student, teacher, mask)
    assert compiled_value == pytest.approx(value, abs=1e-6)
    torch.testing.assert_close(compiled_gradient, gradient, rtol=1e-5, atol=1e-8)
