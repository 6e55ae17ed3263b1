"""The layout of a family's models as data: where the blocks are and which of their tokens count. Imports no torch."""

# Longer than others: what each field means, and an example, are most of it.

# Shapes: B batch, S tokens, D channels, T frames, H rows, W columns

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter, signature
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, cast

from layersync_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

Width = str | Callable[[Any, Any], int]
"""Channels of a block's output: an attribute path on the model, or a function of model and block."""


@dataclass(frozen=True)
class ForwardCall:
    """What an adapter's functions may know about one forward of the model.

    Attributes:
        model: The unwrapped model.
        arguments: The forward's arguments by name; empty when the trainer called the blocks without the model.
        batch: Samples in the batch; 0 for ``image_tokens`` and ``joined_tokens``, which are asked first.
        tokens: Image, video or audio tokens of a sample, S; 0 for ``image_tokens``.
        block: Arguments of the first block by name, where the trainer called the blocks without the model; else empty.
    """

    model: Any
    arguments: Mapping[str, Any]
    batch: int = 0
    tokens: int = 0
    block: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BlockStack:
    """A list of blocks in a model, and where a block's output has the tokens to align.

    Attributes:
        path: Module path of the list, such as ``transformer_blocks``.
        element: Position in the tuple that a block returns, or name of the attribute of the object it returns, or a
            tuple of both in turn, such as ``(0, "x")``; None where it returns one tensor.
        joined: Where the image tokens are in a tensor of joined text and image, which a block returns in some or all
            versions of the model.
        whole: ``element`` is that joined tensor in every version of the model, never the image on its own.
        width: Channels of a block's output; None takes the layout's.
        stage: Blocks of different stages cannot be paired.
        batched: False where a block returns (S, D), the tokens of one sample.
        offset: Where ``joined`` is first or last, the number of tokens beyond the image tokens at that end, such as
            registers; the same in every call.
        sequence_first: True where a block returns (S, B, D); None where some implementations of a class do and others
            don't, so that the embedder's number of samples shows it.
        gridded: True where a block returns (B, T, H, W, D).
        only: Which blocks of the list are meant, where the others belong to another stage; None for all.

    Examples:
        >>> import torch
        >>> from layersync_core import BlockStack, BlockStackAdapter
        >>> Dual = Single = torch.nn.Identity
        >>> class Mine(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.dual_blocks = torch.nn.ModuleList([Dual(), Dual()])  # each returns (text, image)
        ...         self.single_blocks = torch.nn.ModuleList([Single()])  # returns both in one tensor, the image last
        >>> stacks = [BlockStack("dual_blocks", element=1), BlockStack("single_blocks", joined="last")]
        >>> adapter = BlockStackAdapter(family="mine", model_classes="Mine", stacks=stacks, embedder="embed")
        >>> [str(block) for block in adapter.list_blocks(Mine())][1:]
        ['block 2 of 3 (dual_blocks.1)', 'block 3 of 3 (single_blocks.0)']
    """

    path: str
    element: int | str | tuple[int | str, ...] | None = None
    joined: Literal["all", "first", "last"] = "all"
    whole: bool = False
    width: Width | None = None
    stage: str = ""
    batched: bool = True
    offset: int = 0
    sequence_first: bool | None = False
    gridded: bool = False
    only: range | None = None

    def __post_init__(self) -> None:
        if self.joined not in ("all", "first", "last"):
            raise ConfigError(f"BlockStack({self.path!r}) has joined {self.joined!r}; it takes all, first or last")
        if self.offset < 0 or (self.offset and self.joined == "all"):
            raise ConfigError(
                f"BlockStack({self.path!r}) has offset {self.offset} and joined {self.joined!r}; offset is 0 or more, "
                "the number of tokens beyond the image tokens at the end that joined names, first or last"
            )
        flags = {"whole": self.whole, "batched": self.batched, "gridded": self.gridded}
        flags |= {} if self.sequence_first is None else {"sequence_first": self.sequence_first}
        if wrong := [f"{name} {value!r}" for name, value in flags.items() if not isinstance(value, bool)]:
            raise ConfigError(f"BlockStack({self.path!r}) has {' and '.join(wrong)}; give True or False")
        if self.only is not None and not (
            isinstance(self.only, range) and self.only.step == 1 and self.only.start >= 0
        ):
            raise ConfigError(
                f"BlockStack({self.path!r}) has only {self.only!r}; it takes a range of block numbers from 0, such as "
                "range(8)"
            )
        if self.gridded and (self.joined != "all" or self.sequence_first is not False or not self.batched):
            raise ConfigError(
                f"BlockStack({self.path!r}) is gridded and sets joined, sequence_first or batched; blocks that return "
                "(B, T, H, W, D) return only the image, sample by sample"
            )
        if self.sequence_first and not self.batched:
            raise ConfigError(f"BlockStack({self.path!r}) is sequence_first and not batched; (S, B, D) has a batch")


