"""The subject of a kit's tests, and the helpers that its checks share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from layersync_core.attachment import Attachment
from layersync_core.errors import LayerSyncError
from layersync_core.losses.pairing import suggest_pair
from layersync_core.protocol import Block
from layersync_core.session import attach
from layersync_core.testing.arguments import sample_name, sequences, text_names
from layersync_core.testing.family import OfFamily, said_sample
from layersync_core.testing.measure import measure
from layersync_core.testing.probe import Seen, look, scatter_weights, seed_everything
from layersync_core.testing.remedy import Remedy

checks: Counter[str] = Counter()
"""Configuration -> the number of checks it passed, for a summary."""


class Subject:
    """What is tested: a family by name, or an adapter with its own model.

    Functions are used as they are, without ``self``: ``example_inputs = tiny.example_inputs``. A function written
    inside the class needs ``@staticmethod``.

    Attributes:
        family: Name of the family; its entry point provides the adapter, and its package the tiny model and inputs.
            adapter: The adapter under test; default: the family's.
        tiny_model: Returns a small random model; default: the family's.
        example_inputs: Called with the model and a batch size, returns the forward's arguments by name; default: the
        family's.
        batch_size: Samples in a batch; 1 where the model takes one sample at a time.
        depth: Number of blocks of the tiny model. Give it if the model has other lists of blocks, such as refiners.
        longer_text: Called with inputs, returns inputs with more text tokens and the same rest. None if the model takes
            no text.
        sample: Name of the forward's argument that is the noisy sample. None uses the name in the family's tiny module,
            a usual name, or the largest tensor.
        text: Names of the forward's arguments that hold text. None finds them by the usual names and by what
            ``longer_text`` makes longer; if there are none, every sequence except the sample counts as text.
    """

    family: ClassVar[str | None] = None
    adapter: ClassVar[Any] = OfFamily()
    tiny_model: ClassVar[Any] = OfFamily()
    example_inputs: ClassVar[Any] = OfFamily()
    depth: ClassVar[int | None] = None
    batch_size: ClassVar[int] = 2
    longer_text: ClassVar[Callable[[dict[str, Any]], dict[str, Any]] | None] = None
    sample: ClassVar[str | None] = None
    text: ClassVar[Sequence[str] | None] = None

    @pytest.fixture
    def model(self) -> nn.Module:
        """A tiny model whose blocks are not the identity."""
        seed_everything()
        model: nn.Module = type(self).tiny_model()
        scatter_weights(model)
        return model.eval()

    @pytest.fixture
    def inputs(self, model: nn.Module) -> dict[str, Any]:
        """Arguments for a batch."""
        seed_everything(1)
        inputs: dict[str, Any] = type(self).example_inputs(model, self.batch_size)
        return inputs

    def _sample(self, inputs: dict[str, Any]) -> str:
        """Return the name of the argument that is the noisy sample.

        Raises:
            AssertionError: The class names one that is not among the inputs, or none of them looks like one.
        """
        if self.sample is not None:
            assert self.sample in inputs, f'sample = "{self.sample}" isn\'t one of the inputs {", ".join(inputs)}'
            return self.sample
        kit: Any = type(self)
        said = said_sample(kit)
        # Another class of the family may use a different name.
        return said if said in inputs else sample_name(inputs)

    def _known_text(self, inputs: dict[str, Any]) -> Sequence[str]:
        """Return the names of the arguments that hold text, as far as they are known."""
        if self.text is not None:
            return self.text
        longer_text = type(self).longer_text
        return text_names(inputs, self._sample(inputs), None if longer_text is None else longer_text(inputs))

    def _text_in(self, inputs: dict[str, Any]) -> Sequence[str]:
        """Return the names of the arguments that hold text; if none is known, of all that may."""
        known = self._known_text(inputs)
        return known if known or self.text is not None else sequences(inputs, [self._sample(inputs)])

    def _look(self, model: nn.Module, inputs: dict[str, Any]) -> Seen:
        """Run one forward and return every layer's tokens.

        Raises:
            AssertionError: The adapter cannot read what the model's blocks return; the message says what to write.
            LayerSyncError: The same, if no remedy was found.
        """
        __tracebackhide__ = True
        with self._explained(model, inputs):
            return look(self.adapter, model, inputs)

    def _attach(self, model: nn.Module, student: Block | None = None, teacher: Block | None = None) -> Attachment:
        """Attach LayerSync with a given pair, or with the suggested one."""
        if student is None or teacher is None:
            student, teacher = suggest_pair(self.adapter.list_blocks(model))
        settings = {
            "layersync_enabled": True,
            "layersync_student_block": student.index + 1,
            "layersync_teacher_block": teacher.index + 1,
            "layersync_lambda": 1.0,
        }
        return attach(model, settings, adapter=self.adapter)

    def _loss(self, model: nn.Module, inputs: dict[str, Any], sync: Attachment, hint: str = "") -> Tensor:
        """Return LayerSync's loss of the forward that ran.

        Args:
            model: The model.
            inputs: Arguments of the forward that ran.
            sync: The attachment.
            hint: What may be wrong if the model's outputs show nothing.

        Raises:
            AssertionError: There is none; the message says what to write.
            LayerSyncError: The same, if no remedy was found.
        """
        __tracebackhide__ = True
        with self._explained(model, inputs, hint):
            return sync.loss()

    @contextmanager
    def _explained(self, model: nn.Module, inputs: dict[str, Any], hint: str = "") -> Iterator[None]:
        """Add to LayerSync's errors what to write in the adapter."""
        __tracebackhide__ = True
        try:
            yield
        except LayerSyncError as error:
            advice = self._remedy(model, inputs, Remedy.stacks, hint)
            if not advice:
                raise
            raise AssertionError(f"{error}; {advice}") from None  # the message contains the error

    def _remedy(
        self, model: nn.Module, inputs: dict[str, Any], of: Callable[[Remedy], str], otherwise: str = ""
    ) -> str:
        """Return what to write in the adapter, according to the outputs of the model's modules, or general advice."""
        try:
            sample = self._sample(inputs)
            measured = measure(model, inputs, sample, self._text_in(inputs), self.batch_size)
            return of(Remedy(self.adapter, self.adapter.list_blocks(model), measured, sample)) or otherwise
        except Exception:  # the failing check must be reported, not a failure to find a remedy for it
            return otherwise

    def _check(self, condition: bool, fault: str | Callable[[], str], advice: str | Callable[[], str] = "") -> None:
        """Fail unless a condition holds, and count those that do.

        Args:
            condition: The condition.
            fault: What is wrong if it does not hold.
            advice: What to do about it; a function if finding that out takes time.

        Raises:
            AssertionError: It does not hold.
        """
        __tracebackhide__ = True  # makes the report end with the check and its message
        if not condition:
            texts = [text if isinstance(text, str) else text() for text in (fault, advice)]
            raise AssertionError("; ".join(text for text in texts if text))
        checks[f"{type(self).__module__}.{type(self).__name__}"] += 1


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Return the nonzero gradients after a backward, by parameter name."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    model.zero_grad(set_to_none=True)
    return found


def to_bf16(model: nn.Module) -> nn.Module:
    """Return the model in bf16, except for the parts that it keeps in fp32."""
    model = model.to(torch.bfloat16)
    kept = getattr(model, "_keep_in_fp32_modules", None) or ()  # diffusers always loads these in fp32
    for name, module in model.named_modules():
        if name.split(".")[-1] in kept:
            module.float()
    return model


def masks_of(seen: Seen) -> Mapping[str, Tensor]:
    """Return the (B, S) masks that the adapter gave, by name of the field that provides them."""
    found = {"target": seen.tokens.target, "real": seen.tokens.real}
    return {name: mask for name, mask in found.items() if mask is not None}
