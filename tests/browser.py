"""A file in Debian's Chromium, which may load nothing that its policy does not let through."""

from __future__ import annotations

import http.server
import shutil
import subprocess
import threading
from pathlib import Path
from typing import NamedTuple

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = "Debian's chromium is not installed"


class Opened(NamedTuple):
    """What became of a page: its elements, what the browser said of it, and what it asked the server for."""

    elements: str
    said: str
    asked: set[str]


def open_page(file: Path, policy: str) -> Opened:
    """Open a file by a server that sends a content security policy."""
    asked: list[str] = []

    class Page(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object, **named: object) -> None:
            super().__init__(*arguments, directory=str(file.parent), **named)  # type: ignore[arg-type]

        def end_headers(self) -> None:
            self.send_header("Content-Security-Policy", policy)
            super().end_headers()

        def log_message(self, *message: object) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{file.name}"
        assert BROWSER is not None
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
        profile = f"--user-data-dir={file.parent / 'profile'}"
        done = subprocess.run([BROWSER, *options, profile, address], capture_output=True, text=True, timeout=120)
        server.shutdown()
    assert done.returncode == 0
    return Opened(done.stdout, done.stderr, {path for path in asked if path != "/favicon.ico"})
