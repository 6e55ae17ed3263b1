"""One training step of a class without an adapter, beside the same step with plain hooks."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.discovery.classes import Unknown

LAMBDA = 0.5


def settings(model: Any, unknown: Unknown) -> dict[str, Any]:
    """Return settings with the pair's numbers, counted over the lists in the order in which they run."""
    lists = dict.fromkeys(path.rpartition(".")[0] for path in (unknown.student[0], unknown.teacher[0]))
    paths = [f"{path}.{index}" for path in lists for index in range(len(model.get_submodule(path)))]
    assert len(paths) == unknown.blocks
    return {
        "layersync_enabled": True,
        "layersync_student_block": paths.index(unknown.student[0]) + 1,
        "layersync_teacher_block": paths.index(unknown.teacher[0]) + 1,
        "layersync_lambda": LAMBDA,
    }


def backward_as_with_plain_hooks(sync: Any, model: Any, unknown: Unknown) -> None:
    """Run a forward and a backward, and compare each weight's gradient with that of two hooks and the plain formula."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda module, args, output, path=path, read=read: seen.update({path: read(output)})
        )
        for path, read in (unknown.student, unknown.teacher)
    ]
    output = unknown.trained(model(**unknown.inputs()))
    for handle in handles:
        handle.remove()
    main = (output - torch.randn_like(output)).pow(2).mean()
    student, teacher = seen[unknown.student[0]], seen[unknown.teacher[0]].detach()
    assert student.ndim == 3
    term = -LAMBDA * torch.cosine_similarity(student, teacher, dim=-1).mean()
    total = sync.apply(main)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    wanted = torch.autograd.grad(main + term, weights, retain_graph=True, allow_unused=True)
    without = torch.autograd.grad(main, weights, retain_graph=True, allow_unused=True)
    model.zero_grad()
    total.backward()
    got = [weight.grad for weight in weights]
    for mine, theirs in zip(got, wanted, strict=True):
        if theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert any(
        one is not None and other is not None and not torch.allclose(one, other, rtol=1e-3, atol=1e-5)
        for one, other in zip(got, without, strict=True)
    )
    assert (sync.student.path, sync.teacher.path) == (unknown.student[0], unknown.teacher[0])
