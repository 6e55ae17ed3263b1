"""How a program divides its loss under gradient accumulation, read from the loss itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor

from layersync_core import _compat
from layersync_core.errors import CaptureError

# Operations between a loss and its reduction that change neither value nor gradient.
_PASS = ("ToCopyBackward0", "CloneBackward0", "AliasBackward0", "SqueezeBackward0", "ViewBackward0", "CopyBackwards")
_SUM = ("AddBackward", "SubBackward", "RsubBackward")
_LIMIT = 32
_NEAR = 1e-6


@dataclass(frozen=True)
class Factor:
    """What a loss was multiplied by after its reduction.

    Attributes:
        value: The product of the constants.
        certain: There are only constants between the loss and its reduction.
        summed: Elements that the reduction summed; 1 where it is a mean, or where several losses are added.
    """

    value: float
    certain: bool
    summed: int = field(default=1, compare=False)

    @property
    def size(self) -> float:
        """The factor without its sign; where a sum was divided by the number of its elements, that of the mean."""
        mean = abs(self.value) * self.summed
        return mean if self.summed > 1 and (abs(mean - 1) < _NEAR or _is_share(mean)) else abs(self.value)


def read_factor(loss: Tensor) -> Factor:
    """Return the factor between a loss and its reduction.

    A sum of several losses has the factor that all of them share. Constants on an accelerator are not read, since that
    would make the host wait for it.

    Args:
        loss: Scalar with a graph.
    """
    return _read(loss.grad_fn, _LIMIT)


def _read(node: Any, limit: int) -> Factor:
    value = 1.0
    for _ in range(limit):
        name = node.name()
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        if name == "NegBackward0":
            value = -value
        elif name in ("MulBackward0", "DivBackward0") and len(parents) == 1:
            constant = _constant(_compat.saved(node, "other") if name == "DivBackward0" else _of_product(node))
            if constant is None or (constant == 0 and name == "DivBackward0"):
                return Factor(value, False)
            value = value / constant if name == "DivBackward0" else value * constant
        elif name.startswith(_SUM) and len(parents) == 1:
            value *= _share_of_sum(name, node)
        elif name == "AddBackward0" and len(parents) == 2:
            parts = {_read(parent, limit - 1) for parent in parents}
            (shared,) = parts if len(parts) == 1 else (Factor(1.0, False),)
            return Factor(value * shared.value, shared.certain)
        elif not name.startswith(_PASS) or len(parents) != 1:
            certain = name.startswith(("Mean", "Sum", "MseLoss", "HuberLoss", "SmoothL1", "L1Loss"))
            summed = prod(_compat.saved(node, "self_sym_sizes")) if name in ("SumBackward0", "SumBackward1") else 1
            return Factor(value, certain, summed)
        node = parents[0]
    return Factor(value, False)


def _share_of_sum(name: str, node: Any) -> float:
    """Return the factor of a sum or difference of which only one side has a graph."""
    first, alpha = node.next_functions[0][0] is not None, float(_compat.saved(node, "alpha"))
    if name.startswith("Rsub"):  # other - alpha * self
        return -alpha if first else 1.0
    return 1.0 if first else -alpha if name.startswith("Sub") else alpha


def _of_product(node: Any) -> Any:
    # The node saves only the constant if just the other side has a gradient.
    first = _compat.saved(node, "self")
    return _compat.saved(node, "other") if first is None else first


def _constant(tensor: Any) -> float | None:
    # A Python number is on the CPU wherever the loss is.
    if not isinstance(tensor, Tensor) or tensor.numel() != 1 or tensor.device.type != "cpu" or tensor.requires_grad:
        return None
    return float(tensor)


def _is_share(value: float) -> bool:
    return value > 0 and round(1 / value) > 1 and abs(value * round(1 / value) - 1) < _NEAR


class Accumulation:
    """The share that one loss has in an optimiser step: shown by the first step, and the same from then on.

    Args:
        steps: Losses per optimiser step, if the user gives the number; else None.

    Attributes:
        settled: A step has shown it. A step whose losses are all multiplied by 0 shows nothing.
    """

    def __init__(self, steps: int | None) -> None:
        self.settled = False
        self._steps = steps
        self._seen: list[tuple[Factor, int]] = []  # in the first step
        self._first: tuple[Factor, int, str] | None = None
        self._share: float | None = None

    def share(self, loss: Tensor, divides: int | None, library: str = "") -> float:
        """Return what a term must be multiplied by to be scaled like its loss.

        Args:
            loss: The loss as the program passes it.
            divides: What the library that runs backward divides it by afterwards; None where no library runs it.
            library: Name of that library.
        """
        factor = read_factor(loss)
        sign = float((factor.value > 0) - (factor.value < 0))
        if divides is not None and not _is_share(factor.size):
            # Where a library runs backward, this is a weight of the loss, such as that of its timestep.
            factor = Factor(sign, factor.certain and factor.size == 1)
        if self._steps is not None:
            # The user decides how much a loss counts, but not whether it counts, nor its sign.
            return (divides or 1) / self._steps * sign
        if self._share is None:
            self._seen.append((factor, divides or 1))
            self._first = self._first or (factor, divides or 1, library)
        if (divides or 1) > 1:
            return sign  # the library divides
        # A factor that differs from the first step's is a weight of the loss.
        return sign * (factor.size if self._share is None else self._share)

    def describe(self) -> str:
        """Return what was known at the first loss, as a clause."""
        if self._steps is not None or self._first is None:
            return f"gradient accumulation {self._steps} (as given)"
        factor, divides, library = self._first
        if divides > 1:
            return f"gradient accumulation {divides} (divided by {library or 'the library that runs backward'})"
        if factor.size in (0, 1):
            return "loss not divided"
        return f"gradient accumulation read from the loss: 1/{1 / factor.size:g}"

    def begin_again(self) -> None:
        """Forget a group of losses whose step was not taken."""
        self._seen.clear()

    def verify(self, losses: int, again: int = 0) -> str:
        """Compare what was read with the losses of an optimiser step; return a note for the user, if there is one.

        This is done for the first step, and for later ones until the share is settled.

        Args:
            losses: Losses that got a term before the step.
            again: Further losses of the same forwards, in separate backwards, which got none.

        Raises:
            CaptureError: The term may have been scaled differently from the loss.
        """
        if self._steps is not None:
            self.settled = True
            if self._steps in (1, losses):  # 1: every loss counts fully
                return ""
            return (
                f"warning: layersync_accumulation_steps is {self._steps}, but the first optimiser step had {losses} "
                f"loss{'es' * (losses != 1)}"
            )
        seen, self._seen = self._seen, []
        self.settled = any(factor.value for factor, _ in seen) or any(divides > 1 for _, divides in seen)
        if not self.settled:
            return ""
        self._share = 1.0
        if any(divides > 1 for _, divides in seen):
            return ""  # the library divides, even in an epoch that ends before a step is full
        # The sign is negative where an optimiser maximises; a loss times 0 is a batch that is left out.
        factors = [factor for factor, _ in seen if factor.value]
        sizes = {factor.size for factor in factors}
        if losses == 1 and sizes <= {1.0}:
            return ""
        ask = "give --layersync_accumulation_steps N, the number of losses whose gradients make up one optimiser step"
        if all(abs(size - 1) < _NEAR for size in sizes):
            unread = not all(factor.certain for factor in factors)
            # A sum over as many elements as there are losses may be divided by the number of either.
            either = any(abs(abs(factor.value) * losses - 1) < _NEAR for factor in factors)
            if not unread and not either:
                return f"the gradients of {losses} losses are summed without division, and so are those of their terms"
            if again:
                raise CaptureError(_shared(losses, again, sizes))
            raise CaptureError(
                f"{losses} losses came before the first optimiser step, and whether they are divided by {losses} "
                f"cannot be read from them; {ask}, or 1 if they are summed without division"
            )
        if len(sizes) == 1 and losses > 1 and abs(min(sizes) * losses - 1) < _NEAR:
            self._share = min(sizes)
            return ""
        if again:
            raise CaptureError(_shared(losses, again, sizes))
        shown = ", ".join(f"{size:g}" for size in sorted(sizes))
        raise CaptureError(
            f"the loss is multiplied by {shown}, but {losses} loss{'es' * (losses != 1)} came before the first "
            f"optimiser step, so it is unclear whether that is gradient accumulation; {ask}"
        )


def _shared(losses: int, again: int, sizes: set[float]) -> str:
    shown = ", ".join(f"{size:g}" for size in sorted(sizes))
    return (
        f"{losses + again} losses came before the first optimiser step, {again} of them a further backward through a "
        f"forward that already had its term, and the others are multiplied by {shown}, so the share of a step that a "
        "forward has is unclear; give --layersync_accumulation_steps N, the number of forwards that make up one "
        "optimiser step: 1 without accumulation"
    )
