"""The page of a measurement in a real browser, which may load and run nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from layersync_core.families.registry import get_adapter
from layersync_core.suggest.probe import Probe
from tests.browser import BROWSER, MISSING, open_page
from tests.models import build


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason=MISSING)
def test_the_page_opens_without_network_under_a_strict_policy(tmp_path: Path) -> None:
    model, inputs = build("flux")
    with Probe(model, get_adapter("flux")) as probe:
        model(**inputs)
    probe.findings().write(tmp_path)
    page = open_page(tmp_path / "suggest.html", "default-src 'none'")
    assert page.asked == {"/suggest.html"}
    assert "Content Security Policy" not in page.said
    assert page.elements.count("<rect") > 3 * 9
    assert "transformer_blocks.0" in page.elements
