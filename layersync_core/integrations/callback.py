"""What Lightning's callback does, in either of its two distributions; imports neither."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from copy import deepcopy
from functools import update_wrapper
from operator import itemgetter
from types import MethodType
from typing import Any
from weakref import ref

from torch import Tensor, nn

from layersync_core.attachment import Attachment
from layersync_core.errors import ConfigError, LayerSyncWarning
from layersync_core.integrations.subject import Subject
from layersync_core.protocol import Adapter
from layersync_core.run.status import say


class CallbackBase:
    """Attach LayerSync for the time of a fit, add its term to the loss of each training step, log and save.

    The term is added to what ``training_step`` returns, before Lightning divides that by ``accumulate_grad_batches``
    and scales it for fp16, so that both are the same for the main loss and for the term.

    Args:
        model: Attribute path of the model in the LightningModule, such as ``transformer``.
        family: As for ``layersync_core.attach``.
        adapter: As for ``layersync_core.attach``.
        settings: The keys that ``attach`` takes: ``layersync_enabled=True``, ``layersync_student_block=8`` and so on.

    Attributes:
        attachment: The attachment of the fit that runs; None outside of one.

    Raises:
        ConfigError: A setting is unknown or wrong; when the fit starts: the model is not there, or manual optimisation.
    """

    def __init__(
        self, model: str, *, family: str | None = None, adapter: Adapter | None = None, **settings: Any
    ) -> None:
        self._path = model
        self._subject = Subject(type(self).__name__, model, family, adapter, settings)
        self.attachment: Attachment | None = None
        self._state: dict[str, Any] = {}
        self._of: ref[nn.Module] | None = None  # the model that the state is of; None: whichever is attached next
        self._undo = ExitStack()
        self._pause = ExitStack()
        self._warned = False

    @property
    def state_key(self) -> str:
        """The key of the state in a checkpoint: the same in both distributions, another for another model."""
        return f"LayerSyncCallback[{self._path}]"

    # Here and not in setup(): only now there is what the module's own setup() and configure_model() make, and the
    # optimiser, whose state is restored after this.
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach, restore the state, and give the optimiser the trainable parts that regularizers bring."""
        self._detach()
        if not pl_module.automatic_optimization:
            raise ConfigError(
                f"{type(self).__name__} adds the term in automatic optimisation only; {type(pl_module).__name__} "
                "optimises manually: attach(model, settings) in it, and call manual_backward(sync.apply(loss, "
                "step=self.global_step)), divided as you divide the loss"
            )
        attachment = self._subject.attach(pl_module)
        if trainer.is_global_zero:
            say(f"{self._path}: {', '.join(attachment.describe())}")
        if attachment.family is None:
            return  # switched off
        self.attachment = attachment
        self._undo.callback(attachment.remove)
        model = self._subject.find(pl_module)
        if self._state and (self._of is None or self._of() is model):
            attachment.load_state_dict(self._state)
        self._of = ref(model)
        for optimiser in trainer.optimizers:
            attachment.parts.place(optimiser)
        attachment.parts.require_placed()
        self._undo.push(self._pause)
        self.pause()
        around = _Around.of(pl_module)
        around.callbacks.append(self)
        self._undo.callback(around.leave, self)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Judge what the first backwards have shown, and log the means of the step's micro-batches."""
        if self.attachment is None:
            return
        guard = self.attachment.guard
        if guard is not None and guard.waiting:
            # The optimiser's own hook comes before the closure in which Lightning runs forward and backward.
            guard.settle(wait=True)
        metrics = self.attachment.metrics()
        if metrics and not trainer.barebones:
            pl_module.log_dict(metrics, sync_dist=trainer.world_size > 1)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Detach: a fit that fails or is interrupted has no teardown."""
        self._detach()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Detach."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's step and the trainable parts, for a checkpoint; after a fit those of its end."""
        return self._state if self.attachment is None else self.attachment.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, at once or when the fit starts."""
        self._state, self._of = state_dict, None
        if self.attachment is not None:
            self.attachment.load_state_dict(state_dict)

    def pause(self) -> None:
        """Capture nothing: outside of the training step run validation and other callbacks."""
        assert self.attachment is not None
        self._pause.enter_context(self.attachment.paused())

    def go_on(self) -> None:
        """End the pause."""
        self._pause.close()

    def with_term(self, output: Any, step: int) -> Any:
        """Return what a training step returned, with the term added to its loss."""
        attachment = self.attachment
        assert attachment is not None
        loss: Tensor | None = output.get("loss") if isinstance(output, Mapping) else output
        if loss is None:
            for forward in [*attachment.forwards]:
                attachment.forget(forward)
            if not self._warned:
                self._warned = True
                warnings.warn(
                    "training_step returned no loss, so this step has no LayerSync term either (said once)",
                    LayerSyncWarning,
                    stacklevel=2,
                )
            return output
        total = self._subject.add_term(attachment, loss, step)
        return {**output, "loss": total} if isinstance(output, Mapping) else total

    def _detach(self) -> None:
        if self.attachment is not None:
            self._state, self.attachment = self.attachment.state_dict(), None
        self._undo.close()


class _Around:
    """What stands in the place of a module's ``training_step``: one for all callbacks, which may leave in any order."""

    def __init__(self, pl_module: Any) -> None:
        self.callbacks: list[CallbackBase] = []
        self._module, self._original = pl_module, pl_module.training_step
        self._replaced = vars(pl_module).get("training_step")  # of a module that was compiled

    @classmethod
    def of(cls, pl_module: Any) -> _Around:
        """Return the one that is there, or put one there."""
        there = vars(pl_module).get("training_step")
        if isinstance(there, cls):
            return there
        around = cls(pl_module)
        update_wrapper(around, around._original)  # Lightning looks at the method's parameters
        pl_module.training_step = around
        return around

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # A copy of the module calls its own method, on its own weights and without a term.
        if self._replaced is not None:
            return deepcopy(self._replaced, memo)
        return MethodType(type(self._module).training_step, memo.get(id(self._module), self._module))

    def __reduce__(self) -> tuple[Any, ...]:
        if self._replaced is not None:
            return itemgetter(0), ((self._replaced,),)
        return getattr, (self._module, "training_step")

    def leave(self, callback: CallbackBase) -> None:
        """Take a callback out; the last one gives the module its own method back."""
        self.callbacks.remove(callback)
        if not self.callbacks and self._replaced is None:
            del self._module.training_step
        elif not self.callbacks:
            self._module.training_step = self._replaced

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for callback in self.callbacks:
            callback.go_on()
        try:
            output = self._original(*args, **kwargs)
            for callback in self.callbacks:
                output = callback.with_term(output, self._module.trainer.global_step)
            return output
        finally:
            for callback in self.callbacks:
                callback.pause()
