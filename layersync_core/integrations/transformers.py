"""LayerSync in the ``Trainer`` of transformers, as a mixin; imports no transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from layersync_core.attachment import Attachment
from layersync_core.errors import CaptureError, ConfigError
from layersync_core.integrations.subject import Subject, known_settings
from layersync_core.protocol import Adapter
from layersync_core.run.status import say
from layersync_core.spelling import PREFIX
from layersync_core.state import STATE_FILE, load_states, save_states

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


class LayerSyncTrainerMixin(_Trainer):  # type: ignore[misc]
    """Attach LayerSync for the time of ``train()``, add its term to ``compute_loss``, log and save.

    ``class MyTrainer(LayerSyncTrainerMixin, Trainer)``; a loss of your own belongs below it:
    ``class MyTrainer(LayerSyncTrainerMixin, TrainerWithMyLoss)``. The keys that ``layersync_core.attach`` takes are
    arguments beside the Trainer's: ``MyTrainer(model=…, args=…, layersync_enabled=True, layersync_student_block=8)``.

    The term is divided by the micro-batches of the optimiser step, as a mean is, whether the Trainer divides the loss
    afterwards or the loss was divided by ``num_items_in_batch``. The Trainer's ``loss`` is then the sum of both.

    Args:
        layersync_model: Attribute path of the model in the Trainer's; empty where that is the model itself.
        layersync_family: As ``family`` of ``attach``.
        layersync_adapter: As ``adapter`` of ``attach``.

    Attributes:
        layersync: The attachment while ``train()`` runs; None outside of it.

    Raises:
        ConfigError: A setting is unknown or wrong; when training starts: the model is not there, or replicated.
        CaptureError: A loss of the Trainer's comes without the term, or is divided in a way that is not known.
    """

    layersync: Attachment | None = None
    _layersync_losses: tuple[Tensor, Tensor] | None = None  # as the Trainer will have divided it, and otherwise
    _layersync_is_proven = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse the mixin behind the Trainer, whose methods would then be the ones that are called."""
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[: cls.__mro__.index(LayerSyncTrainerMixin)]:
            if base.__name__ == "Trainer" and "compute_loss" in vars(base):
                raise ConfigError(
                    f"{cls.__name__} has LayerSyncTrainerMixin behind the Trainer, where it does nothing; write "
                    f"class {cls.__name__}(LayerSyncTrainerMixin, {cls.__bases__[0].__name__})"
                )

    def __init__(
        self,
        *args: Any,
        layersync_model: str = "",
        layersync_family: str | None = None,
        layersync_adapter: Adapter | None = None,
        **kwargs: Any,
    ) -> None:
        known = known_settings()
        settings = {key: kwargs.pop(key) for key in [*kwargs] if key in known or key.startswith(PREFIX)}
        self._layersync_subject = Subject(
            type(self).__name__, layersync_model, layersync_family, layersync_adapter, settings
        )
        self._layersync_state: dict[str, Any] = {}
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does; LayerSync is attached while it runs."""
        try:
            return super().train(*args, **kwargs)
        finally:
            attachment, self.layersync = self.layersync, None
            if attachment is not None:
                attachment.remove()
                self._layersync_state = attachment.state_dict()
                if self.optimizer is not None:  # which the next training goes on with
                    attachment.parts.take_out(self.optimizer)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Attach, before the model is wrapped or compiled, and give the optimiser what regularizers train."""
        if self.layersync is None:
            self.layersync = self._layersync_attach()
        for forward in [*self.layersync.forwards]:  # of a step that ran out of memory, after which training restarts
            self.layersync.forget(forward)
        optimiser = super().create_optimizer(*args, **kwargs)
        self.layersync.parts.place(optimiser)
        self.layersync.parts.require_placed()
        return optimiser

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Return the Trainer's loss plus the term; without gradients, as in evaluation, the loss alone."""
        result = super().compute_loss(model, inputs, return_outputs, *args, **kwargs)
        attachment = self.layersync
        if attachment is None or attachment.family is None or not torch.is_grad_enabled():
            return result
        loss, outputs = result if return_outputs else (result, None)
        items = args[0] if args else kwargs.get("num_items_in_batch")
        add_term, micro_batches = self._layersync_subject.add_term, self._layersync_micro_batches()
        if self._layersync_is_divided(items):
            # The loss is its share of the step already: the term, of an undivided loss, is still to be divided.
            loss = add_term(attachment, loss * micro_batches, self.state.global_step) / micro_batches
            self._layersync_losses = loss.detach(), loss.detach() / micro_batches
        else:
            loss = add_term(attachment, loss, self.state.global_step)
            self._layersync_losses = loss.detach() / micro_batches, loss.detach()
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the Trainer's step, and check that its loss had the term and was divided as expected."""
        returned = super().training_step(*args, **kwargs)
        name, attachment = type(self).__name__, self.layersync
        losses, self._layersync_losses = self._layersync_losses, None
        if attachment is None:
            raise CaptureError(
                f"LayerSync was not attached: create_optimizer of {name} has to call that of LayerSyncTrainerMixin "
                "with super()"
            )
        if attachment.family is None:
            return returned
        if losses is None:
            raise CaptureError(
                f"the loss was made without LayerSync's term: compute_loss of {name} doesn't call that of "
                f"LayerSyncTrainerMixin; put the loss into a class below the mixin, class {name}"
                "(LayerSyncTrainerMixin, TrainerWithThatLoss)"
            )
        if not self._layersync_is_proven and self._layersync_micro_batches() > 1:
            self._layersync_is_proven = True
            expected, otherwise = losses
            if torch.isclose(returned, otherwise) and not torch.isclose(returned, expected):
                raise CaptureError(
                    f"{name} divides its losses under gradient accumulation in a way that LayerSyncTrainerMixin "
                    "doesn't know, so the term would have another weight; set loss_is_scaled_for_ga on it: True where "
                    "compute_loss returns the loss's share of the step, False where it returns a mean"
                )
        return returned

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the means since the last log beside the training loss."""
        if self.layersync is not None and "loss" in logs:
            metrics = self.layersync.metrics()
            if metrics:
                # Every process logs, and takes part in the mean.
                means = self.accelerator.reduce(torch.stack([*metrics.values()]), "mean").tolist()
                logs = {**logs, **dict(zip(metrics, means, strict=True))}
        super().log(logs, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Save the model, and LayerSync's state beside that of a checkpoint."""
        super().save_model(output_dir, *args, **kwargs)
        if self.layersync is not None and self.layersync.family is not None and self.args.should_save:
            save_states(Path(output_dir or self.args.output_dir), {"": self.layersync.state_dict()})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.layersync is None or self.layersync.family is None:
            return
        state = (load_states(Path(checkpoint)) or {}).get("")
        if state is not None:
            self.layersync.load_state_dict(state)
        elif self.layersync.modules():  # the step is the Trainer's own
            raise ConfigError(
                f"the checkpoint {checkpoint} has no {STATE_FILE}, so {', '.join(self.layersync.modules())} would "
                "start anew; train without it, or without resume_from_checkpoint"
            )

    def _layersync_attach(self) -> Attachment:
        if self.args.n_gpu > 1:
            raise ConfigError(
                f"the Trainer uses nn.DataParallel on {self.args.n_gpu} devices, whose replicas LayerSync cannot "
                "capture; start one process for each device, with torchrun or accelerate launch"
            )
        attachment = self._layersync_subject.attach(self.model)
        if self._layersync_state and attachment.family is not None:
            attachment.load_state_dict(self._layersync_state)
        if self.is_world_process_zero():
            say(", ".join(attachment.describe()))
        return attachment

    def _layersync_is_divided(self, items: Any) -> bool:
        """Return whether the Trainer leaves a loss as it is, as ``training_step`` decides."""
        said: bool | None = getattr(self, "loss_is_scaled_for_ga", None)
        if said is not None:
            return said
        return (self.model_accepts_loss_kwargs and items is not None) or self.compute_loss_func is not None

    def _layersync_micro_batches(self) -> int:
        # Earlier versions divide by the setting in an epoch's last, shorter step as well.
        return int(getattr(self, "current_gradient_accumulation_steps", self.args.gradient_accumulation_steps))
