"""Program ends that Python's ``atexit`` does not see, and forked copies of a process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from layersync_core.replacing import wrap_once

_ENDS = ("_exit", "execv", "execve")
# A program may end that way because a device hangs, and then values on it never arrive.
_SECONDS = 5


def at_sudden_end(finish: Callable[[], None], forked: Callable[[], None]) -> None:
    """Finish also if a process ends by ``os._exit`` or executes another program, and notify a forked copy.

    Args:
        finish: Called before such an end.
        forked: Called in a forked copy of this process.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forked)
    for name in _ENDS:
        if hasattr(os, name):
            wrap_once(os, name, partial(_ending, finish))


def _ending(finish: Callable[[], None], original: Callable[..., Any], *args: Any) -> Any:
    helper = threading.Thread(target=finish, daemon=True)
    try:
        helper.start()
        helper.join(_SECONDS)
    except RuntimeError:  # the interpreter is shutting down, or cannot start a thread
        pass
    return original(*args)
