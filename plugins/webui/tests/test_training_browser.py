"""The Training page in a real browser: Debian's Chromium, by its path."""

from __future__ import annotations

import json
import re

import pytest

from plugins.webui.tests.browser import NEEDED, drawn
from plugins.webui.tests.folders import serving
from plugins.webui.tests.working import wait_for

pytestmark = NEEDED

ON, STUDENT, TEACHER = "#layersync_enabled-on", "#layersync_student_block", "#layersync_teacher_block"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def address(runs):
    """The page for all tests here: its helper process starts only once."""
    with serving(runs) as address:
        yield address


@pytest.fixture
def training(page):
    page.goto(page.url.replace("/runs", "/training"))
    page.wait_for_selector("table.map", timeout=120_000)
    page.wait_for_selector(".good", timeout=120_000)
    return page


def turn(page, switch):
    page.check(switch, force=True)


def type_into(page, field, text):
    with page.expect_response(lambda answer: answer.url.endswith("/training/check")) as answer:
        page.fill(field, text)
    answer.value.finished()
    page.wait_for_timeout(200)


def test_a_bad_value_shows_the_command_lines_error_beside_its_field(training):
    type_into(training, STUDENT, "99")
    error = training.locator("#error-layersync_student_block")
    assert error.inner_text() == (
        "LayerSync could not find layer 99 (the student block): the model has 8 blocks; valid are 1 to 8, and 0 for "
        "the first"
    )
    field = training.locator(STUDENT)
    assert field.get_attribute("aria-invalid") == "true"
    assert "error-layersync_student_block" in field.get_attribute("aria-describedby")
    training.click("#summary a")
    assert training.evaluate("document.activeElement.id") == "layersync_student_block"
    type_into(training, STUDENT, "3")
    training.wait_for_selector(".good")
    assert error.inner_text() == ""
    assert field.get_attribute("aria-invalid") is None
    assert "block 3 of 8: transformer_blocks.2" in training.inner_text("[data-key=layersync_student_block]")


def test_the_pair_is_set_on_the_map_by_keyboard_and_by_mouse(training):
    cell = training.locator("table.map [tabindex='0']")
    assert cell.count() == 1, "one place to tab to"
    cell.focus()
    start = [int(cell.get_attribute(name)) for name in ("data-s", "data-t")]
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowUp"):
        training.keyboard.press(key)
    training.keyboard.press("Enter")
    pair = [int(training.input_value(field)) for field in (STUDENT, TEACHER)]
    assert pair == [start[0] + 1, start[1] + 1]
    assert training.is_checked(ON)
    chosen = training.locator("table.map [aria-selected=true]")
    assert chosen.count() == 1
    assert f"student {pair[0]}, teacher {pair[1]}" in chosen.get_attribute("aria-label")
    assert f"Student Block {pair[0]} and Teacher Block {pair[1]} are set" in training.inner_text("#said")
    training.wait_for_selector(f"#json:has-text('\"layersync_teacher_block\": {pair[1]}')", state="attached")
    assert json.loads(training.inner_text("#json")) == {
        "layersync_enabled": True,
        "layersync_student_block": pair[0],
        "layersync_teacher_block": pair[1],
    }
    for key in ("Home", "ArrowLeft", "ArrowLeft", "ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp"):
        training.keyboard.press(key)
    training.keyboard.press("Space")
    assert training.input_value(STUDENT) == "1"
    training.click("table.map [data-s='4'][data-t='7']")
    assert [training.input_value(field) for field in (STUDENT, TEACHER)] == ["4", "7"]
    assert training.locator("table.map [tabindex='0']").count() == 1


def test_a_switch_shows_and_hides_and_loses_nothing(training):
    hidden = training.locator("#crepa_block_index")
    assert not hidden.is_visible()
    training.focus("#crepa_enabled")
    training.keyboard.press("ArrowRight")
    hidden.wait_for(state="visible")
    training.wait_for_selector("#error-crepa_block_index p")
    type_into(training, "#crepa_block_index", "2")
    turn(training, "#crepa_enabled-off")
    hidden.wait_for(state="hidden")
    turn(training, "#crepa_enabled-on")
    assert training.input_value("#crepa_block_index") == "2"
    assert not training.locator("#crepa_tau").is_visible()
    assert training.locator("details.advanced >> text=Advanced").count() >= 4
    turn(training, "#layersync_enabled-off")
    training.locator(STUDENT).wait_for(state="hidden")


