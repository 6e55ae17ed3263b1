"""A regularizer that is enabled, with what it says beside the protocol and what it leaves out filled in."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from layersync_core.entrypoints import describe_failure, foreign
from layersync_core.errors import ConfigError, LayerSyncError
from layersync_core.metrics import check_term
from layersync_core.protocol import Block, Regularizer, RegularizerBase, States, Term

_OPTIONAL = ("module", "schedule", "active", "begin", "describe")
# As alike as `activ` is to `active`; further away stands what somebody may well call a member of their own.
_NEAR = 0.87


@dataclass(frozen=True)
class Enabled:
    """A regularizer of one attachment.

    Attributes:
        item: The regularizer itself.
        layers: The layers it wants.
        module: Its trainable part, or None.
        active: As in ``RegularizerBase``.
        begin: As in ``RegularizerBase``.
        describe: As in ``RegularizerBase``.
        uses_steps: What it computes depends on the optimiser step, as far as it says.
    """

    item: Regularizer
    layers: set[int]
    module: nn.Module | None
    active: Callable[[int], bool]
    begin: Callable[[nn.Module], None]
    describe: Callable[[], list[str]]
    uses_steps: bool

    @classmethod
    def of(cls, item: Regularizer, blocks: Sequence[Block]) -> Enabled:
        """Ask a regularizer for its layers, and take what else it says.

        Raises:
            ConfigError: It has a member that is nearly one of the optional ones, which nobody would call.
            LayerSyncError: It asks for a layer that the model does not have.
        """
        _refuse_near_misses(item)
        try:
            with foreign():
                layers = set(item.layers(blocks))
        except LayerSyncError:
            raise
        except Exception as error:
            raise ConfigError(f"regularizer {item.name} cannot say its layers: {describe_failure(error)}") from error
        unknown = sorted(map(str, layers - set(range(len(blocks)))))
        if unknown:
            raise LayerSyncError(
                f"regularizer {item.name} asks for layer {', '.join(unknown)}; "
                f"the layers of this model are 0 to {len(blocks) - 1}"
            )
        # What is left out is what the base does, with the schedule that this one has.
        base = RegularizerBase()
        base.schedule = getattr(item, "schedule", None)
        own = _members(item)
        given = cast("RegularizerBase", item)
        return cls(
            item,
            layers,
            getattr(item, "module", None),
            given.active if hasattr(item, "active") else base.active,
            given.begin if hasattr(item, "begin") else base.begin,
            given.describe if hasattr(item, "describe") else base.describe,
            base.schedule is not None or ("active" in own and "schedule" not in own),
        )

    @property
    def pairs(self) -> Sequence[Any]:
        """Its resolved pairs, where the loss is one of pairs."""
        return getattr(self.item, "pairs", ())

    def term(self, states: States, step: int) -> Term | None:
        """Return this step's term, or None.

        Raises:
            LayerSyncError: It returned something else.
        """
        term = self.item.compute(states, step)
        if term is None:
            return None
        check_term(term, f"regularizer {self.item.name}")
        return term


def _members(item: Regularizer) -> set[str]:
    """Return the names of what a regularizer has of its own, without what it inherits from the base or from torch."""
    own = {*getattr(item, "__dict__", {})}
    for kind in type(item).__mro__:
        if kind not in (object, RegularizerBase) and not kind.__module__.startswith("torch."):
            own.update(vars(kind))
    return own


def _refuse_near_misses(item: Regularizer) -> None:
    own = _members(item)
    for name in sorted(name for name in own if not name.startswith("_")):
        meant = difflib.get_close_matches(name, _OPTIONAL, n=1, cutoff=_NEAR)
        if meant and name not in _OPTIONAL and meant[0] not in own:
            raise ConfigError(
                f"regularizer {item.name} has a member {name}, which nobody would ask for; the optional member is "
                f"called {meant[0]} (rename yours where it is something else)"
            )
