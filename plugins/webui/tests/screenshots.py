"""Take the pictures for the docs again: ``python -m plugins.webui.tests.screenshots [name …]``.

The runs that they show are made up here, with invented curves and samples. Chinese and Hindi need fonts:
``apt install fonts-wqy-microhei fonts-lohit-deva``.
"""

from __future__ import annotations

import json
import math
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from layersync_core import ProcessRecord
from layersync_plugin_webui.app import PAGES
from layersync_plugin_webui.language import LANGUAGES
from plugins.webui.tests.browser import launch
from plugins.webui.tests.folders import change_record, id_of

FOLDER = Path(__file__).parents[3] / "docs" / "webui"
LARGEST = 150_000
"""Bytes of a picture."""


class Shot(NamedTuple):
    """A picture: its file's name, the address, and how the page is shown.

    Attributes:
        show: What to scroll to, if not the top.
        keys: What to type first, each a selector and a text or "click".
    """

    name: str
    path: str
    language: str = "en"
    scheme: str = "light"
    height: int = 760
    show: str = ""
    wait: str = "#charts canvas"
    keys: Sequence[tuple[str, str]] = ()


PAIR = (
    ("select#family", "dit"),
    ("#layersync_enabled-on + span", "click"),
    ("#layersync_student_block", "2"),
    ("#layersync_teacher_block", "5"),
)

SHOTS = (
    Shot("training", "/training", height=900, wait="#facts details", keys=PAIR[:1]),
    Shot("loss-functions", "/training", height=690, show="#part-losses", wait="#map table", keys=PAIR),
    Shot("loss-functions-zh", "/training", "zh", height=690, show="#part-losses", wait="#map table", keys=PAIR),
    Shot("loss-functions-hi", "/training", "hi", "dark", height=690, show="#part-losses", wait="#map table", keys=PAIR),
    Shot("runs", "/runs"),
    Shot("run", "/runs/{wan}", scheme="dark", height=900),
)


