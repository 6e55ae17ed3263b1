"""The page of a measurement in a real browser, which may load and run nothing else."""

from __future__ import annotations

import http.server
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from layersync_core.families.registry import get_adapter
from layersync_core.suggest.probe import Probe
from tests.models import build

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="Debian's chromium is not installed")
def test_the_page_opens_without_network_under_a_strict_policy(tmp_path: Path) -> None:
    model, inputs = build("flux")
    with Probe(model, get_adapter("flux")) as probe:
        model(**inputs)
    probe.findings().write(tmp_path)
    asked: list[str] = []

    class Page(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object, **named: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path), **named)  # type: ignore[arg-type]

        def end_headers(self) -> None:
            self.send_header("Content-Security-Policy", "default-src 'none'")
            super().end_headers()

        def log_message(self, *message: object) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/suggest.html"
        assert BROWSER is not None
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        done = subprocess.run([BROWSER, *options, profile, address], capture_output=True, text=True, timeout=120)
        server.shutdown()
    assert done.returncode == 0
    assert set(asked) <= {"/suggest.html", "/favicon.ico"}
    assert "Content Security Policy" not in done.stderr
    assert done.stdout.count("<rect") > 3 * 9
    assert "transformer_blocks.0" in done.stdout
