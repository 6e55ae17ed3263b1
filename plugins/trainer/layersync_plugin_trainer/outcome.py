"""What an arm of a run leaves for its reports."""

# Shapes: B batch, N blocks

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from layersync_plugin_trainer import data


@dataclass
class Outcome:
    """What an arm leaves for reports.

    Attributes:
        name: ``layersync`` or ``vanilla``.
        family: Id of the model's family.
        objective: What the main loss is.
        blocks: Text of each resolved pair, such as ``block 3 of 10 (transformer_blocks.2)``.
        history: Logged metrics, each with its ``step``.
        data: The training data.
        layout_modality: image, video or audio.
        model_class: Name of the model's class.
        parameters: Number of weights, and of trained ones.
        samples: (B, *shape) drawn at the end; None on other ranks than the first.
        sample_labels: (B,) their classes.
        similarity: Layer similarity ``before`` and ``after`` training, (N, N); only when comparing.
        held_out: Loss on held-out data at the end.
        seconds: Time spent training in this process.
        steps: Steps trained in this process.
        device: Where it ran.
        processes: Number of processes.
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
    samples: Tensor | None = None
    sample_labels: Tensor | None = None
    similarity: dict[str, Tensor] = field(default_factory=dict)
    held_out: float = float("nan")
    seconds: float = 0.0
    steps: int = 0
