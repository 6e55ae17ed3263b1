"""Answer questions, one line of JSON each, until standard input ends."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import IO, Any

from layersync_core import LayerSyncError
from layersync_plugin_webui.training.answering import schema
from layersync_plugin_webui.training.answering.schema import one_line


def main() -> None:
    """Read questions from standard input, and write answers to the process's original standard output."""
    # Output that models and plugins print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    questions: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, questions), daemon=True).start()
    while True:
        line = questions.get()
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


def _read(source: IO[str], questions: queue.SimpleQueue[str]) -> None:
    for line in source:
        questions.put(line)
    # The page is gone, so don't wait for whatever a model's code is doing.
    os._exit(0)


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    try:
        if question["ask"] == "fields":
            return {"answer": schema.everything()}
        from layersync_plugin_webui.training.answering import checks, facts

        if question["ask"] == "model":
            return {"answer": facts.of(question["way"], question["model"], question["family"])}
        return {"answer": checks.check(question["way"], question["settings"], question["model"], question["family"])}
    except LayerSyncError as error:
        return {"error": one_line(str(error))}
    except Exception as error:  # third-party modules may raise anything
        return {"error": one_line(f"{type(error).__name__}: {error}")}


if __name__ == "__main__":
    main()
