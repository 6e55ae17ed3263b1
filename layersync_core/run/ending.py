"""Ends of a program that Python's ``atexit`` does not see, and copies of a process that a fork makes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from layersync_core.replacing import wrap_once

_ENDS = ("_exit", "execv", "execve")
# What a program ends that way for may be a device that hangs, and figures on it never come.
_SECONDS = 5


def at_sudden_end(finish: Callable[[], None], forked: Callable[[], None]) -> None:
    """Finish also where a process ends by ``os._exit`` or becomes another program, and tell a forked copy.

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
    except RuntimeError:  # the interpreter is closing, or may start no thread
        pass
    return original(*args)
