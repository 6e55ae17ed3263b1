"""A hub on this machine, the environment of a program that uses it, and a cache as the library fills it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What a served hub holds, and what it was asked for.

    Attributes:
        repositories: ``owner/name`` -> file -> text.
        gated: Repositories whose files need a login.
        status: Answers everything with this status.
        hangs: Seconds before every answer.
        asked: ``METHOD owner/name/file`` of the requests for files of repositories.
    """

    repositories: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    gated: frozenset[str] = frozenset()
    status: int | None = None
    hangs: float = 0.0
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for a request."""
        name, _, file = path.lstrip("/").partition("/resolve/main/")
        if not file:
            return 404, {}, b""  # the library asks for some things of its own, and lives without them
        self.asked.append(f"{method} {name}/{file}")
        time.sleep(self.hangs)
        if self.status is not None:
            return self.status, {}, b""
        if name not in self.repositories:
            return 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b""
        if file not in self.repositories[name]:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b""
        if name in self.gated:
            return 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to {name} is restricted"}, b""
        body = self.repositories[name][file].encode()
        return 200, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}, body


@contextmanager
def served(hub: Hub) -> Iterator[Hub]:
    """Serve a hub on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            status, headers, body = hub.answer(self.command, self.path)
            try:
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)
            except BrokenPipeError:  # a client that no longer waits
                pass

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def environment(home: Path, url: str, **variables: str) -> dict[str, str]:
    """Return the variables of a process whose hub is at ``url`` and whose cache lies in ``home``."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "HUGGING")) and not key.lower().endswith("_proxy") and key[-7:] != "OFFLINE"
    }
    return {**inherited, "HF_HOME": str(home), "HF_ENDPOINT": url, "HF_HUB_DISABLE_TELEMETRY": "1", **variables}


def fill_cache(home: Path, name: str, files: Mapping[str, str]) -> None:
    """Put files of a repository, path -> text, into the cache in ``home``."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for file, text in files.items():
        path = repository / "snapshots" / COMMIT / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
