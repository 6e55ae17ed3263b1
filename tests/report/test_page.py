"""The report of a run: what is in it, and that nothing in it does anything."""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from layersync_core import Arm, Picture, Report, Series, render_report
from layersync_core.report.chart import chart
from layersync_core.report.contents import Point
from layersync_core.report.facts import MASK, command_of, settings_of_run
from layersync_core.report.page import CHARTS, POLICY
from tests.browser import BROWSER, MISSING, open_page

EVIL = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>\u202e\x00\n]]>--></style></svg>"
RECORD = {
    "arm": "layersync",
    "given": {"seed": 3, "layersync_lambda": "0.5", "output_dir": "mine", "prompt": "a b"},
    "config": {"seed": 3, "layersync_lambda": "0.5", "rank": None},
    "family": "dit",
    "model": {"class": "DiTTransformer2DModel", "weights": 1234567, "trained_weights": 12},
    "blocks": [{"student": "block 2 of 8 (blocks.1)", "teacher": "block 5 of 8 (blocks.4)"}],
    "versions": {"torch": "2.9.0"},
    "metrics": {"loss": 1.0, "held_out_loss": 0.625},
}


def picture() -> bytes:
    """Return a red PNG of one pixel."""

    def piece(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\x00\xff\x00\x00")
    return b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", head) + piece(b"IDAT", body) + piece(b"IEND", b"")


def made(**more: Any) -> Report:
    rows = [{"step": step, "loss": 2 / step, "layersync_similarity": 0.5 + step / 100} for step in range(1, 11)]
    report = Report(
        name="first",
        state="Finished",
        record=RECORD,
        arms=[Arm("", Series.of_rows(rows))],
        pictures=[Picture("samples.png", "image/png", picture(), 10)],
        began=1_700_000_000,
        seconds=3723.4,
        total_steps=10,
    )
    return replace(report, **more)


class Elements(HTMLParser):
    """The elements and attributes of a page, and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


class TestContent:
    def test_it_says_what_when_how_long_and_how_it_ended(self) -> None:
        text = Elements(render_report(made())).text
        for said in ("first", "Finished", "step 10 of 10", "2023-11-1", "1 h 2 min", "DiTTransformer2DModel"):
            assert said in text
        for said in ("1,234,567", "block 2 of 8 (blocks.1)", "block 5 of 8 (blocks.4)", "0.5", "2.9.0", "0.625"):
            assert said in text
        assert "layersync train --seed 3 --layersync_lambda 0.5 --prompt 'a b'" in text

    def test_curves_have_axes_their_last_and_least_values_and_a_table(self) -> None:
        page = render_report(made())
        text = Elements(page).text
        assert page.count("<polyline") == 2
        assert "optimiser step" in text
        assert "last 0.2, lowest 0.2 at step 10" in text
        assert "2 (step 1)" in text
        assert text.index("loss") < text.index("layersync_similarity")

    def test_two_arms_over_each_other_and_what_the_trainer_says_of_them(self) -> None:
        arms = [
            Arm(name, Series.of_rows([{"step": 1, "loss": 1}, {"step": 2, "loss": 3}])) for name in ("layersync", "b")
        ]
        said = {"arms": ["layersync", "b"], "rows": [["loss on held-out data", "0.1", "0.2"]], "note": "One run."}
        page = render_report(made(arms=arms, comparison=said))
        assert page.count('class="line0"') == page.count('class="line1"') == 2  # in the chart and in its legend
        assert "stroke-dasharray" in page
        text = Elements(page).text
        assert "loss on held-out data" in text
        assert "One run." in text
        assert "Arm" in text

    @pytest.mark.parametrize(("preset", "weight"), [("lora", "0.002"), (None, "0.2"), ([1], "0.2")])
    def test_the_weight_of_a_preset(self, preset: Any, weight: str) -> None:
        page = render_report(made(record={**RECORD, "config": {"layersync_preset": preset}}))
        assert f"<dt>LayerSync Weight</dt><dd>{weight}</dd>" in page

    def test_another_language(self) -> None:
        page = render_report(made(), lambda text: f"«{text}»", "hi")
        assert '<html lang="hi">' in page
        assert "«What was trained»" in page
        assert "«LayerSync Student Block»" in page
        assert "«optimiser step»" in page

    def test_long_curves_are_thinned_and_keep_their_figures(self) -> None:
        rows = [{"step": step, "loss": 9.0 if step == 77_777 else 1.0} for step in range(100_001)]
        page = render_report(made(arms=[Arm("", Series.of_rows(rows))]))
        assert len(page) < 60_000
        assert "9 (step 77777)" in page
        assert Series.of_rows(rows)["loss"].thinned()[-1].step == 100_000

    def test_many_metrics_are_no_endless_page(self) -> None:
        rows = [{"step": 1, **{f"metric {number}": 1.0 for number in range(500)}}]
        page = render_report(made(arms=[Arm("", Series.of_rows(rows))]))
        assert page.count("<circle") == CHARTS
        assert "not drawn: 484" in page

    def test_a_run_of_which_nothing_is_known(self) -> None:
        page = render_report(Report("empty", "No sign of life"))
        assert "No sign of life" in page
        assert page.count("<h2>") == 0


class TestSecrets:
    @pytest.mark.parametrize("key", ["hub_token", "wandb_api_key", "password", "my-secret", "AUTH", "aws.credentials"])
    def test_they_are_masked(self, key: str) -> None:
        record = {"given": {key: "hunter2", "deep": {"list": [{key: "hunter2"}]}}, "config": {key: "hunter2"}}
        page = render_report(made(record=record))
        assert "hunter2" not in page
        assert MASK in page

    def test_a_login_in_an_address(self) -> None:
        assert "hunter2" not in render_report(made(record={"given": {"proxy": "https://me:hunter2@host/x"}}))

    def test_tokens_that_are_no_secret_stay(self) -> None:
        given = {"layersync_tokens": "all", "layersync_generated_tokens": 16}
        assert settings_of_run({"given": given}, "given") == [
            ("layersync_generated_tokens", "16"),
            ("layersync_tokens", "all"),
        ]

    def test_no_variable_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hunter2hunter2")
        assert "hunter2" not in render_report(made(record={"given": {"source": "x?key=hunter2hunter2"}}))


class TestHostile:
    def test_names_and_values_stay_text(self) -> None:
        record = json.loads(json.dumps(RECORD).replace('"dit"', json.dumps(EVIL)))
        record |= {"versions": {EVIL: EVIL}, "given": {EVIL: EVIL}, "config": {EVIL: [EVIL]}, "objective": EVIL}
        record["metrics"] = {EVIL: 1.0}
        report = made(
            name=EVIL,
            record=record,
            arms=[Arm(EVIL, Series.of_rows([{"step": 1, EVIL: 1.0}])), Arm("b", {})],
            pictures=[Picture(EVIL, EVIL, b"<svg onload=alert(1)>")],
            comparison={"arms": [EVIL], "rows": [[EVIL, EVIL]], "note": EVIL},
            notes=[EVIL],
        )
        found = Elements(page := render_report(report))
        assert "script" not in found.tags
        assert found.tags.count("img") == found.tags.count("style") == 1
        assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("href", "style")]
        assert "alert(1)" in found.text
        assert "\u202e" not in page
        assert "\x00" not in page

    @pytest.mark.parametrize("value", [None, 3, "x", [], [1], {}, {"class": {}}, True, 1e308, [[[]]], "\ud800"])
    def test_a_record_may_hold_anything(self, value: Any) -> None:
        keys = (
            "given",
            "config",
            "family",
            "model",
            "blocks",
            "versions",
            "metrics",
            "data",
            "steps",
            "adapter",
            "processes",
        )
        for key in keys:
            render_report(made(record={**RECORD, key: value})).encode()
        render_report(
            made(record=dict.fromkeys(keys, value), comparison=dict.fromkeys(("arms", "rows", "note"), value))
        ).encode()

    def test_times_and_steps_of_no_clock(self) -> None:
        render_report(made(began=1e300, seconds=-1e300, total_steps=10**30))
        render_report(made(began=-5.0, seconds=math.inf))
        assert Series.of([(10**400, 1.0), (1, 1.0)]).points == [Point(1, 1.0)]

    @pytest.mark.parametrize(
        "values",
        [
            [1.0],
            [0.0, 0.0],
            [1e308, -1e308],
            [1.7e308, 1.7e308],
            [-1.7e308, -1.7e308],
            [5e-324, 0.0],
            [1.0, 1.0000000000000002],
            [1e300, 1e300 * (1 + 1e-15)],
            [math.nan, 1.0, math.inf, 2.0, 3.0, -math.inf],
            [math.nan],
            [],
        ],
    )
    def test_any_values_are_drawn_within_the_picture(self, values: list[float]) -> None:
        line = Series.of(enumerate(values))
        drawn = chart("label", [line.points], "step")
        assert "nan" not in drawn
        assert "inf" not in drawn
        places = [
            float(number) for points in re.findall(r'points="([^"]+)"', drawn) for number in re.split("[ ,]", points)
        ]
        assert all(0 <= place <= 480 for place in places)
        assert 'y="-' not in drawn
        render_report(made(arms=[Arm("", {"loss": line})]))

    def test_lines_are_interrupted_where_there_is_no_number(self) -> None:
        drawn = chart(
            "", [Series.of([(1, 1.0), (2, 2.0), (3, math.nan), (4, 1.0), (6, None), (7, 2.0), (8, 1.0)]).points], ""
        )
        assert (drawn.count("<polyline"), drawn.count("<circle")) == (2, 1)


class TestCommand:
    def test_it_repeats_the_run_elsewhere(self) -> None:
        given = {
            "output_dir": "x y",
            "seed": 3,
            "compare": True,
            "layersync_pairs": [[2, 5]],
            "resume_from_checkpoint": "a",
        }
        assert command_of({"given": given}) == "layersync train --seed 3 --compare true --layersync_pairs '[[2, 5]]'"
        assert "was resumed" in render_report(made(record={"given": given}))

    def test_of_several_processes(self) -> None:
        assert command_of({"given": {"seed": 1}, "processes": 2}) == (
            "accelerate launch --num_processes 2 -m layersync_core train --seed 1"
        )

    def test_of_a_record_without_it(self) -> None:
        assert command_of({}) == ""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason=MISSING)
def test_a_browser_lets_it_load_nothing_and_shows_all_of_it(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(render_report(made(name=EVIL)), encoding="utf-8")
    page = open_page(file, POLICY)
    assert page.asked == {"/report.html"}
    assert "Content Security Policy" not in page.said
    assert page.elements.count("<polyline") == 2
    # A stricter policy takes its style away and its pictures, and nothing else.
    bare = open_page(file, "default-src 'none'")
    assert bare.asked == {"/report.html"}
    assert bare.elements.count("<polyline") == 2
    assert "block 2 of 8" in bare.elements
