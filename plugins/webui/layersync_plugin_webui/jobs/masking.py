"""Mask values of environment variables wherever they might be shown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

MASK = "••••"

_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|(API|ACCESS|PRIVATE)_?KEY", re.IGNORECASE)
_SHORTEST, _SHORTEST_OF_OURS = 4, 8
"""Least length of a value that is masked; shorter ones are parts of many words."""


def masked(text: str, values: Iterable[str]) -> str:
    """Return a text in which the values of variables are masked.

    Args:
        text: The text.
        values: Values of variables that were given for a run; the page's own that look like secrets are added.
    """
    ours = [value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= _SHORTEST_OF_OURS]
    hidden = {value for value in values if len(value) >= _SHORTEST} | set(ours)
    for value in sorted(hidden, key=len, reverse=True):  # one may be a part of another
        text = text.replace(value, MASK)
    return text
