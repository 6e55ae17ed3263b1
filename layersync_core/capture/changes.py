"""Check that a model still has the blocks it had when it was attached, and that they do something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from layersync_core.capture.layout import BlockStack, ModelLayout
from layersync_core.errors import CaptureError

_Found = Sequence[tuple[BlockStack, str, nn.Module]]


class Blocks:
    """The blocks of a model, by number; a program that inserts, removes or reorders blocks changes what a number means.

    Args:
        layout: Where they are.
        model: The model.
        found: The blocks as they are now, in execution order.
        layers: Those that are captured.
    """

    def __init__(self, layout: ModelLayout, model: nn.Module, found: _Found, layers: Sequence[int]) -> None:
        self._layout, self._model, self._found = layout, model, found
        self._layers = layers
        self._remember(found)

    def check(self) -> None:
        """Compare the model's blocks with those that were found; this only looks up dictionaries, so it is cheap.

        Raises:
            CaptureError: The blocks or their order changed, or diffusers skips one that is captured.
        """
        for children, name, child in self._steps:
            if children.get(name) is not child:
                return self._compare()
        for children, blocks in self._lists:
            if [*children.values()] != blocks:
                return self._compare()
        for index in self._layers:
            _, path, block = self._found[index]
            registry = vars(block).get("_diffusers_hook")
            for hook in () if registry is None else registry.hooks.values():
                if type(hook).__name__ == "TransformerBlockSkipHook" and hook.dropout == 1:
                    raise CaptureError(
                        f"diffusers' LayerSkip skips block {index + 1} ({path}), which passes its input on unchanged, "
                        "so LayerSync would align another block's output; skip other blocks, or choose another pair"
                    )
        return None

    def check_apart(self, states: Mapping[int, Tensor]) -> None:
        """Refuse states of different blocks that are one and the same tensor, whose similarity has no gradient.

        Args:
            states: By index of the block.

        Raises:
            CaptureError: Two of them are.
        """
        seen: dict[Any, int] = {}
        for index, state in states.items():
            place = state.data_ptr() if type(state) is Tensor else 0
            first = seen.setdefault((place, state.shape), index) if place else index
            if first != index:
                low, high = sorted((first, index))
                raise CaptureError(
                    f"block {low + 1} ({self._found[low][1]}) and block {high + 1} ({self._found[high][1]}) returned "
                    "one and the same tensor, whose similarity with itself is constant and gives no gradient: the "
                    "blocks between them were skipped (LayerSkip, layer dropping), or change their input in place; "
                    "switch that off, or choose another pair"
                )

    def _compare(self) -> None:
        """Accept wrappers around the same blocks, such as those of checkpointing, FSDP or the compiler."""
        now = self._layout.blocks(self._model)
        same = len(now) == len(self._found) and all(
            any(block is part for part in current.modules())
            for (_, _, block), (_, _, current) in zip(self._found, now, strict=True)
        )
        if same:
            self._remember(now)
            return
        counts = [f"{len(self._found)} blocks, now {len(now)}"] if len(self._found) != len(now) else []
        others = [
            path
            for (_, path, block), (_, _, current) in zip(self._found, now, strict=False)
            if not any(block is part for part in current.modules())
        ]
        first = [f"the first that differs is {others[0]}"] if others else []
        raise CaptureError(
            f"the blocks of {type(self._model).__name__} are not those that LayerSync was attached to "
            f"({'; '.join([*counts, *first]) or 'some are gone'}), so block numbers would mean other blocks: insert, "
            "remove and reorder blocks before attach(), or under layersync run before the model is given to an "
            "optimiser, wrapped or compiled"
        )

    def _remember(self, found: _Found) -> None:
        steps: dict[tuple[int, str], tuple[Mapping[str, Any], str, nn.Module]] = {}
        lists: dict[str, tuple[Mapping[str, Any], list[nn.Module]]] = {}
        for stack, _, _ in found:
            if stack.path in lists:
                continue
            module: Any = self._model
            for name in stack.path.split("."):
                children = getattr(module, "_modules", {})
                if name not in children:
                    break  # held in something that isn't a module
                steps[id(children), name] = children, name, children[name]
                module = children[name]
            else:
                lists[stack.path] = module._modules, [*module._modules.values()]
        self._steps, self._lists = [*steps.values()], [*lists.values()]
