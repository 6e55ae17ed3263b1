"""What a graph node written in Python may hide: parameters inside of re-entrant checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from layersync_core.protocol import Block


class Reach:
    """The part of a model that may run up to a block: the blocks before it, and what is declared before them.

    Args:
        model: The model.
        blocks: All its blocks.
        layer: Index of the block.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Block], layer: int) -> None:
        self._model = model
        self._earlier, self._later = (
            tuple(f"{block.path}." for block in part) for part in (blocks[: layer + 1], blocks[layer + 1 :])
        )

    @cached_property
    def _all(self) -> set[int]:
        return set(map(id, self._model.modules()))

    @cached_property
    def _beyond(self) -> set[int]:
        """Ids of the model's modules that run after the block, as far as names and declarations show it."""
        inside, beyond, passed = set[int](), set[int](), False
        own = self._earlier[-1]
        for path, module in self._model.named_modules(remove_duplicate=False):
            name = f"{path}." if path else ""
            passed = passed or name.startswith(own)
            # The parameters of a module that contains the block may be used before or after it.
            holds = own.startswith(name) and name != own
            is_inside = name.startswith(self._earlier) or not (passed or holds or name.startswith(self._later))
            (inside if is_inside else beyond).add(id(module))
        return beyond - inside

    def has(self, parameter: nn.Parameter) -> bool:
        """Return whether a parameter may be used up to the block, not only after it."""
        owners = {id(module) for module in self._model.modules() if any(own is parameter for own in _own(module))}
        return not owners or not owners <= self._beyond

    def hidden_in(self, node: Any) -> nn.Parameter | None:
        """Return a trainable parameter that a Python node may hide up to the block; None where there is none."""
        kept = [*vars(node).values()]
        if not any(map(callable, kept)):
            return None  # the graph shows everything that it computes with
        held = [*_in_reach(kept)] or [self._model]
        return next((found for item in held for found in self._parameters(item) if found.requires_grad), None)

    def _parameters(self, item: nn.Module | nn.Parameter) -> Iterator[nn.Parameter]:
        if isinstance(item, nn.Parameter):
            yield item
            return
        for module in item.modules():
            if id(module) in self._beyond:
                continue
            yield from _own(module)
            # Trainers replace an instance's forward to bring in LoRA weights that aren't part of the model.
            for other in _in_reach([vars(module).get("forward")]):
                if isinstance(other, nn.Parameter):
                    yield other
                elif id(other) not in self._all:
                    yield from other.parameters()


def _own(module: nn.Module) -> Iterable[nn.Parameter]:
    return module.parameters(recurse=False)


def _in_reach(values: Iterable[Any]) -> Iterator[nn.Module | nn.Parameter]:
    """Yield the modules and parameters that functions can reach: bound to them, passed to them or closed over."""
    stack = [*values]
    seen: dict[int, Any] = {}
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item  # kept alive, so that its id isn't reused
        if isinstance(item, (nn.Module, nn.Parameter)):
            yield item
        elif isinstance(item, (tuple, list)):
            stack.extend(item)
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, MethodType):
            owner = item.__self__
            stack += [item.__func__, owner]
            if not isinstance(owner, (nn.Module, type)):
                stack += [value for value in getattr(owner, "__dict__", {}).values() if not isinstance(value, dict)]
        elif isinstance(item, FunctionType):
            stack += [cell.cell_contents for cell in item.__closure__ or () if _is_filled(cell)]
            stack += [item.__defaults__, item.__kwdefaults__, vars(item)]
        elif isinstance(item, partial):
            stack += [item.func, item.args, item.keywords, vars(item)]
        elif callable(item) and not isinstance(item, type):
            stack.append(getattr(item, "__dict__", None))


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
