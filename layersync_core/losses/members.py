"""The members of what a plugin brings: its own, and those with nearly the name of an optional member."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from layersync_core.errors import ConfigError

# As similar as `activ` is to `active`; names that differ more may well be the author's own members.
_NEAR = 0.87


def members_of(item: Any, base: type) -> set[str]:
    """Return the names of an object's own members, without those inherited from a base or from torch."""
    own = {*getattr(item, "__dict__", {})}
    for kind in type(item).__mro__:
        if kind not in (object, base) and not kind.__module__.startswith("torch."):
            own.update(vars(kind))
    return own


def refuse_near_misses(item: Any, kind: str, base: type, optional: Collection[str]) -> None:
    """Refuse an object with a member that has nearly the name of an optional one, since it would never be called.

    Args:
        item: The object, with a ``name``.
        kind: What messages call it.
        base: The class with the defaults of the optional members.
        optional: The names of the optional members.

    Raises:
        ConfigError: There is such a member.
    """
    own = members_of(item, base)
    for name in sorted(name for name in own if not name.startswith("_")):
        meant = difflib.get_close_matches(name, optional, n=1, cutoff=_NEAR)
        if meant and name not in optional and meant[0] not in own:
            raise ConfigError(
                f"{kind} {item.name} has a member {name}, which would never be called; the optional member is "
                f"called {meant[0]} (rename yours if it is something else)"
            )
