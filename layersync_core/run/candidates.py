"""The models of a program that LayerSync may be attached to: noticed when built, attached before they train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, cast
from weakref import WeakSet, proxy, ref

import torch
from torch import nn

from layersync_core import _compat
from layersync_core.attachment import Attachment
from layersync_core.capture.hooks import hook
from layersync_core.capture.identity import is_same
from layersync_core.documentation import docs_page
from layersync_core.errors import LayerSyncError, MisfitError, UnknownFamilyError
from layersync_core.families.discovered import AUTO, adapter_named, is_adapter_file
from layersync_core.families.known import KNOWN, RENAMED
from layersync_core.families.refusals import REFUSALS
from layersync_core.families.registry import get_adapter, list_families, resolve
from layersync_core.run.holding import watch
from layersync_core.run.settings import Settings
from layersync_core.run.unknown import roots, trained_models

_OFFER = (
    ", and --layersync_family auto finds the blocks and tokens of another model by measuring "
    f"({docs_page('discovery')})"
)


@dataclass(eq=False)
class Candidate:
    """A model whose class has the name of a known family's class.

    Attributes:
        model: The model, as long as the program keeps it alive.
        name: Its class name, without the prefix that FSDP2 adds.
        number: Its place among the candidates of its class, from 1.
        optimisers: The optimisers that hold its parameters.
        owned: It has had an optimiser.
        failure: Why it could not be attached.
        untrained: Nothing was trainable in its last forward.
        attachment: A weak proxy of its attachment, which hooks on the model keep alive; None while there is none.
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
        """Record that an optimiser holds its parameters."""
        self.optimisers.add(optimiser)
        self.owned = True

    def note_end(self, trained: bool) -> None:
        """Record whether a forward that has ended may train something."""
        self.untrained = not trained

    def __str__(self) -> str:
        return f"{self.name}#{self.number}"

    @property
    def attached_to(self) -> Attachment:
        """Its attachment; it must have one."""
        assert self.attachment is not None
        return self.attachment


