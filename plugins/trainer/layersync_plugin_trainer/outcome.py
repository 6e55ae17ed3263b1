"""The outcome of one arm of a run, for its reports."""

# Shapes: B batch, N blocks

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from layersync_plugin_trainer import data


@dataclass
class Outcome:
    """The outcome of an arm, for reports.

    Attributes:
        name: ``layersync`` or ``vanilla``.
        family: Id of the model's family.
        objective: Name of the main loss.
        blocks: The text of each resolved pair, such as ``block 3 of 10 (transformer_blocks.2)``.
        history: Logged metrics, each with its ``step``.
        data: The training data.
        layout_modality: image, video or audio.
        model_class: Name of the model's class.
        parameters: Number of weights, and number of trained weights.
        samples: (B, *shape) drawn at the end; None except on the first rank.
        sample_labels: (B,) their classes.
        further_samples: Further samples that the objective drew, by title, each (B, *shape).
        similarity: Layer similarity ``before`` and ``after`` training, (N, N); only with ``--compare``.
        held_out: Loss on held-out data at the end.
        seconds: Time spent training in this process.
        steps: Steps trained in this process.
        device: The device it ran on.
        processes: Number of processes.
        distributions: Whose code took part.
    """

    name: str
    family: str
    objective: str
    blocks: list[dict[str, str]]
    history: list[dict[str, float]]
    data: data.Dataset
    layout_modality: str
    model_class: str
    parameters: tuple[int, int]
    device: str
    processes: int
    pairs: list[tuple[int, int]]
    conditional: bool
    distributions: list[dict[str, str]] = field(default_factory=list)
    samples: Tensor | None = None
    sample_labels: Tensor | None = None
    further_samples: dict[str, Tensor] = field(default_factory=dict)
    similarity: dict[str, Tensor] = field(default_factory=dict)
    held_out: float = float("nan")
    seconds: float = 0.0
    steps: int = 0
