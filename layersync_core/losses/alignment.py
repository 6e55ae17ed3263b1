# Shapes: B batch, S tokens, D channels, T frames, P tokens per frame
"""The LayerSync loss: the mean cosine between student tokens and detached teacher tokens, as one autograd function.

Written by hand because autograd's own version keeps several activations alive and rounds every step to the model's
dtype. Here only two numbers per token are saved beside the two inputs, all sums are fp32, and both passes walk over the
tokens in pieces, so that an fp32 copy of a whole activation never exists. The exception is a gradient that is to be
differentiated again (``create_graph=True``).
"""

# Longer than others: the two passes of one function and their arithmetic are read together.

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from layersync_core.errors import ConfigError
from layersync_core.losses import second_order

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# 512 KiB of fp32 per thread: measured to be best, or near it, for D from 64 to 6144. Smaller pieces pay for calls;
# larger ones leave the cache and make the allocator return pages to the system between two pieces.
_CPU_PIECE = 1 << 17
# Elsewhere calls cost more and caches are larger: 16 MiB of fp32, and never more than eight pieces.
_DEVICE_PIECE = 1 << 22
_DEVICE_PIECES = 8


class Similarity(NamedTuple):
    """The mean cosine twice: to train on and to log.

    Args:
        weighted: Σ w_b·m·cos / Σ m, scalar, differentiable with respect to the student only.
        raw: Σ m·cos / Σ m, scalar, detached.
    """

    weighted: Tensor
    raw: Tensor


def alignment_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return minus the mean cosine between student and teacher over all real tokens of the batch.

    This is the unweighted loss of LayerSync (arXiv 2510.12581). The teacher is detached: no gradient reaches it. Zero
    vectors (fp32: shorter than 3e-16) give similarity 0 and gradient 0. In bf16 and fp32 the squared length of a token
    must fit fp32: one longer than 1.8e19 gives NaN, as an infinite one does, rather than a plausible number; rescaling
    every token first would cost as much as the loss itself. fp16 values cannot get that large, and fp64 has its own
    range.

    Args:
        student: hidden states of the student block, (B, S, D) or (B, T, P, D), fp16, bf16, fp32 or fp64, any strides.
        teacher: hidden states of the teacher block, of the same shape; the dtype may differ.
        mask: real tokens, (B, S) or (B, T, P), bool or 0/1. Padding may hold anything, NaN too: it counts neither in
            the value nor in the gradient. A mask without any real token gives 0.

    Returns:
        Scalar in [-1, 1] on the student's device, fp32, or fp64 where either input is.

    Raises:
        ConfigError: shapes differ or are not 3-D or 4-D (nothing is broadcast), or a dtype is not floating point.

    Examples:
        >>> import torch
        >>> from layersync_core import alignment_loss
        >>> student = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]], requires_grad=True)  # (1, 2, 2)
        >>> alignment_loss(student, torch.tensor([[[3.0, 0.0], [1.0, 0.0]]])).item()
        -0.5
    """
    return -similarity(student, teacher, mask).weighted


def similarity(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, sample_weight: Tensor | None = None
) -> Similarity:
    """Return the mean cosine of `alignment_loss`, once weighted by sample and once raw.

    Args:
        student: (B, S, D) or (B, T, P, D), as for `alignment_loss`.
        teacher: of the student's shape; detached.
        mask: (B, S) or (B, T, P), bool or 0/1.
        sample_weight: (B,), weight of each sample in `weighted`; None means ones. No gradient flows to it.

    Returns:
        Scalars as for `alignment_loss`, without the minus sign.

    Raises:
        ConfigError: as for `alignment_loss`, or when `sample_weight` is not (B,).
    """
    _check_states(student, teacher)
    device = student.device
    real_BS = _real_tokens(student, mask)
    if sample_weight is not None:
        if sample_weight.shape != student.shape[:1]:
            raise ConfigError(
                f"sample_weight needs one weight per sample, {tuple(student.shape[:1])}, "
                f"got {tuple(sample_weight.shape)} for a student of {tuple(student.shape)}"
            )
        sample_weight = sample_weight.detach().to(device)
    # Detached here, not only by returning no gradient: otherwise the engine still runs the teacher's backward, with
    # zeros. Trainers split blocks over devices; the teacher carries no gradient, so it is the one to move.
    weighted, raw = _TokenCosine.apply(  # type: ignore[no-untyped-call]
        student, teacher.detach().to(device), real_BS, sample_weight
    )
    return Similarity(weighted, raw)


@torch.no_grad()
def centered_similarity(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean cosine after subtracting from each of the two its mean token, for logging.

    The raw cosine saturates early because all tokens share a large common part; this one does not.

    Args:
        student: (B, S, D) or (B, T, P, D), as for `alignment_loss`.
        teacher: of the student's shape.
        mask: (B, S) or (B, T, P), bool or 0/1; the mean token is that of the real tokens of the whole batch.

    Returns:
        Detached scalar in [-1, 1], on the student's device, fp32, or fp64 where either input is.

    Raises:
        ConfigError: as for `alignment_loss`.
    """
    _check_states(student, teacher)
    student, teacher = student.detach(), teacher.detach().to(student.device)
    real_BS = _real_tokens(student, mask)
    dtype = _accumulator(student, teacher)
    with _full_precision(student):
        student_mean_D, teacher_mean_D = (_mean_token(states, real_BS, dtype) for states in (student, teacher))

        def centered_products(student: Tensor, teacher: Tensor, *out: Tensor) -> None:
            _products(student - student_mean_D, teacher - teacher_mean_D, *out)

        cosine_BS, _, _ = _cosine(centered_products, student, teacher, real_BS)
        return cosine_BS.sum() / _count(student, real_BS, cosine_BS.dtype)