def test_ones_own_command_hides_the_trainers_sections_and_keeps_the_losses(training):
    turn(training, ON)
    type_into(training, STUDENT, "2")
    turn(training, "#way-run")
    for part, seen in (
        ("command", True),
        ("losses", True),
        ("model", True),
        ("training", False),
        ("data", False),
        ("output", False),
    ):
        assert training.locator(f"#part-{part}").is_visible() == seen, part
    training.wait_for_selector("text=Name a family or a folder")
    type_into(training, "[id='page.command']", "accelerate launch train.py")
    training.fill("[name='page.variable']", "HF_TOKEN")
    type_into(training, "[name='page.value']", "hf_secret")
    command = training.inner_text("#command")
    assert "layersync run" in command
    assert command.endswith("accelerate launch train.py")
    assert "HF_TOKEN=••••" in command
    assert "hf_secret" not in training.content().replace('value="hf_secret"', "")
    training.click("#more-variables")
    assert training.locator("[name='page.variable']").count() == 2


def test_a_refused_family_says_why_at_once(training):
    training.select_option("#family", "kolors")
    training.wait_for_selector("#refused")
    assert "a UNet with a ChatGLM conditioning path" in training.inner_text("#refused")
    training.select_option("#family", "flux")
    training.wait_for_selector("text=family flux")
    assert training.inner_text("output[for=layersync_student_block]") == "1 to 6"
    training.click("#facts summary")
    assert "single_transformer_blocks.0" in training.inner_text("#facts")


def test_what_was_typed_outlives_a_reload_and_secrets_do_not_stay_in_the_browser(training):
    type_into(training, STUDENT, "3")
    turn(training, "#crepa_enabled-off")
    turn(training, "#way-run")
    training.fill("[name='page.variable']", "HF_TOKEN")
    type_into(training, "[name='page.value']", "hf_secret")
    type_into(training, "[id='page.command']", "python 'my train.py'")
    training.reload()
    training.wait_for_selector("#command:has-text('my train.py')")
    assert training.input_value(STUDENT) == "3"
    assert training.is_checked("#crepa_enabled-off")
    assert training.is_checked("#way-run")
    assert training.input_value("[name='page.variable']") == "HF_TOKEN"
    assert training.evaluate("Object.values(localStorage).join().includes('hf_secret')") is False
    training.click("#anew")
    wait_for(lambda: training.input_value(STUDENT) == "")
    assert training.is_checked("#way-train")


def test_a_file_is_read_changed_and_saved_without_touching_other_keys(training, tmp_path):
    text = (
        '{\n  "--layersync_enabled": true,   "reg_weight": 0.10,\n'
        '  "layersync_lambda": 0.2,\r\n  "--layersync_student_block": "2"\n}'
    )
    (tmp_path / "config.json").write_bytes(text.encode())
    training.click("#import summary")
    training.set_input_files("#file", tmp_path / "config.json")
    training.wait_for_load_state()
    wait_for(lambda: training.input_value(STUDENT) == "2")
    assert training.input_value("#layersync_lambda") == "0.2"
    training.wait_for_selector("table.map")
    type_into(training, "#layersync_lambda", "0.5")
    with training.expect_download() as download:
        training.click("#export")
    assert download.value.suggested_filename == "config.json"
    changed = text.replace('"layersync_lambda": 0.2', '"layersync_lambda": 0.5')
    assert download.value.path().read_bytes() == changed.encode()
    assert training.input_value("#layersync_lambda") == "0.5"


def test_the_command_is_copied_or_selected(training):
    training.context.grant_permissions(["clipboard-read", "clipboard-write"])
    training.click("[data-of=command]")
    training.wait_for_selector("text=Copied")
    assert training.evaluate("navigator.clipboard.readText()") == training.inner_text("#command")
    training.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(); }")
    training.click("[data-of=json]")
    training.wait_for_selector("text=Selected")
    assert training.evaluate("getSelection().toString()") == training.inner_text("#json")


