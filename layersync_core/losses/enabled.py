"""An enabled regularizer, with its optional members filled in where it leaves them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from layersync_core.entrypoints import describe_failure, foreign
from layersync_core.errors import ConfigError, LayerSyncError
from layersync_core.losses.members import members_of, refuse_near_misses
from layersync_core.metrics import check_term
from layersync_core.protocol import Block, Regularizer, RegularizerBase, States, Term

_OPTIONAL = ("module", "schedule", "active", "begin", "describe")


@dataclass(frozen=True)
class Enabled:
    """A regularizer of one attachment.

    Attributes:
        item: The regularizer itself.
        layers: The layers it needs.
        module: Its trainable part, or None.
        active: As in ``RegularizerBase``.
        begin: As in ``RegularizerBase``.
        describe: As in ``RegularizerBase``.
        uses_steps: It declares that what it computes depends on the optimiser step.
    """

    item: Regularizer
    layers: set[int]
    module: nn.Module | None
    active: Callable[[int], bool]
    begin: Callable[[nn.Module], None]
    describe: Callable[[], list[str]]
    uses_steps: bool

    @classmethod
    def of(cls, item: Regularizer, blocks: Sequence[Block] | None) -> Enabled:
        """Ask a regularizer for its layers, and read its optional members.

        Args:
            item: The regularizer.
            blocks: Every block of the model; None while they are not known, in which case it isn't asked for layers.

        Raises:
            ConfigError: It has a member with nearly the name of an optional one, which would never be called.
            LayerSyncError: It asks for a layer that the model does not have.
        """
        refuse_near_misses(item, "regularizer", RegularizerBase, _OPTIONAL)
        layers: set[int] = set()
        try:
            with foreign():
                layers = set() if blocks is None else set(item.layers(blocks))
        except LayerSyncError:
            raise
        except Exception as error:
            raise ConfigError(f"regularizer {item.name} cannot say its layers: {describe_failure(error)}") from error
        unknown = sorted(map(str, layers - set(range(len(blocks or ())))))
        if unknown:
            raise LayerSyncError(
                f"regularizer {item.name} asks for layer {', '.join(unknown)}; "
                f"the layers of this model are 0 to {len(blocks or ()) - 1}"
            )
        # Members that are left out come from the base class, with this regularizer's schedule.
        base = RegularizerBase()
        base.schedule = getattr(item, "schedule", None)
        own = members_of(item, RegularizerBase)
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
