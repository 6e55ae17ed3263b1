"""Debian's Chromium, by its path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = Path(os.environ.get("LAYERSYNC_CHROMIUM", "/usr/bin/chromium"))

NEEDED = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}; apt install chromium"),
]


def launch(driver: Any) -> Any:
    return driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])


@contextmanager
def opened(browser: Any, address: str, **context: Any) -> Iterator[Any]:
    """Open a page, and check at the end that it logged no errors and requested nothing from other hosts.

    The tests wait for selectors or with `wait_for`: where `page.wait_for_function` has to ask a second time, it needs
    an `eval` that the page's content policy refuses.
    """
    context = browser.new_context(**({"viewport": {"width": 1200, "height": 900}} | context))
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("h1")
    yield page
    context.close()
    assert not said
    assert {urlsplit(url).netloc for url in asked} == {urlsplit(address).netloc}


INK = """canvas => {
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    let coloured = 0;  // the line of the first run; axes and grid are grey
    for (let place = 0; place < data.length; place += 4) {
        if (data[place + 3] > 100 && data[place + 2] > data[place] + 60) coloured++;
    }
    return coloured;
}"""


def drawn(page: Any) -> list[int]:
    """Return how much of a line is on each chart."""
    return [canvas.evaluate(INK) for canvas in page.query_selector_all("#charts canvas")]
