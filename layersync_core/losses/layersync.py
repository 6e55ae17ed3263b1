"""LayerSync as a regularizer, on the same footing as one from any plugin (arXiv 2510.12581)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel
from torch import Tensor, nn

from layersync_core.capture.lengths import CAUSE
from layersync_core.config import LayerSyncConfig
from layersync_core.errors import ConfigError, LayerSyncWarning
from layersync_core.losses.alignment import centered_similarity, similarity
from layersync_core.losses.fine_tuning import only_adapters_train
from layersync_core.losses.hookspecs import hookimpl
from layersync_core.losses.pairing import pair_advice
from layersync_core.metrics import total
from layersync_core.pairs import Pair
from layersync_core.protocol import Block, RegularizerBase, States, Term
from layersync_core.schedule import Schedule

log = logging.getLogger(__name__)


@hookimpl
def layersync_config_models() -> Sequence[type[BaseModel]]:
    """Claim the ``layersync_*`` keys."""
    return [LayerSyncConfig]


@hookimpl
def layersync_regularizers(config: LayerSyncConfig) -> Sequence[LayerSync]:
    """Return LayerSync when it is enabled."""
    return [LayerSync(config)] if config.layersync_enabled else []


@dataclass(frozen=True)
class ResolvedPair:
    """A student, a teacher and the weight of their term."""

    student: Block
    teacher: Block
    weight: float

    def __str__(self) -> str:
        return f"{self.student.index + 1}-{self.teacher.index + 1}"


class LayerSync(RegularizerBase):
    """Pull the tokens of the student block towards those of the teacher block.

    ``loss = -weight · mean over samples and tokens of cos(student, stopgrad(teacher))``, summed over the pairs.

    Args:
        config: Enabled settings.
    """

    name = "layersync"
    order = 200

    def __init__(self, config: LayerSyncConfig) -> None:
        self.config = config
        self.schedule: Schedule | None = config.schedule if config.has_schedule else None
        self.pairs: list[ResolvedPair] = []

    def layers(self, blocks: Sequence[Block]) -> set[int]:
        """Resolve the pairs and return their layers.

        Raises:
            ConfigError: A block is deeper than the model, or the blocks of a pair do not fit together.
        """
        self.pairs = [_resolve(pair, blocks) for pair in self.config.pairs]
        for pair in self.pairs:
            _check_fit(pair)
        for pair in self.pairs:
            _warn_of(pair)
        return {block.index for pair in self.pairs for block in (pair.student, pair.teacher)}

    def describe(self) -> list[str]:
        """Return the resolved pairs as lines for a terminal."""
        return [
            line
            for pair in self.pairs
            for line in (f"student: {pair.student}", f"teacher: {pair.teacher}", f"weight: {pair.weight:g}")
        ]

    def begin(self, model: nn.Module) -> None:
        """Warn when the paper's weight is used although only adapter weights train."""
        chosen = self.config.layersync_lambda is not None or self.config.layersync_preset is not None
        pairs = self.config.layersync_pairs
        weighed = pairs is not None and all(len(pair) > 2 for pair in pairs)
        if not chosen and not weighed and only_adapters_train(model):
            warnings.warn(
                "only adapter weights train and layersync_lambda is not set: the default 0.2 is a hundred times the "
                "authors' fine-tuning weight; set layersync_preset lora (0.002), or layersync_lambda",
                LayerSyncWarning,
                stacklevel=2,
            )

    def compute(self, states: States, step: int) -> Term:
        """Return the term of one step, with ``layersync_loss`` and ``layersync_similarity``."""
        factor = 1.0 if self.schedule is None else self.schedule.factor(step)
        losses, similarities, centered = [], [], []
        metrics: dict[str, Tensor] = {}
        for pair in self.pairs:
            if self.config.layersync_log_grad_ratio:
                student_BSD = states.tokens_with_grad_ratio(pair.student.index, "layersync_grad_ratio")
            else:
                student_BSD = states.trainable_tokens(pair.student.index)
            teacher_BSD = states.tokens(pair.teacher.index)
            if student_BSD.shape != teacher_BSD.shape:
                raise ConfigError(
                    f"student {pair.student} has hidden states {tuple(student_BSD.shape)} and teacher {pair.teacher} "
                    f"{tuple(teacher_BSD.shape)}; "
                    + (CAUSE if student_BSD.shape[1] != teacher_BSD.shape[1] else "they must have the same width")
                )
            mask_BS = states.mask_of(self.config.layersync_tokens)
            if self.config.layersync_log_grad_ratio:
                centered.append(centered_similarity(student_BSD, teacher_BSD, mask_BS))
            result = similarity(student_BSD, teacher_BSD, mask_BS, states.sample_weight)
            losses.append(result.weighted * (-pair.weight * factor))
            similarities.append(result.raw)
            if len(self.pairs) > 1:
                metrics[f"layersync_similarity/{pair}"] = result.raw
        loss = total(losses)
        metrics["layersync_loss"] = loss
        metrics["layersync_similarity"] = _mean(similarities)
        if centered:
            metrics["layersync_similarity_centered"] = _mean(centered)
        return Term(loss, metrics)


def _resolve(pair: Pair, blocks: Sequence[Block]) -> ResolvedPair:
    return ResolvedPair(_find(pair.student, "student", blocks), _find(pair.teacher, "teacher", blocks), pair.weight)


def _find(number: int, role: str, blocks: Sequence[Block]) -> Block:
    index = max(number - 1, 0)  # 0 also means the first block
    if index >= len(blocks):
        raise ConfigError(
            f"LayerSync could not find layer {number} (the {role} block): the model has {len(blocks)} blocks; "
            f"valid are 1 to {len(blocks)}, and 0 for the first"
        )
    return blocks[index]


def _check_fit(pair: ResolvedPair) -> None:
    student, teacher = pair.student, pair.teacher
    if (student.width, student.stage) == (teacher.width, teacher.stage):
        return
    described = [
        f"{role} {block} has width {block.width}{f' in stage {block.stage}' if block.stage else ''}"
        for role, block in (("student", student), ("teacher", teacher))
    ]
    raise ConfigError(f"{' and '.join(described)}; a pair needs the same width and stage")


def _warn_of(pair: ResolvedPair) -> None:
    student, teacher = pair.student, pair.teacher
    if student.index == teacher.index:
        warnings.warn(
            f"student and teacher are the same block, {student}: its similarity with itself is constant and gives "
            "no gradient; set layersync_teacher_block to a deeper block",
            LayerSyncWarning,
            stacklevel=2,
        )
    for advice in pair_advice(student, teacher):
        log.warning(advice)


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else total(values) / len(values)
