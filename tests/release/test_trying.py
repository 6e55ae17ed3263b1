"""What a release tries of an installed distribution, on those that this environment has."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from release.distributions import distributions
from release.errors import ReleaseError
from release.trying import check_plugins

WITH_PLUGINS = [it for it in distributions() if it.plugins]


def test_there_are_plugins_of_both_kinds() -> None:
    assert {"crepa", "trainer", "twinflow", "webui"} <= {name for it in WITH_PLUGINS for name in it.plugins}


@pytest.mark.parametrize("distribution", WITH_PLUGINS, ids=lambda it: it.name)
def test_installed_plugins_work(distribution: object) -> None:
    check_plugins(sys.executable, distribution)  # type: ignore[arg-type]


def test_one_that_is_not_there_is_an_error() -> None:
    (trainer,) = (it for it in WITH_PLUGINS if it.plugins == ["trainer"])
    table = {**trainer.project, "entry-points": {"layersync.plugins": {"trainer": "", "absent": ""}}}
    with pytest.raises(ReleaseError, match=r"layersync-plugin-trainer: absent does not work:\ncrepa good"):
        check_plugins(sys.executable, dataclasses.replace(trainer, project=table))
