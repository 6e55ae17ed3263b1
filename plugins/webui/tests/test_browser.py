"""The Runs page in a real browser: Debian's Chromium, by its path."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from plugins.webui.tests.folders import add_rows

CHROMIUM = Path(os.environ.get("LAYERSYNC_CHROMIUM", "/usr/bin/chromium"))
INK = """canvas => {
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    let coloured = 0;  // the line of the first run; axes and grid are grey
    for (let place = 0; place < data.length; place += 4) {
        if (data[place + 3] > 100 && data[place + 2] > data[place] + 60) coloured++;
    }
    return coloured;
}"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}; apt install chromium"),
]


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, address):
    """A page that nobody complained about in the end, and that asked nobody else for anything."""
    context = chromium.new_context(viewport={"width": 1200, "height": 900})
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


def drawn(page):
    return [canvas.evaluate(INK) for canvas in page.query_selector_all("#charts canvas")]


def test_a_run_in_the_terminal_appears_draws_its_curves_and_ends(page, runs):
    assert "layersync train" in page.inner_text("main")
    flags = "--max_train_steps 100000 --train_batch_size 4 --logging_steps 1 --checkpointing_steps 100000"
    command = [sys.executable, "-m", "layersync_core", "train", "--output_dir", str(runs / "mine"), *flags.split()]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as training:
        try:
            page.wait_for_selector("text=Running", timeout=120_000)
            page.wait_for_selector("text=layersync_similarity >> nth=1", timeout=60_000)
            page.wait_for_function("document.querySelectorAll('#charts canvas').length >= 3")
            first = int(re.search(r"(\d+) / 100000", page.inner_text("#table"))[1])
            page.wait_for_function(
                "first => Number(/(\\d+) \\/ 100000/.exec(document.getElementById('table').innerText)[1]) > first",
                arg=first,
                timeout=60_000,
            )
            assert min(drawn(page)[:3]) > 50
            training.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            page.wait_for_selector("text=Ended without a word", timeout=5_000)
            assert time.monotonic() - killed < 5
        finally:
            training.kill()
    page.reload()
    page.wait_for_selector("text=Ended without a word")


def test_several_runs_over_each_other_smoothed_and_by_minutes(page, make_run, runs):
    make_run("one", rows=30)
    make_run("two", rows=30, loss=0.5, layersync_similarity=0.7)
    page.wait_for_selector("#legend li")
    for name in ("one", "two"):
        page.check(f"[aria-label='Show the curves of {name}']")
    page.wait_for_function("document.querySelectorAll('#legend li').length === 2")
    assert sorted(page.inner_text("#legend").split()) == ["one", "two"]
    page.wait_for_timeout(4500)
    assert len(page.query_selector_all("#list :checked")) == 2, "the choice outlives the list's renewals"
    before = drawn(page)
    page.focus("#smoothing")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    page.focus("[name=axis][value=steps]")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('[name=axis]:checked').value === 'minutes'")
    after = drawn(page)
    assert min(before + after) > 50
    assert before != after
    add_rows(runs / "one", 5, start=31)
    page.wait_for_selector("text=/35/", timeout=10_000)


def test_charts_stand_in_their_boxes_and_in_order(page, make_run):
    folder = make_run("later", rows=0)
    (folder / "layersync_metrics.jsonl").write_text('{"step": 0, "lr": 1, "crepa_loss": 1}\n')
    page.wait_for_selector("#charts canvas")
    add_rows(folder, 5, layersync_loss=1, crepa_loss=1, lr=1)
    page.wait_for_selector(".chart >> nth=4")
    page.wait_for_timeout(500)
    titles = [title.inner_text() for title in page.query_selector_all(".chart h3")]
    assert titles == ["loss", "layersync_loss", "layersync_similarity", "crepa_loss", "lr"]
    for width in (1200, 700, 1500):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(500)
        for box in page.query_selector_all(".chart"):
            assert box.query_selector("canvas").bounding_box()["width"] <= box.bounding_box()["width"]


def test_a_run_of_its_own_page_with_hostile_names(page, make_run):
    evil = "<img src=x onerror=document.title=1>"
    folder = make_run(evil, rows=5, **{"<script>alert(1)</script>": 1})
    (folder / "train.log").write_text("<script>document.title = 1</script>\nlast line\n")
    page.wait_for_selector("#legend li")
    page.click("#list a")
    page.wait_for_selector("text=last line")
    page.wait_for_selector(".chart h3")
    assert page.inner_text("h1") == evil
    assert "<script>alert(1)</script>" in [title.inner_text() for title in page.query_selector_all(".chart h3")]
    assert page.title() != "1"
    with (folder / "train.log").open("a") as file:
        file.write("a new line\n")
    page.wait_for_selector("text=a new line", timeout=10_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_shows_all_without_scrolling_the_page_sideways(page, make_run, scheme):
    make_run("a-run-with-a-name-that-is-longer-than-a-narrow-screen-" * 3, rows=5)
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 700})
    page.wait_for_selector("#charts canvas")
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.click("#list a") if page.query_selector("#list a") else None
        page.wait_for_selector("h1")


def test_a_page_whose_server_is_gone_says_that_it_is_old(page, make_run):
    make_run("mine")
    page.wait_for_selector("#charts canvas")
    page.route("**/runs/curves*", lambda route: route.fulfill(status=200, body="no json"))
    page.wait_for_selector("text=no connection", timeout=10_000)
