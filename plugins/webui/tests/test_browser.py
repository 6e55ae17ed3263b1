"""The Runs page in a real browser: Debian's Chromium, by its path."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from layersync_plugin_webui.jobs import Jobs
from layersync_plugin_webui.runs.curves import Curves
from plugins.webui.tests.browser import NEEDED, drawn
from plugins.webui.tests.folders import add_rows, picture
from plugins.webui.tests.working import end, held, log_of, start_waiting, wait_for

pytestmark = NEEDED


def step_of(steps):
    return int(re.search(r"(\d+) / 100000", steps.inner_text())[1])


def test_a_run_in_the_terminal_appears_draws_its_curves_and_ends(page, runs):
    assert "layersync train" in page.inner_text("main")
    flags = "--max_train_steps 100000 --train_batch_size 4 --logging_steps 1 --checkpointing_steps 100000"
    command = [sys.executable, "-m", "layersync_core", "train", "--output_dir", str(runs / "mine"), *flags.split()]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as training:
        try:
            page.wait_for_selector("text=Running", timeout=120_000)
            page.wait_for_selector("text=layersync_similarity >> nth=1", timeout=60_000)
            page.wait_for_selector("#charts canvas >> nth=2")
            steps = page.locator("#table").filter(has_text=re.compile(r"\d+ / 100000"))
            first = step_of(steps)
            wait_for(lambda: step_of(steps) > first)
            assert min(drawn(page)[:3]) > 50
            training.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            page.wait_for_selector("text=Ended unexpectedly", timeout=5_000)
            assert time.monotonic() - killed < 5
        finally:
            training.kill()
    page.reload()
    page.wait_for_selector("text=Ended unexpectedly")


def test_several_runs_over_each_other_smoothed_and_by_minutes(page, make_run, runs):
    make_run("one", rows=30)
    make_run("two", rows=30, loss=0.5, layersync_similarity=0.7)
    page.wait_for_selector("#legend li")
    for name in ("one", "two"):
        page.check(f"[aria-label='Show the curves of {name}']")
    page.wait_for_selector("#legend li >> nth=1")
    assert sorted(page.inner_text("#legend").split()) == ["one", "two"]
    page.wait_for_timeout(4500)
    assert len(page.query_selector_all("#list :checked")) == 2, "the choice outlives the list's renewals"
    before = drawn(page)
    page.focus("#smoothing")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    page.focus("[name=axis][value=steps]")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("[name=axis][value=minutes]:checked")
    after = drawn(page)
    assert min(before + after) > 50
    assert before != after
    add_rows(runs / "one", 5, start=31)
    page.wait_for_selector("text=/35/", timeout=60_000)


def test_charts_are_in_their_boxes_and_in_order(page, make_run):
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
    page.wait_for_selector("text=a new line", timeout=60_000)


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
    page.wait_for_selector("text=no connection", timeout=60_000)
    page.set_viewport_size({"width": 1200, "height": 250})
    page.evaluate("scrollTo(0, 0)")
    bottom = page.locator("#message").bounding_box()
    assert bottom["y"] + bottom["height"] <= 250, "in sight, wherever the reader is on the page"


def test_a_run_that_is_taken_away_takes_no_page_into_itself(chromium, address, make_run):
    folder = make_run("mine")
    context = chromium.new_context()  # its console says that there is no answer
    page = context.new_page()
    page.goto(address.replace("/?", "/runs?"))
    page.click("#table a:has-text('mine')")
    page.wait_for_selector("#charts canvas")
    with page.expect_response(lambda answer: answer.status == 404 and answer.url.endswith("/live")):
        shutil.rmtree(folder)
    page.wait_for_timeout(300)
    assert page.locator("header").count() == 1
    context.close()


def test_the_report_of_a_run_opens_alone(page, chromium, runs, make_run, tmp_path):
    folder = make_run("mine", rows=50, layersync_grad_ratio=0.1)
    (folder / "samples.png").write_bytes(picture())
    page.click("#table a:has-text('mine')")
    with page.expect_download() as waited:
        page.click("text=Report as one file")
    assert waited.value.suggested_filename == "layersync-mine.html"
    waited.value.save_as(tmp_path / "mailed" / "report.html")
    context = chromium.new_context(color_scheme="dark", viewport={"width": 360, "height": 800}, offline=True)
    opened = context.new_page()
    said, asked = [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("request", lambda request: asked.append(request.url.partition(":")[0]))
    opened.goto((tmp_path / "mailed" / "report.html").as_uri())
    assert opened.evaluate("document.images[0].naturalWidth") == 1
    assert opened.locator("svg[role=img] polyline").count() == 3
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    context.close()
    assert not said
    assert set(asked) <= {"file", "data"}


def test_stop_says_that_it_stops_and_a_second_click_kills(page, runs, tmp_path):
    folder = start_waiting(Jobs(runs), tmp_path, more="--stubborn")
    try:
        page.click("#list a")
        page.dblclick("text=Stop")
        page.wait_for_selector("button:has-text('Stopping… kill now')")
        page.wait_for_timeout(2500)
        assert log_of(folder).count("interrupted") == 1
        page.reload()
        page.click("button:has-text('Stopping… kill now')")
        page.wait_for_selector("text=Ended: killed")
        assert not page.query_selector(".action")
    finally:
        end(runs)


def test_stop_and_resume_by_keyboard(page, runs):
    settings = {"max_train_steps": 60, "train_batch_size": 2, "num_sampling_steps": 1, "logging_steps": 1}
    folder = Jobs(runs).train("mine", settings)
    try:
        page.click("#list a")
        wait_for(lambda: "layersync_similarity" in Curves(folder).read(), 120)
        with held(folder):
            page.wait_for_selector("text=layersync_similarity >> nth=1", timeout=60_000)
            page.focus("#stop button")
            page.keyboard.press("Enter")
            page.wait_for_selector("text=Stopping", timeout=60_000)
        page.wait_for_selector("text=/Resume at step \\d+/", timeout=60_000)
        step = int(re.search(r"Resume at step (\d+)", page.inner_text("#live"))[1])
        assert 0 < step < 60
        page.focus("#resume button")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=Running", timeout=60_000)
        page.wait_for_selector("text=Finished", timeout=120_000)
        assert "step 60 of 60" in page.inner_text("#live")
        assert page.inner_text("#told") == ""
    finally:
        end(runs)


def test_what_could_not_be_done_is_reported_and_stays(page, runs, tmp_path):
    start_waiting(Jobs(runs), tmp_path)
    try:
        page.click("#list a")
        page.wait_for_selector("#stop")
        page.route("**/live", lambda route: route.fulfill(status=204))
        end(runs)
        page.wait_for_timeout(300)
        page.click("#stop button")
        page.wait_for_selector("#told:has-text('is not running any more')")
        page.unroute("**/live")
        page.wait_for_timeout(4500)
        assert "is not running any more" in page.inner_text("#told")
    finally:
        end(runs)
