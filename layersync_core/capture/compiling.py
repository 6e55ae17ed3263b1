"""What the compiler must be told, so that a block may be hooked, checkpointed and compiled at once."""

from __future__ import annotations

from layersync_core import _compat

_OPTIONS = {
    # A hook that stores is a side effect. Eager checkpointing repeats it when it recomputes the block in backward,
    # which compiled code cannot, so the compiler refuses the block. With this option it leaves the repetition out,
    # which is right for our hooks: they store nothing during backward.
    "skip_fwd_side_effects_in_bwd_under_checkpoint": True,
    # Blocks of one class share their code. Unless the compiler compares hooks as well, a block that it finds inside of
    # a compiled module runs what was compiled for an earlier one without hooks, and its own are never called.
    "skip_nnmodule_hook_guards": False,
}

_users = 0
_before: dict[str, bool] = {}


def let_hooks_compile() -> None:
    """Let the compiler of this thread accept our hooks and tell blocks with them from others, where its torch can."""
    global _users
    config = _compat.compiler_settings()
    for option, value in _OPTIONS.items():
        if hasattr(config, option):
            if _users == 0:
                _before[option] = getattr(config, option)
            setattr(config, option, value)  # again for each caller: the setting is a thread's own
    _users += 1


def stop_hooks_compiling() -> None:
    """Set back what ``let_hooks_compile`` set, when the last of its callers is done."""
    global _users
    config = _compat.compiler_settings()
    _users -= 1
    if _users == 0:
        for option, value in _before.items():
            setattr(config, option, value)
        _before.clear()
