"""``layersync suggest`` as a separate process, whose state can be queried."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from layersync_plugin_webui.runs.files import read_part

COMMAND = [sys.executable, "-m", "layersync_core", "suggest"]
LOG = "suggest.log"
_TAIL = 4000


@dataclass(frozen=True)
class State:
    """The state of a measurement.

    Attributes:
        model: The measured model.
        goes_on: Whether it is still running.
        code: Its exit code.
        line: The last line that it printed.
    """

    model: str
    goes_on: bool
    code: int | None
    line: str


class Measurement:
    """At most one measurement at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._model, self._log = "", Path()

    def start(self, model: str, family: str, folder: Path) -> None:
        """Start one unless one is running.

        Args:
            model: Folder, config file, hub name or family.
            family: The family, for models whose config does not determine it.
            folder: Where it writes.

        Raises:
            OSError: The folder cannot be written, or the process cannot be started.
        """
        with self._lock:
            if self._child is not None and self._child.poll() is None:
                return
            folder.mkdir(parents=True)
            command = [*COMMAND, f"--output_dir={folder}", *([f"--family={family}"] if family else []), "--", model]
            with (folder / LOG).open("wb") as log:
                self._child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
            self._model, self._log = model, folder / LOG

    def stop(self) -> None:
        """End the running one."""
        with self._lock:
            if self._child is not None and self._child.poll() is None:
                self._child.kill()
                self._child.wait()

    def state(self) -> State | None:
        """Return the state of the latest one; None if there was none."""
        if self._child is None:
            return None
        code = self._child.poll()
        return State(self._model, code is None, code, self._line())

    def _line(self) -> str:
        try:
            data, _ = read_part(self._log, -_TAIL, _TAIL)
        except OSError:
            return ""
        lines = data.decode("utf-8", "replace").replace("\r", "\n").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
