"""Call an adapter's methods, which are somebody else's code, so that a failure names the adapter."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from layersync_core.entrypoints import describe_failure, foreign
from layersync_core.errors import ConfigError, LayerSyncError, MisfitError
from layersync_core.families.adapter import nearest_layouts
from layersync_core.families.registry import installed
from layersync_core.protocol import Adapter, Block, CaptureHandle

if TYPE_CHECKING:
    from torch import nn

    from layersync_core.capture.buffer import HiddenStateBuffer


def blocks_of(adapter: Adapter, model: nn.Module) -> list[Block]:
    """Return the blocks of a model that an adapter fits.

    Raises:
        MisfitError: It does not fit, or fails.
        ConfigError: What it lists aren't blocks.
    """
    family, kind = adapter.family, type(model).__name__
    with _named(adapter, model):
        fits = adapter.supports_hidden_states(model)
        blocks = list(adapter.list_blocks(model)) if fits else []
    if not fits:
        raise MisfitError(
            f"{_misfit(adapter, model)}; for a model of your own pass adapter=…", family=family, model_class=kind
        )
    if not blocks or [getattr(block, "index", None) for block in blocks] != list(range(len(blocks))):
        raise ConfigError(
            f"{title(adapter)} lists {blocks!r:.200} as the blocks of this {kind}; expected a Block for each, with "
            "index 0, 1, …"
        )
    return blocks


def _misfit(adapter: Adapter, model: nn.Module) -> str:
    generally = (
        f"adapter {adapter.family} does not fit this {type(model).__name__}: it describes "
        f"{', '.join(adapter.model_classes)} with their usual blocks"
    )
    try:
        adapter.list_blocks(model)
    except MisfitError as error:  # BlockStackAdapter's, which says why
        return str(error)
    except Exception:  # another adapter may raise anything at a model that it does not know
        return generally
    return generally


def start_capture(
    adapter: Adapter, model: nn.Module, layers: Collection[int], buffer: HiddenStateBuffer
) -> CaptureHandle:
    """Return the capture that an adapter starts.

    Raises:
        MisfitError: The adapter fails.
        ConfigError: What it returns lacks a member; its hooks have been removed.
    """
    handle: Any
    with _named(adapter, model):
        handle = adapter.capture(model, layers, buffer)
    if not isinstance(handle, CaptureHandle):
        names = ("enabled", "policy", "forwards", "why_none", "collect", "discard", "paused", "remove")
        lacking = ", ".join(name for name in names if not hasattr(handle, name))
        if hasattr(handle, "remove"):
            handle.remove()  # its hooks are already on the model
        raise ConfigError(f"the capture of {title(adapter)} lacks {lacking}; see CaptureHandle")
    return handle


def is_measured(adapter: Adapter, model: nn.Module) -> bool:
    """Return whether an adapter has the generated image tokens measured from the main loss."""
    layouts: Any = getattr(adapter, "layouts", ())
    return next((bool(layout.measured) for layout in nearest_layouts(layouts, model) if layout.fits(model)), False)


def title(adapter: Adapter) -> str:
    """Return what messages call an adapter: its family, and its distribution if it is installed."""
    for found in installed().get(adapter.family, []):
        with suppress(Exception):
            if found.allowed and found.load() is adapter:
                return f"adapter {adapter.family} of {found}"
    return f"adapter {adapter.family}"


@contextmanager
def _named(adapter: Adapter, model: nn.Module) -> Iterator[None]:
    try:
        with foreign():
            yield
    except LayerSyncError:
        raise
    except Exception as error:
        kind = type(model).__name__
        raise MisfitError(
            f"{title(adapter)} fails on this {kind}: {describe_failure(error)}", family=adapter.family, model_class=kind
        ) from error
