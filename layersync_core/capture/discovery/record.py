"""One forward as discovery sees it: what every block of every list took and returned, in execution order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layersync_core.capture.discovery.found import Element
from layersync_core.capture.graph import tensors_in
from layersync_core.capture.hooks import hook
from layersync_core.capture.identity import is_same

Path = tuple[int | str, ...]
_DEEPEST = 4  # nesting of tuples, mappings and dataclasses
_AXES, _GRID = 3, 5


@dataclass(eq=False)
class Run:
    """One run of a block, or of a module outside of all lists.

    Attributes:
        path: Module path of the list; outside of lists, that of the module itself.
        name: Module path of the block.
        module: The block.
        given: Its arguments, positional and by name.
        output: What it returned.
        number: Its position in the order in which modules returned.
        began: That number's value when it was called.
        inner: Runs inside of it, while it is not known whether it is itself a block.
        turned: ``id of a tensor (S, B, D) or (B, T, H, W, D) -> the view (B, S, D) that stands for it``.
    """

    path: str
    name: str
    module: nn.Module
    given: tuple[tuple[Any, ...], Mapping[str, Any]] = ((), {})
    output: Any = None
    number: int = 0
    began: int = 0
    inner: list[Run] = field(default_factory=list)
    turned: Mapping[int, Tensor] = field(default_factory=dict)

    def inputs(self) -> dict[Path, Tensor]:
        """Return the hidden states among its arguments, by place."""
        args, kwargs = self.given
        found = streams({**dict(enumerate(args)), **kwargs}, self.module)
        return {place: self.turned.get(id(tensor), tensor) for place, tensor in found}

    def outputs(self) -> dict[Path, Tensor]:
        """Return the hidden states that it returned, each once, by place, without what it was given."""
        given = {id(tensor) for tensor in self.inputs().values()}
        made_of = streams(self.output, self.module)
        outputs = [(place, self.turned.get(id(tensor), tensor)) for place, tensor in made_of]
        places = {id(tensor): (place, tensor) for place, tensor in reversed(outputs)}
        found = dict(reversed(places.values()))
        made = {place: tensor for place, tensor in found.items() if id(tensor) not in given}
        return made or found


@dataclass(eq=False)
class Recording:
    """One forward of a model.

    Attributes:
        blocks: Runs of blocks in lists, without those inside of other lists.
        outside: Runs outside of all lists that returned one sequence per sample.
        args: Positional arguments of the forward.
        kwargs: Its keyword arguments.
        output: What it returned.
        autocast: Device type and dtype of the autocast that it ran under; None without autocast.
    """

    blocks: list[Run] = field(default_factory=list)
    outside: list[Run] = field(default_factory=list)
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    output: Any = None
    autocast: tuple[str, torch.dtype] | None = None

    def lists(self) -> list[list[Run]]:
        """Return the runs of each list; the list that ended last comes last."""
        found: dict[str, list[Run]] = {}
        for run in self.blocks:
            found.setdefault(run.path, []).append(run)
        return sorted(found.values(), key=lambda runs: runs[-1].number)

    def turn(self) -> None:
        """Let views (B, S, D) stand for (B, T, H, W, D), and for (S, B, D) where the number of samples shows it."""
        tensors = [*tensors_in((self.args, self.kwargs))]
        sizes = Counter(len(tensor) for tensor in tensors if tensor.ndim > 1)
        made = [len(tensor) for tensor in tensors_in(self.output)[:1] if tensor.ndim > 1]
        # The output has the samples first, while many arguments may be positions or masks without them.
        likely = [size for size in made if size in sizes] or [size for size, _ in sizes.most_common(1)]
        batch = likely[0] if likely else 0
        turned: dict[int, Tensor] = {}
        for run in self.blocks:
            run.turned = turned
            for _, tensor in streams((run.given, run.output), run.module):
                first = tensor.ndim == _AXES and tensor.shape[1] == batch != tensor.shape[0]
                if (first or tensor.ndim == _GRID) and id(tensor) not in turned:
                    view: Any = by_token(tensor)
                    view.raw = tensor  # the one with a gradient, since the model goes on with it
                    turned[id(tensor)] = view

    def clear(self) -> None:
        """Drop every tensor."""
        self.blocks.clear()
        self.outside.clear()
        self.args, self.kwargs, self.output = (), {}, None


class Recorder:
    """Hooks that record what the parts of a model take and return, between ``begin`` and ``end``.

    Args:
        model: The unwrapped model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._now: Recording | None = None
        self._open: list[Run] = []
        self._count = 0
        self._handles: list[Any] = []
        for path, name, module in _parts(model):
            self._handles += [
                module.register_forward_pre_hook(hook(_Enter(self, path, name, module)), with_kwargs=True),
                module.register_forward_hook(hook(_Leave(self, module))),
            ]

    def begin(self, recording: Recording) -> None:
        """Record into this from now on."""
        self._now = recording
        self._open.clear()

    def end(self) -> None:
        """Stop recording."""
        self._now = None
        self._open.clear()

    def remove(self) -> None:
        """Take the hooks off."""
        self.end()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def enter(self, path: str, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Note that a part begins."""
        if self._now is not None:
            self._count += 1
            self._open.append(Run(path, name, module, (args, kwargs), began=self._count))

    def leave(self, module: nn.Module, output: Any) -> None:
        """Note what it returned."""
        # The modules inside it raised, and something caught that and went on.
        while self._open and not is_same(module, self._open[-1].module):
            self._open.pop()
        if self._now is None or not self._open:
            return
        run = self._open.pop()
        self._count += 1
        run.output, run.number = output, self._count
        inside = any(other.path != other.name for other in self._open)
        if run.path == run.name:
            if not inside and any(tensor.ndim == 3 for tensor in (output,) if isinstance(output, Tensor)):
                self._now.outside.append(run)
            self._hand_up(run.inner)
        elif any(True for _ in streams(output, module)):
            run.inner = []  # the blocks are outermost
            self._hand_up([run])
        else:
            self._hand_up(run.inner)

    def _hand_up(self, runs: list[Run]) -> None:
        assert self._now is not None
        if self._open:
            self._open[-1].inner += runs
        else:
            self._now.blocks += runs


class _Enter:
    def __init__(self, recorder: Recorder, path: str, name: str, module: nn.Module) -> None:
        self._recorder, self._path, self._name, self._module = recorder, path, name, module

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if is_same(module, self._module):
            self._recorder.enter(self._path, self._name, self._module, args, kwargs)


class _Leave:
    def __init__(self, recorder: Recorder, module: nn.Module) -> None:
        self._recorder, self._module = recorder, module

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if is_same(module, self._module):
            self._recorder.leave(self._module, output)


def block_lists(model: nn.Module) -> list[str]:
    """Return the paths of the lists whose elements may be blocks."""
    return list(dict.fromkeys(path for path, name, _ in _parts(model) if path != name))


def outside_of_lists(model: nn.Module) -> list[nn.Module]:
    """Return the modules that neither are blocks nor belong to one."""
    return [module for path, name, module in _parts(model) if path == name]


def _parts(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Yield path of the list, path and module of what may be a block; outside of lists the two paths are equal."""
    lists = {
        path: module for path, module in model.named_modules() if isinstance(module, (nn.ModuleList, nn.Sequential))
    }
    blocks = {
        f"{path}.{name}" if path else name: path
        for path, module in lists.items()
        for name, child in module.named_children()
        if path and _has_parts(child) and _is_of_blocks(module)
    }
    for name, module in model.named_modules():
        if name in blocks:
            yield blocks[name], name, module
        elif name and name not in lists and not _is_inside(name, blocks):
            yield name, name, module


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _is_of_blocks(module: nn.Module) -> bool:
    """Return whether half of a list's modules have submodules, as blocks do and the layers of a feed-forward do not."""
    having = [_has_parts(child) for child in module.children()]
    return 2 * sum(having) >= len(having)


def _is_inside(name: str, blocks: Mapping[str, str]) -> bool:
    while "." in name:
        name = name.rpartition(".")[0]
        if name in blocks:
            return True
    return False


def by_token(tensor: Tensor) -> Tensor:
    """Return the view (B, S, D) of (S, B, D) or (B, T, H, W, D)."""
    return tensor.flatten(1, -2) if tensor.ndim == _GRID else tensor.transpose(0, 1)


def streams(value: Any, block: nn.Module, place: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Yield the hidden states (B, S, D), (S, D) or (B, T, H, W, D) in nested values, with their places.

    Args:
        value: What a block took or returned.
        block: The block. One with convolutions over frames has (B, D, T, H, W).
        place: Where the value is.
    """
    if isinstance(value, Tensor):
        known = value.ndim in (2, _AXES) or (value.ndim == _GRID and not any(map(_convolves, block.modules())))
        if value.is_floating_point() and known:
            yield place, value
        return
    items: Any = ()
    if isinstance(value, (tuple, list)):
        items = enumerate(value)
    elif isinstance(value, Mapping):
        items = value.items()
    elif is_dataclass(value) and not isinstance(value, type):
        items = vars(value).items()
    for key, item in items if len(place) < _DEEPEST else ():
        yield from streams(item, block, (*place, key))


def _convolves(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv3d)


def element_at(place: Path) -> Element:
    """Return a place in the form of ``BlockStack.element``."""
    if len(place) > 1:
        return place
    return place[0] if place else None
