"""A model family as data. Imports no torch, so that adapters can be listed without it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from layersync_core.capture.layout import ModelLayout, class_names, module_at, width_of
from layersync_core.errors import ConfigError, MisfitError, did_you_mean
from layersync_core.protocol import API_VERSION, Block

if TYPE_CHECKING:
    from torch import nn

    from layersync_core.capture.buffer import HiddenStateBuffer
    from layersync_core.protocol import CaptureHandle


def nearest_layouts(layouts: Sequence[ModelLayout], model: nn.Module) -> list[ModelLayout]:
    """Return the layouts that name the nearest of a model's classes, since trainers derive one class from another."""
    for base in type(model).__mro__:
        if found := [layout for layout in layouts if base.__name__ in layout.model_classes]:
            return found
    return []


@dataclass(frozen=True, kw_only=True)
class BlockStackAdapter(ModelLayout):
    """An adapter as data: the layout of a family's main class, and more layouts for its other classes and forks.

    Attributes:
        family: Identifier, equal to the entry point's name.
        forks: Further layouts. Among those that name the nearest of a model's classes, the first that fits is used.

    Examples:
        >>> import torch
        >>> from layersync_core import BlockStackAdapter, attach
        >>> class Mine(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.blocks = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
        ...     def forward(self, x):
        ...         return self.blocks(x)
        >>> adapter = BlockStackAdapter(family="mine", model_classes="Mine", stacks="blocks")
        >>> config = {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 3}
        >>> with attach(model := Mine(), config, adapter=adapter) as sync:
        ...     sync.apply(model(torch.ones(2, 5, 4)).mean()).backward()
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
        return any(layout.fits(model) for layout in nearest_layouts(self.layouts, model))

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
            # Several streams may be joined after the listed blocks; a single stream goes straight to the head.
            later=_later_blocks(model, found[-1][1]) if found[-1][0].element is not None else (),
            embedder=embedder,
            reader=reader,
            clear=buffer.clear,
            dual=None if dual is None or dual.index in stacks else dual.module,  # its output is held anyway
        )

    def _layout(self, model: nn.Module) -> ModelLayout:
        known = nearest_layouts(self.layouts, model)
        for layout in known:
            if layout.fits(model):
                return layout
        reasons = [layout.misfit(model) for layout in known or [self]]
        raise MisfitError(
            f"adapter {self.family} does not fit this {type(model).__name__}: {'; '.join(reasons)}",
            family=self.family,
            model_class=type(model).__name__,
        )


def _later_blocks(model: nn.Module, path: str) -> list[nn.Module]:
    """Return the last block of each top-level list that a model declares after the list with a given block.

    Args:
        model: The model.
        path: Path of the block.
    """
    own = dict(model.named_children())
    names = list(own)
    after = names[names.index(path.split(".")[0]) + 1 :]
    return [own[name][-1] for name in after if "ModuleList" in class_names(own[name]) and len(own[name])]  # type: ignore[index, arg-type]
