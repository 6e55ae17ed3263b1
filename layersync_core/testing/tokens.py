"""Checks that an adapter finds the right model, its blocks in order, and the tokens of the sample in their outputs."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import nn

from layersync_core.errors import LayerSyncError
from layersync_core.testing.arguments import perturbed, sequences
from layersync_core.testing.probe import Seen
from layersync_core.testing.remedy import Remedy, in_words
from layersync_core.testing.subject import Subject, masks_of

_STAGE = "blocks of another resolution need a separate stage, BlockStack(…, stage=…)"
_OUTWEIGHED = (
    "if the block's output holds no text, the tiny model's text outweighs its sample: make the text weaker, or name in "
    'the test the argument that is the sample and those that hold text, sample = "…" and text = (…)'
)


class TokenChecks(Subject):
    """Checks of an adapter's description of a model."""

    def test_knows_the_model(self, model: nn.Module) -> None:
        """The adapter accepts the model, and its subclass as FSDP2 makes it."""
        self._check(self.adapter.supports_hidden_states(model), lambda: self._why_unknown(model))
        renamed = copy.deepcopy(model)
        renamed.__class__ = type(f"FSDP{type(model).__name__}", (type(model),), {})
        self._check(
            self.adapter.supports_hidden_states(renamed),
            "a subclass of the model's class, as FSDP2 makes it, is not recognised",
            "compare model_classes with the names of all classes in type(model).__mro__, as BlockStackAdapter does",
        )
        other = nn.ModuleList([nn.Linear(2, 2)])
        self._check(
            not self.adapter.supports_hidden_states(other),
            "supports_hidden_states() is True for any module",
            "return True only where one of the model's classes is in model_classes and its blocks are there, as "
            "BlockStackAdapter does",
        )

    def test_blocks_are_numbered_in_execution_order(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """Every listed block exists, runs once in a forward, and in the listed order."""
        blocks = self.adapter.list_blocks(model)
        self._check(
            [block.index for block in blocks] == list(range(len(blocks))),
            "indices are not 0, 1, 2, …",
            "your own list_blocks() must number the blocks in the order in which they run, across all lists",
        )
        if self.depth is not None:
            self._check(
                len(blocks) == self.depth,
                f"{len(blocks)} blocks are listed, the model has {self.depth}",
                partial(self._remedy, model, inputs, partial(Remedy.depth, depth=self.depth)),
            )
        ran: list[int] = []
        handles = [
            model.get_submodule(block.path).register_forward_pre_hook(lambda *_, index=block.index: ran.append(index))
            for block in blocks
        ]
        with torch.no_grad():
            model(**inputs)
        for handle in handles:
            handle.remove()
        self._check(
            ran == [block.index for block in blocks],
            f"blocks are listed as 0, 1, … but ran as {ran}",
            partial(self._remedy, model, inputs, partial(Remedy.order, ran=ran)),
        )

    def test_states_have_the_stated_shape(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """(B, S, D) with the block's width; the grid fills S; masks are (B, S) and keep some tokens."""
        seen = self._look(model, inputs)
        stages: dict[str, int] = {}
        for block in self.adapter.list_blocks(model):
            state_BSD = seen.states[block.index]
            self._check(
                state_BSD.ndim == 3 and state_BSD.shape[0] == self.batch_size,
                f"{block} has states {tuple(state_BSD.shape)}",
                f"collect() must put (B, S, D) into the buffer, here with B {self.batch_size}; test a model that takes "
                "one sample at a time with batch_size = 1",
            )
            tokens, width = state_BSD.shape[1:]
            if block.width is not None:
                self._check(
                    width == block.width,
                    f"{block} declares width {block.width}, but has {width}",
                    partial(self._remedy, model, inputs, partial(Remedy.width, width=width)),
                )
            length = stages.setdefault(block.stage, tokens)
            self._check(
                tokens == length,
                f"{block} has {tokens} tokens, but others have {length}",
                partial(self._remedy, model, inputs, Remedy.stacks, _STAGE),
            )
        self._check_grid_and_masks(seen, length, alone=len(stages) == 1)

    def test_tokens_belong_to_the_sample(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """Another sample changes every token more than another text does: none of them is a text token."""
        sample, text = self._sample(inputs), self._text_in(inputs)
        with torch.enable_grad():
            before = self._look(model, inputs)
            other_sample = self._look(model, perturbed(inputs, [sample]))
            other_text = self._look(model, perturbed(inputs, text))
        for layer, state_BSD in before.states.items():
            by_sample_BS = (other_sample.states[layer] - state_BSD).norm(dim=-1)
            by_text_BS = (other_text.states[layer] - state_BSD).norm(dim=-1)
            real_BS = torch.ones_like(by_sample_BS, dtype=torch.bool)
            # Reference tokens may come from another argument than the sample.
            for mask in masks_of(before).values():
                if mask.shape == real_BS.shape:
                    real_BS &= mask
            wrong_S = (real_BS & ~(by_sample_BS > by_text_BS)).any(dim=0).nonzero().flatten().tolist()
            self._check(not wrong_S, partial(self._why_wrong, model, inputs, before, layer, wrong_S))

    def test_text_length_leaves_the_tokens_alone(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """More text tokens do not change the number of tokens."""
        longer_text = type(self).longer_text
        if longer_text is None:
            return
        before = self._look(model, inputs)
        longer = longer_text(inputs)
        after = self._look(model, longer)
        for layer, state_BSD in before.states.items():
            shapes = tuple(state_BSD.shape), tuple(after.states[layer].shape)
            self._check(
                shapes[0] == shapes[1],
                f"layer {layer}: the text's length changes its shape from {shapes[0]} to {shapes[1]}",
                partial(self._remedy, model, inputs, Remedy.stacks, "longer_text must make only the text longer"),
            )

    def _check_grid_and_masks(self, seen: Seen, length: int, alone: bool) -> None:
        if seen.tokens.grid is not None and alone:
            frames, rows, columns = seen.tokens.grid
            self._check(
                frames * rows * columns == length,
                f"grid {seen.tokens.grid} does not fill {length} tokens",
                "grid= returns (T, H, W) in tokens, as they are after the latents are cut into patches, and None where "
                "references or padding are among them",
            )
        for name, mask in masks_of(seen).items():
            self._check(
                mask.dtype == torch.bool and tuple(mask.shape) == (self.batch_size, length),
                f"{name} is {mask.dtype} {tuple(mask.shape)}: a mask is not (B, S) bool",
                f"{name}= returns (B, S) or (S,) bool, True for the tokens that count",
            )
            self._check(
                bool(mask.any(dim=1).all()),
                "a sample has no token that counts",
                f"{name}= returns True for the tokens that count; it may be the wrong way round",
            )

    def _why_unknown(self, model: nn.Module) -> str:
        try:
            self.adapter.list_blocks(model)
        except LayerSyncError as error:
            return str(error)
        return f"supports_hidden_states() is False; return True for a {type(model).__name__} whose blocks are there"

    def _why_wrong(self, model: nn.Module, inputs: dict[str, Any], before: Seen, layer: int, wrong_S: list[int]) -> str:
        """Return which tokens of a layer do not follow the sample, what they follow instead, and what to write.

        Args:
            model: The model.
            inputs: Its forward's arguments.
            before: What the adapter captured with them.
            layer: Index of the layer.
            wrong_S: Positions of the tokens.
        """
        sample, text = self._sample(inputs), tuple(self._known_text(inputs))
        state_BSD = before.states[layer]
        strongest_S = torch.zeros(state_BSD.shape[1])
        followed: list[tuple[str, ...]] = [()] * state_BSD.shape[1]
        for names in (text, *((name,) for name in sequences(inputs, [sample, *text]))):
            other = self._look(model, perturbed(inputs, names)).states[layer]
            moved_S = (other - state_BSD).float().norm(dim=-1).sum(dim=0)
            for position in (moved_S > strongest_S).nonzero().flatten().tolist():
                followed[position] = names
            strongest_S = strongest_S.maximum(moved_S)
        found = []
        for names in dict.fromkeys(followed[position] for position in wrong_S):
            which = in_words([position for position in wrong_S if followed[position] == names], len(followed))
            follow = f"{' and '.join(names)} and not {sample}" if names else "nothing"
            if not names:
                advice = "if they are padding, give the adapter real=, which returns False for them"
            elif names == text:
                advice = self._remedy(model, inputs, Remedy.stacks, _OUTWEIGHED)
            else:
                advice = "if they are reference images, give the adapter target=, which returns False for them"
                stacks = self._remedy(model, inputs, Remedy.stacks)
                advice += f"; if they are text, {stacks}" if stacks else ""
            fault = f"{self.adapter.list_blocks(model)[layer]} has tokens that follow {follow}"
            found.append(f"{fault}: {which}; {advice}")
        return ". ".join(found)
