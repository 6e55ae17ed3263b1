"""A filled-in form as a browser sends it, and a stand-in for the helper process."""

from __future__ import annotations

from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from layersync_plugin_webui.jobs import about, command_of_run
from layersync_plugin_webui.training.answering import schema
from layersync_plugin_webui.training.fields import Fields

ORIGIN = {"Origin": "http://127.0.0.1:8765"}


@cache
def everything() -> dict[str, Any]:
    return schema.everything()


def fields() -> Fields:
    return Fields(everything())


class FakeWorker:
    """Knows every field, gives prepared answers about checks and models, and records the questions."""

    def __init__(self, **answers: Any) -> None:
        self.described, self.asked = everything(), []
        self.answers: dict[str, Any] = {"check": {"error": "", "at": "", "warnings": [], "in_force": {}}, **answers}

    def fields(self) -> dict[str, Any]:
        return self.described

    def ask(self, what: str, **more: Any) -> dict[str, Any]:
        self.asked.append((what, more))
        answer = self.answers[what]
        if isinstance(answer, Exception):
            raise answer
        return answer


class FakeJobs:
    """Starts nothing, and records what it was asked to start."""

    may_start = True

    def __init__(self, runs: Path) -> None:
        self.runs, self.started = runs, []
        self.error: Exception | None = None

    def why_not(self) -> str | None:
        return None

    def train(self, *told: Any) -> Path:
        return self._start("train", *told)

    def run(self, name: str, command: str, settings: Any, *told: Any) -> Path:
        with about("command"):
            command_of_run(settings, command)
        return self._start("run", name, command, settings, *told)

    def _start(self, way: str, name: str, *told: Any) -> Path:
        if self.error:
            raise self.error
        self.started.append((way, name, *told))
        (self.runs / name).mkdir()
        (self.runs / name / "layersync_metrics.jsonl").touch()
        return self.runs / name


def post(reader: Any, path: str = "/training", pairs: Any = (), **texts: str) -> Any:
    sent = [*pairs, *texts.items()]
    content = urlencode(sent).encode()
    return reader.post(path, content=content, headers={**ORIGIN, "Content-Type": "application/x-www-form-urlencoded"})


class Controls(HTMLParser):
    """Reads the controls of a form: what a browser would send, and the ids of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sent: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.attributes: dict[str, dict[str, str | None]] = {}
        self._select = self._area = ""
        self._text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        has = dict(attrs)
        name = has.get("name") or ""
        if has.get("id"):
            self.ids.append(str(has["id"]))
            self.attributes[str(has["id"])] = has
        if tag == "input" and name and (has.get("type") != "radio" or "checked" in has):
            self.sent.append((name, has.get("value") or ""))
        if tag == "select":
            self._select = name
        if tag == "option" and self._select and "selected" in has:
            self.sent.append((self._select, has.get("value") or ""))
        if tag == "textarea":
            self._area, self._text = name, ""

    def handle_data(self, data: str) -> None:
        if self._area:
            self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            self.sent.append((self._area, self._text.removeprefix("\n")))
            self._area = ""
        if tag == "select":
            self._select = ""

    def value(self, name: str) -> str:
        return next((value for key, value in self.sent if key == name), "")
