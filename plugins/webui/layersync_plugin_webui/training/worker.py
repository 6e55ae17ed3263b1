"""A helper process that answers questions that need torch, models or plugins.

It is started at the first question and kept. If it ends or takes too long, it is replaced by a new one.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from contextlib import suppress
from typing import IO, Any

COMMAND = [sys.executable, "-m", "layersync_plugin_webui.training.answering"]
PATIENCE = 90.0
"""Seconds for an answer: torch, diffusers and a hub's config may all be in it."""


class WorkerError(Exception):
    """There is no answer; the one-line message says why."""


class Worker:
    """Asks the process.

    Args:
        command: The command that starts it.
        patience: Seconds for an answer.
    """

    def __init__(self, command: list[str] | None = None, patience: float = PATIENCE) -> None:
        self._command, self._patience = command or COMMAND, patience
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._fields: dict[str, Any] | None = None

    def fields(self) -> dict[str, Any]:
        """Return all settings.

        Raises:
            WorkerError: As in ``ask``.
        """
        if self._fields is None:
            self._fields = self.ask("fields")
        return self._fields

    def ask(self, what: str, **more: Any) -> dict[str, Any]:
        """Return an answer.

        Args:
            what: ``fields``, ``model`` or ``check``.
            more: The question's arguments.

        Raises:
            WorkerError: There is no answer, or the process ended or took too long.
        """
        with self._lock:
            if self._process is None or not self._process.is_there():
                self._end()
                self._process = _Process(self._command)
                weakref.finalize(self, self._process.end)
            try:
                answer = self._process.ask(json.dumps({"ask": what, **more}), self._patience)
            except WorkerError:
                self._end()
                raise
        if "error" in answer:
            raise WorkerError(str(answer["error"]))
        found: dict[str, Any] = answer["answer"]
        return found

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None


class _Process:
    def __init__(self, command: list[str]) -> None:
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the process is)
        try:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C in the terminal goes to the page, which ends this process
            )
        except OSError as error:
            self._said.close()
            raise WorkerError(f"{command[0]} cannot be started: {error.strerror or error}") from None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._answers.put(line)
        self._answers.put("")

    def is_there(self) -> bool:
        return self._child.poll() is None

    def ask(self, question: str, patience: float) -> dict[str, Any]:
        assert self._child.stdin is not None
        started = time.monotonic()
        with suppress(OSError):  # it has ended, which reading will show
            self._child.stdin.write(question + "\n")
            self._child.stdin.flush()
        try:
            line = self._answers.get(timeout=patience)
            answer: dict[str, Any] = json.loads(line)
        except queue.Empty:
            took = time.monotonic() - started
            raise WorkerError(f"no answer after {took:.0f} seconds; the code of a model or a plugin hangs") from None
        except ValueError:
            raise WorkerError(f"the process that looks at models ended: {self._last_words()}") from None
        return answer

    def _last_words(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(5)
        self._said.seek(max(0, self._said.seek(0, 2) - 4000))
        lines = self._said.read().decode("utf-8", "replace").split("\n")
        printed = [line.strip() for line in lines if line.strip()]
        return printed[-1][:500] if printed else f"exit code {self._child.returncode}"

    def end(self) -> None:
        self._child.kill()
        self._child.wait()
        self._reader.join(1)
        # Its own child processes may still hold its end of the pipe.
        pipes = [self._child.stdin, self._said] + ([] if self._reader.is_alive() else [self._child.stdout])
        for pipe in pipes:
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