def test_what_was_measured_colours_the_map(training, runs):
    training.select_option("#family", "flux")
    training.wait_for_selector("text=family flux")
    names = [*(f"transformer_blocks.{n}" for n in range(2)), *(f"single_transformer_blocks.{n}" for n in range(4))]
    grid = [[round((one + other) / 10, 2) for other in range(6)] for one in range(6)]
    content = {
        "model": "FluxTransformer2DModel", "blocks": names, "cka": [grid], "cosine": [[row[::-1] for row in grid]],
        "recommended": [{"student": 2, "teacher": 4, "reason": "measured: CKA 0.4"}],
        "verdict": {"answer": "yes", "reason": "there is something to learn"},
    }  # fmt: skip
    (runs / "measured").mkdir()
    (runs / "measured" / "suggest.json").write_text(json.dumps(content))
    training.select_option("#family", "dit")
    training.wait_for_selector("text=family dit")
    training.select_option("#family", "flux")
    training.wait_for_selector("text=there is something to learn")
    colours = training.evaluate(
        "[...document.querySelectorAll('.map [role=gridcell]')].map((cell) => getComputedStyle(cell).backgroundColor)"
    )
    assert len(set(colours)) > 5
    assert "Linear CKA 0.400" in training.get_attribute(".map [data-s='2'][data-t='4']", "aria-label")
    training.select_option("#measure", "cosine")
    training.wait_for_selector(".map [aria-label*='Cosine 0.']")
    training.click(".pair")
    assert [training.input_value(field) for field in (STUDENT, TEACHER)] == ["2", "4"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_shows_all_without_scrolling_the_page_sideways(training, scheme):
    training.emulate_media(color_scheme=scheme)
    training.set_viewport_size({"width": 360, "height": 700})
    turn(training, ON)
    turn(training, "#crepa_enabled-on")
    for summary in training.locator("summary").all():
        if summary.is_visible():
            summary.click()
    training.select_option("#family", "flux")
    training.wait_for_selector("text=family flux")
    assert training.evaluate("document.documentElement.scrollWidth") <= 360
    turn(training, "#way-run")
    assert training.evaluate("document.documentElement.scrollWidth") <= 360


def test_axe_finds_nothing_serious_with_all_of_it_shown(training):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python").Axe()
    turn(training, ON)
    type_into(training, STUDENT, "99")
    turn(training, "#crepa_enabled-on")
    training.wait_for_selector("#error-layersync_student_block p")
    for summary in training.locator("summary").all():
        if summary.is_visible() and summary.locator("..").get_attribute("open") is None:
            summary.click()
    found = []
    for scheme in ("light", "dark"):
        for way in ("#way-run", "#way-train"):
            training.emulate_media(color_scheme=scheme)
            turn(training, way)
            training.wait_for_timeout(300)
            faults = axe.run(training, options={"resultTypes": ["violations"]}).response["violations"]
            found += [
                (scheme, way, fault["id"], [node["html"][:150] for node in fault["nodes"][:4]])
                for fault in faults
                if fault["impact"] in ("serious", "critical")
            ]
    assert found == []


def test_enter_in_a_field_starts_nothing(training):
    training.focus(STUDENT)
    training.keyboard.press("Enter")
    training.wait_for_timeout(300)
    assert re.search(r"/training$", training.url)
    assert training.locator("#train").is_visible()


def test_from_an_empty_folder_to_a_finished_run_with_its_curves(training, runs):
    type_into(training, "#max_train_steps", "40")
    type_into(training, "#train_batch_size", "2")
    type_into(training, "#output_dir", "mine")
    training.click("#train")
    training.wait_for_selector("h1:has-text('mine')")
    second = training.context.new_page()
    second.goto(training.url)
    training.wait_for_selector("text=Running", timeout=60_000)
    training.reload()  # in mid-run
    for page in (training, second):
        page.wait_for_selector("text=Finished", timeout=180_000)
        page.wait_for_selector("#charts h3:text-is('layersync_similarity')")
        page.wait_for_selector("#charts canvas >> nth=2")
        page.wait_for_timeout(300)
        names = page.locator("#charts h3").all_inner_texts()
        assert {"layersync_loss", "layersync_similarity"} < set(names[:3])
        assert min(drawn(page)[:3]) > 50
    second.close()
    assert json.loads((runs / "mine" / "run.json").read_text())["steps"] == 40
    training.goto(training.url.partition("/runs")[0] + "/training")
    training.wait_for_selector("table.map")
    assert training.input_value("#max_train_steps") == "40"
    training.click("#train")
    training.wait_for_selector("#error-output_dir p")
    assert "there is mine below" in training.inner_text("#error-output_dir")
    assert training.input_value("#train_batch_size") == "2"


OWN = """
import os
import torch
from layersync_core.families.registry import load_tiny
tiny = load_tiny("dit")
model = tiny.tiny_model()
optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(8):
    model(**tiny.example_inputs(model, 2)).sample.square().mean().backward()
    optimiser.step()
    optimiser.zero_grad()
print("from", os.getcwd(), os.environ["MINE"])
"""


def test_ones_own_command_trains_with_layersync(training, runs, tmp_path):
    (tmp_path / "train.py").write_text(OWN)
    turn(training, "#way-run")
    turn(training, "#layersync_enabled-on")
    training.fill("#layersync_student_block", "1")
    training.fill("#layersync_teacher_block", "3")
    training.fill("[id='page.command']", "python train.py 'two words'")
    training.fill("[id='page.directory']", str(tmp_path))
    training.fill("[name='page.variable']", "MINE")
    training.fill("[name='page.value']", "hf_secret_value")
    type_into(training, "#layersync_status_dir", "own")
    training.click("#train")
    training.wait_for_selector("h1:has-text('own')")
    training.wait_for_selector(f"text=from {tmp_path}", timeout=120_000)
    training.wait_for_selector("text=Finished", timeout=20_000)
    training.wait_for_selector("#charts h3:text-is('layersync_similarity')", timeout=20_000)
    assert "hf_secret_value" not in training.content()
