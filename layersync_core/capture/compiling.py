"""Compiler options without which a block can't be hooked, checkpointed and compiled at once."""

from __future__ import annotations

from layersync_core import _compat

_OPTIONS = {
    # A hook that stores is a side effect. Eager checkpointing repeats it when it recomputes the block in backward.
    # Compiled code cannot, so the compiler refuses the block. With this option it skips the repetition, which is right
    # for our hooks: they store nothing during backward.
    "skip_fwd_side_effects_in_bwd_under_checkpoint": True,
    # Blocks of one class share their code. Unless the compiler also guards on hooks, a block inside a compiled module
    # runs what was compiled for an earlier block without hooks, and its own hooks are never called.
    "skip_nnmodule_hook_guards": False,
}

_users = 0
_before: dict[str, bool] = {}


def let_hooks_compile() -> None:
    """Make this thread's compiler accept our hooks and guard on them, where this version of torch can."""
    global _users
    config = _compat.compiler_settings()
    for option, value in _OPTIONS.items():
        if hasattr(config, option):
            if _users == 0:
                _before[option] = getattr(config, option)
            setattr(config, option, value)  # again for each caller: the setting is per thread
    _users += 1


def stop_hooks_compiling() -> None:
    """Restore what ``let_hooks_compile`` set, when the last of its callers is done."""
    global _users
    config = _compat.compiler_settings()
    _users -= 1
    if _users == 0:
        for option, value in _before.items():
            setattr(config, option, value)
        _before.clear()
