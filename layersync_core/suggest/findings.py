"""What was measured, and what follows from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from layersync_core.suggest import files, text
from layersync_core.suggest.figures import Figures
from layersync_core.suggest.verdict import judge

VERSION = 1
_RUNS = "skip_runs", "between"


@dataclass
class Findings(Figures):
    """Figures with the pairs that they support."""

    def content(self) -> dict[str, Any]:
        """Return what ``suggest.json`` holds."""
        recommended, verdict = judge(self)
        values = {name: value for name, value in vars(self).items() if name not in ("described", *_RUNS)}
        return {
            "version": VERSION,
            "blocks": [block.path for block in self.described],
            **values,
            **{name: [asdict(run) for run in getattr(self, name)] for name in _RUNS},
            "recommended": [asdict(pair) for pair in recommended],
            "verdict": asdict(verdict),
        }

    def lines(self) -> list[str]:
        """Return the recommended pairs with their reasons, and the verdict, as lines for a terminal."""
        return text.lines_of(self, self.content())

    def write(self, output_dir: str | Path = "layersync-suggest") -> list[str]:
        """Write ``suggest.json``, ``suggest.html`` and, where matplotlib is installed, ``suggest.png``.

        Returns:
            Lines about the files, for a terminal.

        Raises:
            ConfigError: The folder cannot be written.
        """
        return files.write(self, self.content(), Path(output_dir))