@dataclass(frozen=True, kw_only=True)
class ModelLayout:
    """How the models of some classes are built.

    Attributes:
        model_classes: Class names, matched along the model's bases.
        stacks: Lists of blocks in execution order; a bare path stands for a list whose blocks return one tensor. A
            function of the model where they depend on its configuration.
        block_class: Class name of the first block, where several sources share the model's class name.
        derived_block: Class names that the first block may have in a class derived from these that overrides
            ``__init__`` or ``forward``; with any other it is a different model. Empty allows any.
        width: As in ``BlockStack``.
        embedder: Path of the patch embedder; the length of its output is the number of image tokens. This or
            ``image_tokens`` is needed where a block returns text and image joined.
        image_tokens: Returns the number of image tokens, including references and padding; for models whose embedder
            does not show it.
        joined_tokens: Returns the number of tokens in a joined sequence, None where the call does not show it; for
            models where the streams of the block before it don't.
        target: Returns a (B, S) or (S,) bool mask, True for generated tokens, False for references; None for all.
        real: Returns a (B, S) or (S,) bool mask, False for padding; None where nothing is padded.
        block_target: As ``target``, from the first block's arguments, for trainers that call the blocks without the
            model.
        block_real: As ``real``, from the first block's arguments, for trainers that call the blocks without the model.
        grid: Returns (T, H, W) of the tokens; None where the call does not show it.
        video: The tokens have frames, so ``grid`` must be known before they can be viewed by frame.
        measured: Which of the image tokens are generated is measured from the main loss in every step, since nothing
            else shows it.
    """

    model_classes: str | Sequence[str]
    stacks: str | BlockStack | Sequence[str | BlockStack] | Callable[[Any], Sequence[BlockStack]]
    block_class: str = ""
    derived_block: str | Sequence[str] = ()
    width: Width | None = None
    embedder: str | None = None
    image_tokens: Callable[[ForwardCall], int] | None = None
    joined_tokens: Callable[[ForwardCall], int | None] | None = None
    target: Callable[[ForwardCall], Tensor | None] | None = None
    real: Callable[[ForwardCall], Tensor | None] | None = None
    block_target: Callable[[ForwardCall], Tensor | None] | None = None
    block_real: Callable[[ForwardCall], Tensor | None] | None = None
    grid: Callable[[ForwardCall], tuple[int, int, int] | None] | None = None
    video: bool = False
    measured: bool = False

    def __post_init__(self) -> None:
        names = (self.model_classes,) if isinstance(self.model_classes, str) else tuple(self.model_classes)
        object.__setattr__(self, "model_classes", names)
        if not callable(self.stacks):
            stacks = (self.stacks,) if isinstance(self.stacks, (str, BlockStack)) else self.stacks
            object.__setattr__(
                self, "stacks", tuple(BlockStack(stack) if isinstance(stack, str) else stack for stack in stacks)
            )
            _refuse_twice(self.stacks)  # type: ignore[arg-type]

    def fits(self, model: nn.Module) -> bool:
        """Return whether the model has one of the class names, and the blocks that the layout describes."""
        return not self.misfit(model)

    def misfit(self, model: nn.Module) -> str:
        """Return why the layout does not fit the model, as a clause; empty where it does."""
        if class_names(model).isdisjoint(self.model_classes):
            return f"model_classes names {', '.join(self.model_classes)} and not {type(model).__name__}"
        found = self.blocks(model)
        if found:
            _, path, block = found[0]
            kinds = _kinds(block)
            if self.block_class and self.block_class not in kinds:
                return f"{path} is a {type(block).__name__}, not a {self.block_class}"
            return self._derived_misfit(type(model), path, block, kinds)
        missing = [
            stack.path for stack in self._stacks_of(model) if not hasattr(module_at(model, stack.path), "__iter__")
        ]
        reason = f"it has no list of blocks at {', '.join(missing)}" if missing else "stacks finds no blocks in it"
        return f"{reason} (lists in it: {', '.join(_lists(model)) or 'none'})"

    def _derived_misfit(self, kind: type, path: str, block: nn.Module, kinds: set[str]) -> str:
        """Return why a class derived from one of the layout's is a different model; empty where it isn't."""
        bases = kind.__mro__
        base: Any = next(item for item in bases if item.__name__ in self.model_classes)
        if not any({"__init__", "forward"} & vars(item).keys() for item in bases[: bases.index(base)]):
            return ""  # a wrapper's, such as FSDP's
        known = (self.derived_block,) if isinstance(self.derived_block, str) else self.derived_block
        why = ""
        if known and kinds.isdisjoint(known):
            why = f"{path} is a {type(block).__name__}, not a {' or '.join(known)}"
        else:
            taken = signature(base.forward).parameters
            asked = signature(cast(Any, kind).forward).parameters.values()
            anything = any(item.kind in _SEVERAL for item in taken.values())
            new = [item.name for item in asked if _is_required(item) and item.name not in taken]
            if new and not anything:
                why = f"its forward needs {', '.join(new)}"
        return why and f"{kind.__name__} is derived from {base.__name__}, but is another model: {why}"

    def blocks(self, model: nn.Module) -> list[tuple[BlockStack, str, nn.Module]]:
        """Return (stack, path, module) of every block in execution order; empty when a stack is missing.

        Raises:
            ConfigError: Two stacks mean the same block, or one means blocks that its list does not have.
        """
        found = []
        stacks = self._stacks_of(model)
        _refuse_twice(stacks)
        for stack in stacks:
            modules = module_at(model, stack.path)
            if not hasattr(modules, "__iter__"):  # missing, or not a list of blocks
                return []
            if stack.only is not None and stack.only.stop > (count := sum(1 for _ in modules)):
                raise ConfigError(
                    f"BlockStack({stack.path!r}) has only {stack.only!r}, but the list has {count} blocks; valid are "
                    f"ranges up to range({count})"
                )
            found += [
                (stack, f"{stack.path}.{index}", module)
                for index, module in enumerate(modules)
                if stack.only is None or index in stack.only
            ]
        return found

    def _stacks_of(self, model: nn.Module) -> Sequence[BlockStack]:
        if not callable(self.stacks):
            return cast("tuple[BlockStack, ...]", self.stacks)  # converted in __post_init__
        try:
            return self.stacks(model)
        except AttributeError:  # another model with the same class name
            return ()


