"""A model family as data. Imports no torch, so that adapters can be listed without it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from layersync_core.capture.layout import ModelLayout, class_names, later_blocks, module_at, width_of
from layersync_core.errors import ConfigError, MisfitError, did_you_mean
from layersync_core.protocol import API_VERSION, Block

if TYPE_CHECKING:
    from torch import nn

    from layersync_core.capture.buffer import HiddenStateBuffer
    from layersync_core.protocol import CaptureHandle


@dataclass(frozen=True, kw_only=True)
class BlockStackAdapter(ModelLayout):
    """An adapter as data: the layout of a family's main class, and more layouts for its other classes and forks.

    Attributes:
        family: Identifier, the same as the entry point's name.
        forks: Further layouts; the first layout that fits a model is used.
    """

    family: str
    forks: Sequence[ModelLayout] = ()
    api_version: int = API_VERSION
    layouts: tuple[ModelLayout, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        own = ModelLayout(**{name: getattr(self, name) for name in ModelLayout.__dataclass_fields__})
        layouts = (own, *self.forks)
        object.__setattr__(self, "layouts", layouts)
        object.__setattr__(self, "model_classes", tuple(name for layout in layouts for name in layout.model_classes))

    def supports_hidden_states(self, model: nn.Module) -> bool:
        """Return whether a layout fits the model."""
        return any(layout.fits(model) for layout in self.layouts)

    def list_blocks(self, model: nn.Module) -> list[Block]:
        """Return every block in execution order.

        Raises:
            ConfigError: No layout fits the model.
        """
        layout = self._layout(model)
        found = layout.blocks(model)
        return [
            Block(
                index,
                path,
                stack.path,
                width_of(stack.width or layout.width, model, block),
                stack.stage,
                len(found),
                layout.video,
            )
            for index, (stack, path, block) in enumerate(found)
        ]

    def capture(self, model: nn.Module, layers: Collection[int], buffer: HiddenStateBuffer) -> CaptureHandle:
        """Start capturing the given layers into the buffer."""
        from layersync_core.capture.changes import Blocks
        from layersync_core.capture.hooks import Capture
        from layersync_core.capture.lengths import last_dual
        from layersync_core.capture.reading import Parameters, Reader

        layout = self._layout(model)
        found = layout.blocks(model)
        embedder = module_at(model, layout.embedder) if layout.embedder else None
        if layout.embedder and embedder is None:
            raise ConfigError(
                f"adapter {self.family}: {type(model).__name__} has no embedder at {layout.embedder}; "
                f"{did_you_mean(layout.embedder, [name for name, _ in model.named_children()])}"
            )
        stacks = {index: found[index][:2] for index in sorted(layers)}
        first, dual = found[0][2], last_dual(found, layers)
        watched = tuple(module for module in (model, first, embedder) if module is not None)
        parameters, block_parameters = map(Parameters.of, (model, first))
        reader = Reader(
            layout,
            model,
            stacks,
            found[-1][:2],
            buffer,
            parameters,
            block_parameters,
            Blocks(layout, model, found, [*stacks]),
            watched=watched,
            dual=dual,
        )
        return Capture(
            model,
            {index: found[index][2] for index in sorted(layers)},
            first=first,
            last=found[-1][2],
            # Several streams may be joined after the blocks that are listed; one stream goes on to the head.
            later=later_blocks(model, found[-1][1]) if found[-1][0].element is not None else (),
            embedder=embedder,
            reader=reader,
            clear=buffer.clear,
            dual=None if dual is None or dual.index in stacks else dual.module,  # what a captured one returned is held
        )

    def _layout(self, model: nn.Module) -> ModelLayout:
        for layout in self.layouts:
            if layout.fits(model):
                return layout
        # Of a layout that knows the class, if there is one: the others are of other classes.
        known = [layout for layout in self.layouts if not class_names(model).isdisjoint(layout.model_classes)]
        reasons = [layout.misfit(model) for layout in known or [self]]
        raise MisfitError(
            f"adapter {self.family} does not fit this {type(model).__name__}: {'; '.join(reasons)}",
            family=self.family,
            model_class=type(model).__name__,
        )