class Candidates:
    """All candidates of a process.

    Args:
        settings: Settings of the run.
        take: Attaches to a model, optionally as a given family.
        attached: Called with each candidate once it has been attached.

    Attributes:
        attached: The candidates that are attached and still alive.
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
        family = settings.launch.layersync_family
        self._in_file = adapter_named(family).model_classes if family and is_adapter_file(family) else ()

    def __iter__(self) -> Any:
        return iter(self._all)

    def notice(self, module: nn.Module) -> None:
        """Record a module that is being built, if it may be a model to train."""
        kind: Any = type(module)
        if not (_is_known(kind) or self._is_meant(module)):
            return
        candidate = self._add(module)
        # For a program without an optimiser, the first forward is the last chance to attach.
        candidate.sentinel = module.register_forward_pre_hook(
            hook(partial(self._first_forward, candidate)), with_kwargs=True
        )

    def notice_trained(self, optimiser: torch.optim.Optimizer) -> None:
        """Record the models that an optimiser trains, of whatever class, where the family is auto."""
        if self._settings.launch.layersync_family == AUTO:
            for model in trained_models(optimiser):
                if not _is_known(cast(Any, type(model))):
                    self._add(model)

    def _is_meant(self, module: nn.Module) -> bool:
        """Return whether the target is of this class; with family auto or a file, no adapter has to know the class."""
        launch = self._settings.launch
        measured = launch.layersync_family == AUTO and (launch.layersync_target or "").split("#")[0]
        names = [measured] if measured else self._in_file
        return any(base.__name__ in names for base in type(module).__mro__)

    def _add(self, module: nn.Module) -> Candidate:
        candidate = next((item for item in self._all if item.model() is module), None)
        if candidate is None:  # otherwise a base class initialised it before, and this has removed the hooks again
            name = _class_name(module)
            number = self._counts[name] = self._counts.get(name, 0) + 1
            candidate = Candidate(ref(module), name, number)
            self._all = [item for item in self._all if item.model() is not None] + [candidate]
        return candidate

    def scan(self) -> None:
        """Attach to every candidate that is fully built."""
        self._all = [item for item in self._all if not _is_part(item)]
        for candidate in self._all:
            if candidate.attachment is None:
                self._attach(candidate)

    def require_one(self) -> None:
        """Refuse to go on if no candidate could be attached.

        Raises:
            LayerSyncError: The reason why a model of a known family could not be attached, if there is no other.
        """
        failed = [item.failure for item in self._all if item.failure is not None]
        refused = [error for error in failed if not isinstance(error, (MisfitError, UnknownFamilyError))]
        if refused and not self.attached:
            raise refused[0]

    def trained_by(self, optimiser: torch.optim.Optimizer) -> list[Candidate]:
        """Return the attached candidates of which an optimiser holds a parameter."""
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
            if family and family != AUTO and not adapter_named(family).supports_hidden_states(model):
                raise MisfitError(f"{candidate.name} isn't a model of family {family}")
            attachment = self._take(model, family)
        except LayerSyncError as error:
            candidate.failure = error
            return
        candidate.failure = None
        self._keep(candidate, proxy(attachment, lambda _: self._keep(candidate, None)))
        watch(attachment, model, candidate.note_end)
        if candidate.sentinel is not None:
            candidate.sentinel.remove()
        self._attached(candidate)

    def _keep(self, candidate: Candidate, attachment: Attachment | None) -> None:
        candidate.attachment = attachment
        self.attached = [item for item in self._all if item.attachment is not None]

    def _first_forward(self, candidate: Candidate, model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        original = candidate.model()
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or original is None:
            return
        if not is_same(model, original):
            return
        before = _compat.pre_hooks(model)
        self.scan()
        # Hooks added during a call run from the next call on, but this call may be the only one.
        for number in _compat.pre_hooks(model).keys() - before.keys():
            _compat.run_pre_hook(model, number, args, kwargs)

    @property
    def use_steps(self) -> bool:
        """Whether anything attached, now or later, depends on the optimiser step."""
        if self.attached:
            return any(item.attached_to.uses_steps for item in self.attached)
        return self._settings.config.has_schedule

    def why(self, seen: Iterable[str]) -> tuple[str, list[str]]:
        """Return why no loss got a term, as a clause, and the names of the program's models.

        Args:
            seen: Names of models that were prepared.
        """
        why, names = self._explain(), list(dict.fromkeys([*seen, *largest_models()]))
        if why and self.attached:
            why += (
                ". Gradients by torch.autograd.grad or torch.func do not pass through a loss that a term could be "
                "added to"
            )
        launch = self._settings.launch
        target = launch.layersync_target
        if target and self._all and not any(target in (item.name, str(item)) for item in self._all):
            why = f"layersync_target {target} matches no model of this program; {why}"
        return why or (
            f"no model of a known family was built; models of this program: {', '.join(names) or 'none'}; "
            f"layersync list-supported shows the families{_OFFER if not launch.layersync_family else ''}"
        ), names

    def _explain(self) -> str:
        parts = []
        for item in self._all:
            if item.failure is not None:
                parts.append(f"{item}: {item.failure}")
            elif item.untrained:
                parts.append(f"{item}: nothing was trainable in the last forward")
            elif item.attachment is not None:
                parts.append(
                    f"{item}: {item.attachment.why_none or 'a training forward ran, but no loss depends on it'}"
                )
            elif self._settings.launch.layersync_target:
                parts.append(f"{item}: not layersync_target {self._settings.launch.layersync_target}")
        return "; ".join(parts)


def largest_models(count: int = 5) -> list[str]:
    """Return the class names of the program's largest models, found through the garbage collector."""
    sizes = sorted(((sum(p.numel() for p in root.parameters()), type(root).__name__) for root in roots()), reverse=True)
    return list(dict.fromkeys(name for size, name in sizes if size))[:count]


def _is_part(candidate: Candidate) -> bool:
    """Return whether it is gone, or a part of another model that merely has the class of a model."""
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
        except LayerSyncError:  # a broken adapter is an error only if its family is asked for
            continue
    return frozenset(names)
