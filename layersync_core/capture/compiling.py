"""What the compiler must be told, so that a block may be hooked and checkpointed at once."""

from __future__ import annotations

from layersync_core import _compat

# A hook that stores is a side effect. Eager checkpointing repeats it when it recomputes the block in backward, which
# compiled code cannot, so the compiler refuses the block. With this option it leaves the repetition out, which is
# right for our hooks: they store nothing during backward.
_OPTION = "skip_fwd_side_effects_in_bwd_under_checkpoint"

_users = 0
_before = False


def allow_checkpointed_hooks() -> None:
    """Let the compiler of this thread accept our hooks on checkpointed blocks; without a torch that can, it refuses."""
    global _users, _before
    config = _compat.compiler_settings()
    if hasattr(config, _OPTION):
        if _users == 0:
            _before = getattr(config, _OPTION)
        setattr(config, _OPTION, True)  # again for each caller: the setting is a thread's own
    _users += 1


def disallow_checkpointed_hooks() -> None:
    """Set back what ``allow_checkpointed_hooks`` set, when the last of its callers is done."""
    global _users
    config = _compat.compiler_settings()
    _users -= 1
    if _users == 0 and hasattr(config, _OPTION):
        setattr(config, _OPTION, _before)