class _TokenCosine(torch.autograd.Function):
    """Mean cosine over tokens, with a gradient to the student only."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, real_BS: Tensor | None, sample_weight_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        with _full_precision(student):
            products = _products if _is_eager_cpu(student) else _products_on_device
            cosine_BS, student_inverse_BS, teacher_inverse_BS = _cosine(products, student, teacher, real_BS)
            count = _count(student, real_BS, cosine_BS.dtype)
            raw = cosine_BS.sum() / count
            if sample_weight_B is None:
                weighted, share = raw.clone(), 1 / count
            else:
                weight_BS = sample_weight_B.to(cosine_BS.dtype).view(-1, *[1] * (cosine_BS.dim() - 1))
                weighted, share = (cosine_BS * weight_BS).sum() / count, weight_BS / count
            ctx.mark_non_differentiable(raw)
            if ctx.needs_input_grad[0]:
                # d cos / d s = t / (|s| |t|) - cos · s / |s|²
                toward_teacher_BS = student_inverse_BS * teacher_inverse_BS * share
                toward_student_BS = cosine_BS * student_inverse_BS.square() * -share
                # The inputs go through save_for_backward for its version check, which catches later in-place changes.
                ctx.save_for_backward(student, teacher, toward_teacher_BS, toward_student_BS, real_BS)
                ctx.share = share
        return weighted, raw

    @staticmethod
    def backward(ctx: Any, grad_weighted: Tensor, _grad_raw: Tensor) -> tuple[Tensor, None, None, None]:
        student, teacher, toward_teacher_BS, toward_student_BS, real_BS = ctx.saved_tensors
        with _full_precision(student):
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
                scale_BS, dtype = grad_weighted * ctx.share, toward_teacher_BS.dtype
                return second_order.gradient(student, teacher, real_BS, scale_BS, dtype), None, None, None
            gradient = torch.empty_like(student)
            # Scaled per token and before rounding, so that a loss scale keeps fp16 gradients out of the denormals.
            scales = (toward_teacher_BS * grad_weighted, toward_student_BS * grad_weighted)
            tensors = [student, teacher, gradient, *(scale_BS.unsqueeze(-1) for scale_BS in scales)]
            if real_BS is not None:
                tensors.append(~real_BS.unsqueeze(-1))
            write_gradient = _write_gradient if _is_eager_cpu(student) else _write_gradient_on_device
            for piece in _pieces(_piece_size(student), *tensors):
                write_gradient(*piece)
        return gradient, None, None, None


def _products(student: Tensor, teacher: Tensor, dot: Tensor, student_length: Tensor, teacher_length: Tensor) -> None:
    """Write dot product and both lengths of each token of one piece, from copies that stay in the processor's cache."""
    wide_student, wide_teacher = student.to(dot.dtype), teacher.to(dot.dtype)
    is_copy = wide_teacher is not teacher
    if not is_copy:  # first, since it fetches both inputs from memory side by side: a sixth faster
        torch.sum(torch.mul(wide_student, wide_teacher), dim=-1, out=dot)
    torch.linalg.vector_norm(wide_student, dim=-1, out=student_length)
    torch.linalg.vector_norm(wide_teacher, dim=-1, out=teacher_length)
    if is_copy:  # last, since it overwrites the copy instead of filling more of the cache
        torch.sum(wide_teacher.mul_(wide_student), dim=-1, out=dot)


