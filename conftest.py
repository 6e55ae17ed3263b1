"""What holds for every test of the repository."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from layersync_core.losses.plugins import third_parties
from layersync_core.session import plugins

_RIGHT = {loaded: set(loaded().config_models()) for loaded in (plugins, third_parties)}
"""What is installed claims these, as it is before the first test."""


@pytest.fixture(autouse=True)
def plugins_for_the_next_test() -> Iterator[None]:
    """Forget plugins that a test has loaded or changed, where they are not those that are installed."""
    yield
    for loaded, right in _RIGHT.items():
        if (
            loaded.cache_info().currsize
            and set(loaded().config_models()) != right
            and "LAYERSYNC_LOAD" not in os.environ
        ):
            loaded.cache_clear()


def _of_accelerate() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}


@pytest.fixture(autouse=True)
def accelerate_for_the_next_test() -> Iterator[None]:
    """Forget the settings of the first Accelerator: every later one of the process silently has them, not its own."""
    before = _of_accelerate()
    yield
    for name in _of_accelerate().keys() - before.keys():  # older Trainers of transformers leave their own
        del os.environ[name]
    os.environ.update(before)
    if (state := sys.modules.get("accelerate.state")) is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, one for all tests of a process: Playwright cannot start a second time beside the first."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    from plugins.webui.tests.browser import launch

    with playwright.sync_playwright() as driver:
        browser = launch(driver)
        yield browser
        browser.close()


def _checks() -> Counter[str]:
    from layersync_core.testing.subject import checks  # which needs torch

    return checks


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand what a worker counted to the process that prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["conformance"] = dict(_checks())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up what the workers counted."""
    _checks().update(getattr(node, "workeroutput", {}).get("conformance", {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many configurations went through the conformance kit, in how many checks."""
    checks = _checks()
    # Without the kit's own tests, most of which are about adapters that fail.
    passed = {name: count for name, count in checks.items() if not name.startswith("tests.")}
    if passed:
        terminalreporter.write_line(f"conformance: {len(passed)} configurations, {sum(passed.values())} checks")
