"""Settings for the tests of the configuration, and what comes of them."""

from __future__ import annotations

from typing import Any

import pytest

from layersync_core import ConfigError, LayerSyncConfig

ON: dict[str, Any] = {"layersync_enabled": True}
GOOD = ON | {"layersync_student_block": 8, "layersync_teacher_block": 16}
STUDENT = "layersync_student_block"
TEACHER = "layersync_teacher_block"


def read(**more: Any) -> LayerSyncConfig:
    return LayerSyncConfig.from_mapping(GOOD | more)


def settings_of(config: LayerSyncConfig) -> dict[str, Any]:
    """Return the settings that were given, as they are understood."""
    return config.model_dump(exclude_unset=True)


def complaint(mapping: Any) -> str:
    """Return the message of the error that a mapping gives; it is one line without pydantic's link."""
    with pytest.raises(ConfigError) as error:
        LayerSyncConfig.from_mapping(mapping)
    message = str(error.value)
    assert message
    assert len(message.splitlines()) == 1
    assert "pydantic" not in message
    return message