def _products_on_device(
    student: Tensor, teacher: Tensor, dot: Tensor, student_length: Tensor, teacher_length: Tensor
) -> None:
    """Write the same three numbers with few kernels, casting inside them; torch.compile fuses these as well."""
    # An operand of the wide dtype makes the product wide: a plain one would be rounded to the inputs' dtype.
    torch.sum(torch.addcmul(dot.new_zeros(1), student, teacher), dim=-1, out=dot)
    torch.linalg.vector_norm(student, dim=-1, dtype=dot.dtype, out=student_length)
    torch.linalg.vector_norm(teacher, dim=-1, dtype=dot.dtype, out=teacher_length)


def _cosine(
    products: Callable[..., None], student: Tensor, teacher: Tensor, real_BS: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cosine and both inverse lengths of each token, all 0 at padding."""
    shape, dtype = student.shape[:-1], _accumulator(student, teacher)
    dot_and_lengths_3BS = student.new_empty((3, *shape), dtype=dtype)
    dot_BS = dot_and_lengths_3BS[0]
    for piece in _pieces(_piece_size(student), student, teacher, *dot_and_lengths_3BS):
        products(*piece)
    student_inverse_BS, teacher_inverse_BS = _inverse_length(dot_and_lengths_3BS[1:], real_BS)
    cosine_BS = (dot_BS * student_inverse_BS * teacher_inverse_BS).clamp(-1, 1)
    if real_BS is not None:
        cosine_BS = cosine_BS.masked_fill(~real_BS, 0)
    return cosine_BS, student_inverse_BS, teacher_inverse_BS


def _inverse_length(length_2BS: Tensor, real_BS: Tensor | None) -> Tensor:
    limits = torch.finfo(length_2BS.dtype)
    # Below this the squares have lost digits to underflow: no direction is left in them.
    inverse_2BS = length_2BS.reciprocal().masked_fill_(length_2BS < math.sqrt(limits.tiny / limits.eps), 0)
    # An overflow must show as NaN: 1 / inf would pass for a zero vector.
    inverse_2BS.masked_fill_(length_2BS == torch.inf, torch.nan)
    return inverse_2BS if real_BS is None else inverse_2BS.masked_fill_(~real_BS, 0)


def _write_gradient(
    student: Tensor,
    teacher: Tensor,
    gradient: Tensor,
    toward_teacher: Tensor,
    toward_student: Tensor,
    padding: Tensor | None = None,
) -> None:
    """Write one piece of the gradient from cached copies, rounded once, at the end."""
    dtype = toward_teacher.dtype
    wide_teacher = teacher.to(dtype)
    scratch = gradient if gradient.dtype == dtype else None if wide_teacher is teacher else wide_teacher
    total = torch.mul(wide_teacher, toward_teacher, out=scratch).addcmul_(student.to(dtype), toward_student)
    if total is not gradient:
        gradient.copy_(total)
    _clear(gradient, padding)


def _write_gradient_on_device(
    student: Tensor,
    teacher: Tensor,
    gradient: Tensor,
    toward_teacher: Tensor,
    toward_student: Tensor,
    padding: Tensor | None = None,
) -> None:
    """Write the same piece with two kernels, casting inside them."""
    total = torch.mul(teacher, toward_teacher, out=gradient if gradient.dtype == toward_teacher.dtype else None)
    torch.addcmul(total, student, toward_student, out=gradient)
    _clear(gradient, padding)


def _clear(gradient: Tensor, padding: Tensor | None) -> None:
    if padding is not None:
        gradient.masked_fill_(padding, 0)  # not by the scales alone: 0 · NaN is NaN


def _mean_token(states: Tensor, real_BS: Tensor | None, dtype: torch.dtype) -> Tensor:
    total_D = states.new_zeros(states.shape[-1], dtype=dtype)
    tensors = [states] if real_BS is None else [states, ~real_BS.unsqueeze(-1)]
    for piece, *padding in _pieces(_piece_size(states), *tensors):
        kept = piece.masked_fill(padding[0], 0) if padding else piece
        total_D += kept.to(dtype).flatten(0, -2).sum(dim=0)
    return total_D / _count(states, real_BS, dtype)


def _count(states: Tensor, real_BS: Tensor | None, dtype: torch.dtype) -> int | Tensor:
    """Return the number of real tokens, at least 1; where it depends on a mask, as a scalar on the device."""
    if real_BS is None:
        return max(states.shape[:-1].numel(), 1)
    return real_BS.sum().clamp(min=1).to(dtype)


def _pieces(size: int | None, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same tokens of every tensor, as views of about `size` elements of the first one.

    Whole leading dimensions are split, never flattened together: a slice of a longer sequence stays a view.
    """
    first = tensors[0]
    if size is None or first.numel() <= size or first.dim() == 1:
        yield tensors
        return
    parts = min(first.shape[0], -(-first.numel() // size))
    for piece in zip(*(tensor.chunk(parts) for tensor in tensors), strict=True):
        if piece[0].shape[0] == 1:
            yield from _pieces(size, *(tensor[0] for tensor in piece))
        else:
            yield piece


def _piece_size(states: Tensor) -> int | None:
    if torch.compiler.is_compiling():
        return None  # the compiler fuses and tiles by itself, and would unroll our loop
    if states.device.type == "cpu":
        return _CPU_PIECE * torch.get_num_threads()
    return max(_DEVICE_PIECE, -(-states.numel() // _DEVICE_PIECES))


def _is_eager_cpu(states: Tensor) -> bool:
    return states.device.type == "cpu" and not torch.compiler.is_compiling()


def _accumulator(student: Tensor, teacher: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32


def _full_precision(states: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off: it would round the products to the very dtype that fp32 sums are there to avoid."""
    device_type = states.device.type
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _real_tokens(student: Tensor, mask: Tensor | None) -> Tensor | None:
    if mask is None:
        return None
    if mask.shape != student.shape[:-1]:
        raise ConfigError(
            f"mask needs one value per token, {tuple(student.shape[:-1])}, "
            f"got {tuple(mask.shape)} for a student of {tuple(student.shape)}"
        )
    mask = mask.detach().to(student.device)
    return mask if mask.dtype == torch.bool else mask != 0


def _check_states(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape or student.dim() not in (3, 4):
        raise ConfigError(
            "student and teacher need the same shape, (B, S, D) or (B, T, P, D), "
            f"got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    if student.dtype not in _FLOATS or teacher.dtype not in _FLOATS:
        raise ConfigError(
            f"student and teacher need a floating dtype of 16, 32 or 64 bits, got student {student.dtype} and teacher "
            f"{teacher.dtype}, of shapes {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
