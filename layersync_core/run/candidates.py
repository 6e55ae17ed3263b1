"""The models of a program that LayerSync may train: noticed when they are built, attached before they train."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any
from weakref import WeakSet, proxy, ref

import torch
from torch import nn

from layersync_core import _compat
from layersync_core.attachment import Attachment
from layersync_core.capture.hooks import hook
from layersync_core.capture.identity import is_it
from layersync_core.errors import LayerSyncError, MisfitError, UnknownFamilyError
from layersync_core.families.known import KNOWN, RENAMED
from layersync_core.families.refusals import REFUSALS
from layersync_core.families.registry import get_adapter, list_families, resolve
from layersync_core.run.holding import watch
from layersync_core.run.settings import Settings


@dataclass(eq=False)
class Candidate:
    """A model whose class has the name of a known family's.

    Attributes:
        model: The model, as long as the program keeps it.
        name: Its class name, without what FSDP2 puts before it.
        number: Its place among the candidates of its class, from 1.
        optimisers: Those that hold parameters of it.
        owned: There was one.
        failure: Why it could not be attached.
        untrained: Its last forward had nothing trainable in it.
        attachment: A proxy of its attachment, which hooks on the model hold; None while there is none.
    """

    model: ref[nn.Module]
    name: str
    number: int
    optimisers: WeakSet[torch.optim.Optimizer] = field(default_factory=WeakSet)
    owned: bool = False
    failure: LayerSyncError | None = None
    untrained: bool = False
    sentinel: Any = None
    attachment: Attachment | None = None

    def give_to(self, optimiser: torch.optim.Optimizer) -> None:
        """Note that an optimiser holds parameters of it."""
        self.optimisers.add(optimiser)
        self.owned = True

    def note_end(self, trained: bool) -> None:
        """Note whether a forward that has ended may train something."""
        self.untrained = not trained

    def __str__(self) -> str:
        return f"{self.name}#{self.number}"

    @property
    def attached_to(self) -> Attachment:
        """Its attachment, of a candidate that has one."""
        assert self.attachment is not None
        return self.attachment


class Candidates:
    """All candidates of a process.

    Args:
        settings: Of the run.
        take: Attaches to a model, of a family that may be given.
        attached: Called with each candidate when it has been attached.

    Attributes:
        attached: Those that are attached and still there.
    """

    def __init__(
        self,
        settings: Settings,
        take: Callable[[nn.Module, str | None], Attachment],
        attached: Callable[[Candidate], None],
    ) -> None:
        self._settings, self._take, self._attached = settings, take, attached
        self.attached: list[Candidate] = []
        self._all: list[Candidate] = []
        self._counts: dict[str, int] = {}

    def __iter__(self) -> Any:
        return iter(self._all)

    def notice(self, module: nn.Module) -> None:
        """Remember a module that is being built, if it may be a model to train."""
        kind: Any = type(module)
        if not _is_known(kind):
            return
        candidate = next((item for item in self._all if item.model() is module), None)
        if candidate is None:  # else a base class initialised it before, and this has taken the hooks off again
            name = _class_name(module)
            number = self._counts[name] = self._counts.get(name, 0) + 1
            candidate = Candidate(ref(module), name, number)
            self._all = [item for item in self._all if item.model() is not None] + [candidate]
        # For a program without an optimiser: its first forward is the last moment to attach.
        candidate.sentinel = module.register_forward_pre_hook(
            hook(partial(self._first_forward, candidate)), with_kwargs=True
        )

    def scan(self) -> None:
        """Attach to every candidate that is complete by now."""
        self._all = [item for item in self._all if not _is_part(item)]
        for candidate in self._all:
            if candidate.attachment is None:
                self._attach(candidate)

    def require_one(self) -> None:
        """Refuse to go on where none could be attached.

        Raises:
            LayerSyncError: Why a model of a known family could not be attached, and there is no other.
        """
        failed = [item.failure for item in self._all if item.failure is not None]
        refused = [error for error in failed if not isinstance(error, (MisfitError, UnknownFamilyError))]
        if refused and not self.attached:
            raise refused[0]

    def trained_by(self, optimiser: torch.optim.Optimizer) -> list[Candidate]:
        """Return those that are attached and of which an optimiser holds a parameter."""
        held = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
        models = [(item, item.model()) for item in self.attached]
        return [item for item, model in models if model and any(id(p) in held for p in model.parameters())]

    def _attach(self, candidate: Candidate) -> None:
        model = candidate.model()
        target = self._settings.launch.layersync_target
        if model is None or (target and target not in (candidate.name, str(candidate))):
            return
        try:
            family = self._settings.launch.layersync_family
            if family and not get_adapter(family).supports_hidden_states(model):
                raise MisfitError(f"{candidate.name} is no model of family {family}")
            attachment = self._take(model, family)
        except LayerSyncError as error:
            candidate.failure = error
            return
        candidate.failure = None
        self._keep(candidate, proxy(attachment, lambda _: self._keep(candidate, None)))
        watch(attachment, model, candidate.note_end)
        candidate.sentinel.remove()
        self._attached(candidate)

    def _keep(self, candidate: Candidate, attachment: Attachment | None) -> None:
        candidate.attachment = attachment
        self.attached = [item for item in self._all if item.attachment is not None]

    def _first_forward(self, candidate: Candidate, model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        original = candidate.model()
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or original is None:
            return
        if not is_it(model, original):
            return
        before = _compat.pre_hooks(model)
        self.scan()
        # Hooks that are added during a call run from the next call on, but this one may be the only one.
        for number in _compat.pre_hooks(model).keys() - before.keys():
            _compat.run_pre_hook(model, number, args, kwargs)

    @property
    def use_steps(self) -> bool:
        """Whether anything that is attached, or will be, depends on the optimiser step."""
        if self.attached:
            return any(item.attached_to.uses_steps for item in self.attached)
        return self._settings.config.has_schedule

    def why(self, seen: Iterable[str]) -> tuple[str, list[str]]:
        """Return why no loss got a term, in a clause, and the names of the program's models.

        Args:
            seen: Names of models that were prepared.
        """
        why, names = self._explain(), list(dict.fromkeys([*seen, *largest_models()]))
        if why and self.attached:
            why += (
                ". Gradients by torch.autograd.grad or torch.func do not pass through a loss that a term could be "
                "added to"
            )
        target = self._settings.launch.layersync_target
        if target and self._all and not any(target in (item.name, str(item)) for item in self._all):
            why = f"layersync_target {target} matches no model of this program; {why}"
        return why or (
            f"no model of a known family was built; models of this program: {', '.join(names) or 'none'}; "
            "layersync list-supported shows the families"
        ), names

    def _explain(self) -> str:
        parts = []
        for item in self._all:
            if item.failure is not None:
                parts.append(f"{item}: {item.failure}")
            elif item.untrained:
                parts.append(f"{item}: the last forward ran without anything trainable in it")
            elif item.attachment is not None:
                parts.append(
                    f"{item}: {item.attachment.why_none or 'a training forward ran, but no loss depends on it'}"
                )
            elif self._settings.launch.layersync_target:
                parts.append(f"{item}: not layersync_target {self._settings.launch.layersync_target}")
        return "; ".join(parts)


def largest_models(count: int = 5) -> list[str]:
    """Return the class names of the largest models of the program, found as the garbage collector finds them."""
    # By type: asking an object for its class may run code of its own.
    modules = [item for item in gc.get_objects() if issubclass(type(item), nn.Module)]
    inner = {id(child) for module in modules for child in module._modules.values() if child is not None}
    roots = [module for module in modules if id(module) not in inner]
    sizes = sorted(((sum(p.numel() for p in root.parameters()), type(root).__name__) for root in roots), reverse=True)
    return list(dict.fromkeys(name for size, name in sizes if size))[:count]


def _is_part(candidate: Candidate) -> bool:
    """Return whether it is gone, or a part of another model whose class was a model's once."""
    model = candidate.model()
    if model is None or candidate.name not in RENAMED:
        return model is None
    try:
        resolve(model)
    except UnknownFamilyError:
        candidate.sentinel.remove()
        return True
    except LayerSyncError:
        return False
    return False


def _class_name(model: nn.Module) -> str:
    names = [base.__name__ for base in type(model).__mro__]
    return next((name for name in names if name in _known_names()), names[0])


@cache
def _is_known(kind: type) -> bool:
    return any(base.__name__ in _known_names() for base in kind.__mro__)


@cache
def _known_names() -> frozenset[str]:
    names = {name for family in KNOWN.values() for name in family.classes}
    names |= {name for refusal in REFUSALS.values() for name in refusal.classes}
    for family in list_families():
        try:
            names.update(get_adapter(family).model_classes)
        except LayerSyncError:  # a broken adapter is an error only when its family is asked for
            continue
    return frozenset(names)
