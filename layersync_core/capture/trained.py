"""Whether a gradient into a state would reach something that is trained, judged by the graph of the state.

The graph is searched once. The path that was found is followed again at every step, which is a handful of nodes; where
it no longer leads to a parameter (weights were frozen, the graph changed), the graph is searched again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ref

from torch import Tensor, nn

from layersync_core import _compat
from layersync_core.capture.hidden import Reach
from layersync_core.protocol import Block


@dataclass(frozen=True)
class Way:
    """A path through a graph, from a state to a parameter.

    Attributes:
        turns: Which input of each node to follow.
        behind: The parameter, where the path ends at a node written in Python: in a compiled graph such a node takes
            many inputs, and what it hides cannot be seen. None where the path ends at the parameter itself.
    """

    turns: tuple[int, ...]
    behind: ref[nn.Parameter] | None = None

    def leads(self, state: Tensor) -> bool:
        """Return whether the same path leads from another state to a parameter."""
        node: Any = state.grad_fn
        for turn in self.turns:
            if node is None:
                return False
            inputs = node.next_functions
            node = inputs[turn][0] if turn < len(inputs) else None
        if self.behind is None:
            return isinstance(getattr(node, "variable", None), nn.Parameter)
        parameter = self.behind()
        return parameter is not None and parameter.requires_grad and isinstance(node, _compat.python_function())


def find_way(state: Tensor, model: nn.Module, blocks: Sequence[Block], layer: int) -> Way | None:
    """Return the shortest path from the state of a block to a parameter; None where no gradient would reach one.

    A leaf that isn't a parameter does not count: it is an activation made to require gradients, which trains nothing.
    What a Python node hides (re-entrant checkpointing) is judged by the modules that its function can reach.

    Args:
        state: What the block returned.
        model: The model.
        blocks: All its blocks.
        layer: Index of the block.
    """
    root: Any = state.grad_fn
    if root is None:
        return None
    hiding = _compat.python_function()
    reach = Reach(model, blocks, layer)
    came: dict[Any, tuple[Any, int]] = {root: (None, 0)}
    queue, opaque = deque([root]), []
    while queue:
        node = queue.popleft()
        if isinstance(node, hiding):
            opaque.append(node)
        for turn, (parent, _) in enumerate(node.next_functions):
            if parent is None or parent in came:
                continue
            parameter = getattr(parent, "variable", None)
            if not isinstance(parameter, nn.Parameter):
                came[parent] = (node, turn)
                queue.append(parent)
            elif not isinstance(node, hiding):
                return Way((*_turns(came, node), turn))
            elif reach.has(parameter):  # a compiled graph also takes parameters used after the block
                return Way(_turns(came, node), ref(parameter))
    for node in opaque:
        hidden = reach.hidden_in(node)
        if hidden is not None:
            return Way(_turns(came, node), ref(hidden))
    return None


def _turns(came: Mapping[Any, tuple[Any, int]], node: Any) -> tuple[int, ...]:
    turns: list[int] = []
    while came[node][0] is not None:
        node, turn = came[node]
        turns.append(turn)
    return tuple(reversed(turns))
