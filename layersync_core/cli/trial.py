"""A training step of a family's tiny model, to check that its adapter works here."""

from __future__ import annotations

from layersync_core.errors import CaptureError
from layersync_core.families.asking import blocks_of
from layersync_core.families.registry import get_adapter, load_tiny
from layersync_core.losses.pairing import suggest_pair
from layersync_core.session import attach


def try_family(family: str) -> str:
    """Run one step with a family's tiny model and return the result as a clause.

    Raises:
        LayerSyncError: The adapter cannot be loaded, does not fit its own model, or captures nothing.
    """
    adapter = get_adapter(family)
    tiny = load_tiny(family)
    model = tiny.tiny_model()
    student, teacher = suggest_pair(blocks_of(adapter, model))
    settings = {
        "layersync_enabled": True,
        "layersync_student_block": student.index + 1,
        "layersync_teacher_block": teacher.index + 1,
    }
    with attach(model, settings, family=family) as sync:
        model(**tiny.example_inputs(model, 2))
        sync.loss().backward()
        similarity = float(sync.metrics()["layersync_similarity"])
    if not any(
        p.grad is not None and bool(p.grad.count_nonzero()) for p in model.get_submodule(student.path).parameters()
    ):
        raise CaptureError(f"the gradient of {student} is zero")
    return f"works: similarity {similarity:.3f} for {student} and {teacher}"