def _refuse_twice(stacks: Sequence[BlockStack]) -> None:
    """Refuse stacks that mean a block twice, or blocks of a list in another order than they run in.

    Raises:
        ConfigError: There are some.
    """
    ends: dict[str, int | None] = {}
    for stack in stacks:
        if stack.path in ends:
            end = ends[stack.path]
            if end is None or stack.only is None or stack.only.start < end:
                raise ConfigError(
                    f"BlockStack({stack.path!r}) with only {stack.only!r} comes after one that has its blocks up to "
                    f"{'the last' if end is None else end - 1} already, so that blocks would count twice or out of "
                    "order; give each part of the list once, in order, such as range(0, 8) and range(8, 12)"
                )
        ends[stack.path] = None if stack.only is None else stack.only.stop


def latent_grid(argument: str, patch: Callable[[Any], Sequence[int]]) -> Callable[[ForwardCall], Any]:
    """Return a ``grid`` function for latents (B, C, H, W) or (B, C, T, H, W) that are cut into patches.

    Args:
        argument: Name of the forward's latents.
        patch: Returns the model's patch size as (T, H, W).
    """

    def grid(call: ForwardCall) -> tuple[int, int, int] | None:
        latents = call.arguments.get(argument)
        if latents is None or latents.ndim not in (4, 5):  # for example, in a class derived for sound
            return None
        sizes = (1, *latents.shape[2:])[-3:]
        frames, rows, columns = (size // step for size, step in zip(sizes, patch(call.model), strict=True))
        return frames, rows, columns

    return grid


def joined_text(argument: str, dual: str) -> Callable[[ForwardCall], int | None]:
    """Return a ``joined_tokens`` function for models without dual-stream blocks, whose output would show the number.

    Args:
        argument: Name of the forward's text states, (B, S, D).
        dual: Name of the list of dual-stream blocks in the model.
    """

    def joined(call: ForwardCall) -> int | None:
        text = call.arguments.get(argument)
        return None if text is None or getattr(call.model, dual) else call.tokens + int(text.shape[1])

    return joined


def class_names(module: nn.Module) -> set[str]:
    """Return the names of a module's class and base classes."""
    return {base.__name__ for base in type(module).__mro__}


def _kinds(block: Any) -> set[str]:
    """Return the class names of a block, and of the module inside where a compiler or a checkpoint wraps it."""
    kinds: set[str] = set()
    while block is not None:
        kinds |= class_names(block)
        block = next((inner for name in _INSIDE if (inner := getattr(block, name, None)) is not None), None)
    return kinds


_INSIDE = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def _is_required(parameter: Parameter) -> bool:
    return parameter.default is Parameter.empty and parameter.kind not in _SEVERAL


_SEVERAL = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def _lists(model: nn.Module) -> list[str]:
    """Return the paths of the lists of modules in a model, without those inside of others."""
    found: list[str] = []
    for path, module in model.named_modules():
        if "ModuleList" in class_names(module) and not path.startswith(tuple(f"{outer}." for outer in found)):
            found.append(path)
    return found


def module_at(model: nn.Module, path: str) -> Any:
    """Return the object at a path in a model; None where there is none."""
    try:
        return attrgetter(path)(model)
    except AttributeError:
        return None


def width_of(source: Width | None, model: nn.Module, block: nn.Module) -> int | None:
    """Return the channels of a block's output; None where the layout does not give them."""
    if source is None:
        return None
    width = module_at(model, source) if isinstance(source, str) else source(model, block)
    return width if isinstance(width, int) else None