def main(names: Sequence[str]) -> None:
    from playwright.sync_api import sync_playwright

    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as driver:
        runs = Path(temporary) / "trainings"
        ids = make_runs(runs)
        command = [sys.executable, "-m", "layersync_core", "webui", "--runs", str(runs), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                address = next(line.strip() for line in server.stdout or () if line.startswith("http"))
                browser = launch(driver)
                for shot in SHOTS:
                    there = any(shot.path.startswith(page.path) for page in PAGES)
                    if there and (not names or shot.name in names) and _has_fonts(shot.language):
                        take(browser, address, shot, ids)
                browser.close()
            finally:
                server.terminate()


def take(browser: Any, address: str, shot: Shot, ids: dict[str, str]) -> None:
    origin = address.partition("/?")[0]
    context = browser.new_context(viewport={"width": 1200, "height": shot.height}, color_scheme=shot.scheme)
    context.add_cookies([{"name": "layersync-language", "value": shot.language, "url": origin}])
    page = context.new_page()
    page.goto(address)
    page.goto(origin + shot.path.format(**ids))
    for selector, text in shot.keys:
        if text == "click":
            page.click(selector)
        elif selector.startswith("select"):
            page.select_option(selector, text)
        else:
            page.fill(selector, text)
    page.wait_for_selector(shot.wait)
    if shot.path == "/runs":
        for name in ("digits/layersync", "digits/vanilla"):
            page.check(f"#list [type=checkbox][aria-label*='{name}']")
    if shot.show:
        page.eval_on_selector(shot.show, "item => item.scrollIntoView()")
    page.wait_for_timeout(1500)
    path = FOLDER / f"{shot.name}.png"
    page.screenshot(path=str(path))
    context.close()
    print(f"{path}: {path.stat().st_size} bytes, {LANGUAGES[shot.language].title}")


def make_runs(runs: Path) -> dict[str, str]:
    """Write some runs; return the ids in the pictures' addresses."""
    now = time.time()
    wan = _run(runs / "wan-lora", "wan", 2000, 1240, now - 4300, None, (12, 20, 30))
    _run(runs / "digits" / "layersync", "dit", 400, 400, now - 7900, 0, (2, 4, 6))
    _run(runs / "digits" / "vanilla", "dit", 400, 400, now - 8100, 0, None)
    _run(runs / "flux-dreambooth", "flux", 1000, 310, now - 90_000, 1, (8, 16, 57))
    (wan / "train.log").write_text(
        "layersync: WanTransformer3DModel#1 (family wan): student block 12 of 30 (blocks.11), teacher block 20 of 30 "
        "(blocks.19), weight 0.2, gradient accumulation 4 (divided by accelerate)\n"
        + "".join(
            f"step {step}/2000 loss {_loss(step, True) + 0.02 * math.sin(step):.4f} lr 0.0001\n"
            for step in range(1200, 1241, 5)
        )
    )
    (wan / "samples").mkdir()
    for step in (400, 800, 1200):
        (wan / "samples" / f"step-{step:06}.png").write_bytes(digits(noise=0.8 - step / 1600))
    return {"wan": id_of(runs, wan)}


def _run(
    folder: Path, family: str, steps: int, done: int, began: float, code: int | None, pair: tuple[int, int, int] | None
) -> Path:
    folder.mkdir(parents=True)
    keeper = folder.parent if folder.name in ("layersync", "vanilla") else folder  # one process trains both arms
    record = ProcessRecord(keeper, "train", steps)
    record.begin(beat=False)
    took = 3.4 * done
    if code is not None:
        record.end(code)
        change_record(keeper, since=began, until=began + took)
    else:
        change_record(keeper, since=time.time() - took)
        began = time.time() - took
    chance = random.Random(folder.name)
    with (folder / "layersync_metrics.jsonl").open("w") as file:
        for step in range(10, done + 1, 10):
            row = {
                "step": step,
                "time": began + 3.4 * step,
                "loss": _loss(step, pair is not None) + chance.gauss(0, 0.02),
            }
            if pair:
                similarity = 0.9 - 0.5 * math.exp(-step / 250) + chance.gauss(0, 0.004)
                row |= {"layersync_loss": -0.2 * similarity, "layersync_similarity": similarity}
                row |= {"layersync_grad_ratio": 0.05 + 0.2 * math.exp(-step / 300) + chance.gauss(0, 0.004)}
            file.write(json.dumps(row) + "\n")
    content: dict[str, Any] = {"family": family, "steps": steps, "seed": 0}
    if pair:
        student, teacher, blocks = pair
        described = {"student": f"block {student} of {blocks}", "teacher": f"block {teacher} of {blocks}"}
        content |= {"blocks": [described], "config": {"layersync_lambda": 0.2}}
    (folder / "run.json").write_text(json.dumps(content))
    os.utime(folder, (began, began))
    return folder


def _loss(step: int, helped: bool) -> float:
    return 0.28 + 0.75 * math.exp(-step / (110 if helped else 140))


def digits(noise: float) -> bytes:
    """Return scikit-learn's digits with noise over them, as a PNG."""
    from sklearn.datasets import load_digits

    images, chance = load_digits().images[:40], random.Random(0)
    rows = []
    for line in range(4):
        for row in range(8 * 6):
            values = (images[10 * line + at][row // 6][column] for at in range(10) for column in range(8))
            grey = (min(max((1 - noise) * value / 16 + noise * chance.random(), 0), 1) for value in values)
            rows.append(b"\0" + b"".join(bytes([int(255 * value)]) * 6 for value in grey))
    return png(10 * 8 * 6, rows)


def png(width: int, rows: Sequence[bytes]) -> bytes:
    """Return a grey picture.

    Args:
        width: Width in pixels.
        rows: The rows, each a zero and one byte per pixel.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, len(rows), 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _has_fonts(language: str) -> bool:
    try:
        found = subprocess.run(["fc-list", f":lang={language}"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        found = b"unknown"
    if not found:
        print(f"no picture in {LANGUAGES[language].title}: no font; apt install fonts-wqy-microhei fonts-lohit-deva")
    return bool(found)


if __name__ == "__main__":
    main(sys.argv[1:])
