"""Run every cell; ``--write`` writes the page."""

from __future__ import annotations

import sys

from tests.regimes.page import PAGE, run_all, silent, write

if __name__ == "__main__":
    tables = run_all()
    if wrong := silent(tables):
        sys.exit("\n".join(wrong))
    if "--write" in sys.argv:
        PAGE.write_text(write(tables))
    else:
        print(write(tables))
