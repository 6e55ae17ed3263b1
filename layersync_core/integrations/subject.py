"""What a library's user says once: which of their models is trained with LayerSync, and with which settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from pydantic import BaseModel
from torch import Tensor, nn

from layersync_core.attachment import Attachment
from layersync_core.config import LayerSyncConfig
from layersync_core.errors import CaptureError, ConfigError, did_you_mean
from layersync_core.protocol import Adapter
from layersync_core.run.process import training
from layersync_core.run.settings import from_environment, is_on
from layersync_core.run.startup.sitecustomize import VARIABLE
from layersync_core.session import attach, plugins
from layersync_core.spelling import PREFIX, settings_of


def known_settings() -> set[str]:
    """Return every key of LayerSync's and of the installed plugins'."""
    models: list[type[BaseModel]] = [LayerSyncConfig, *plugins().config_models()]
    return {name for model in models for name in model.model_fields}


class Subject:
    """A model that is still to be attached.

    Args:
        owner: Class that the user made, for errors.
        path: Attribute path of the model in what the library trains; empty where that is the model itself.
        family: As for ``attach``.
        adapter: As for ``attach``.
        settings: The keys that ``attach`` takes, and no others.

    Raises:
        ConfigError: A setting is unknown or wrong, or the path is not text.
    """

    def __init__(
        self, owner: str, path: str, family: str | None, adapter: Adapter | None, settings: Mapping[str, Any]
    ) -> None:
        if not isinstance(path, str):
            raise ConfigError(
                f"{owner} takes the model as the attribute path by which the library's own object holds it, such as "
                f"'transformer'; got {type(path).__name__}"
            )
        self._owner, self._path, self._family, self._adapter = owner, path, family, adapter
        known = known_settings()
        for spelling, key in settings_of(settings).items():
            # Beside a trainer's keys one that is not ours is the trainer's; here it would do nothing.
            if key not in known and not key.startswith(PREFIX):
                raise ConfigError(f"{owner} has no setting {spelling!r}; {did_you_mean(key, known)}")
        self.config = LayerSyncConfig.from_mapping(settings)

    def find(self, root: nn.Module) -> nn.Module:
        """Return the model in what the library trains.

        Raises:
            ConfigError: There is none at the path.
        """
        if not self._path:
            return root
        try:
            model = attrgetter(self._path)(root)
        except AttributeError:
            model = None
        if isinstance(model, nn.Module):
            return model
        names = [name for name, _ in root.named_children()]
        raise ConfigError(
            f"{self._owner} finds no model {self._path!r} in {type(root).__name__}; it has {', '.join(names) or 'none'}"
        )

    def attach(self, root: nn.Module) -> Attachment:
        """Attach to the model in what the library trains.

        Raises:
            ConfigError: There is no such model, or ``layersync run`` adds the term to this program already.
            LayerSyncError: As for ``attach``.
        """
        model = self.find(root)
        if os.environ.get(VARIABLE) and is_on(from_environment()):
            twice = ConfigError(
                f"this program runs under layersync run ({VARIABLE} is set), which adds the term by itself; with "
                f"{self._owner} it would count twice: start the program without layersync run, or leave "
                f"{self._owner} out"
            )
            training().journal.fail(twice)  # so that the run knows that it ended for a user's mistake
        return attach(model, self.config, family=self._family, adapter=self._adapter)

    def add_term(self, attachment: Attachment, loss: Tensor, step: int) -> Tensor:
        """Return the loss of a training step plus the term.

        Raises:
            CaptureError: The loss has no gradient, the model did not run in the step, or as for ``Attachment.apply``.
            ConfigError: As for ``Attachment.apply``.
        """
        if isinstance(loss, Tensor) and not loss.requires_grad:
            raise CaptureError(
                f"{self._owner}: the training step's loss has no gradient (it was detached, or is made of constants), "
                "so LayerSync's term alone would train the model; return the loss with its graph"
            )
        ran = bool(attachment.forwards)
        try:
            return attachment.apply(loss, step=step)
        except CaptureError as error:
            if ran:
                raise
            # What the attachment saw last may be a validation, which has nothing to do with it.
            raise CaptureError(
                f"{self._owner}: the training step returned a loss, but no forward of "
                f"{self._path or 'the model'} with gradients ran in it; {error}"
            ) from error
