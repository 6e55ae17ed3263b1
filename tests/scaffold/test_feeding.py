"""Finding inputs: the inputs that were tried are written, and error messages are used as hints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_core.scaffold.clues import read
from layersync_core.scaffold.feeding import feed, parameters_of
from layersync_core.scaffold.given import BATCH, TEXT, Given
from layersync_core.scaffold.guessing import Guesses


@pytest.mark.parametrize(
    "given",
    [
        Given("noise", (BATCH, TEXT, 24), "BSD"),
        Given("noise", (BATCH, 4, 1, 8, 6), "BCTHW", listed=True),
        Given("noise", (BATCH, TEXT, 8), "BSD", times=3),
        Given("unit", (BATCH,), "B"),
        Given("steps", (BATCH, 1), "BS"),
        Given("indices", (BATCH, TEXT), "BS"),
        Given("mask", (BATCH, TEXT), "BS"),
        Given("whole_ones", (BATCH, TEXT), "BS"),
        Given("zeros", (f"{TEXT} + 12", 3), "SD"),
        Given("lengths", (BATCH,), "B"),
        Given("positions", (1, 4, 3), "SD"),
        Given("repeated", value=[(1, 4, 3)]),
        Given("value", value=None),
        Given("unit", (), ""),
    ],
)
def test_the_source_makes_what_was_tried(given: Given) -> None:
    made = given.make({BATCH: 2, TEXT: 5})
    written = eval(given.source(), {"torch": torch, "batch_size": 2, "text": 5})

    def shapes(value: Any) -> Any:
        if isinstance(value, Tensor):
            return tuple(value.shape), value.dtype
        return [shapes(item) for item in value] if isinstance(value, list) else value

    assert shapes(made) == shapes(written)


def forward_of(function: Callable[..., Tensor]) -> nn.Module:
    """Return a model whose forward is a function of itself and the arguments."""
    kind = type("Model", (nn.Module,), {"forward": function})
    model: nn.Module = kind()
    model.linear, model.text = nn.Linear(9, 8), nn.Linear(21, 8)
    model.conv, model.table = nn.Conv2d(5, 8, 2, 2), nn.Embedding(2, 8)
    return model


def found(model: nn.Module, **settings: Any) -> dict[str, str]:
    fed = feed(model, Guesses("Model", settings, parameters_of(model)))
    assert not fed.error, fed.error
    return {name: given.source() for name, given in fed.inputs.given.items()}


def test_widths_are_read_from_errors() -> None:
    def forward(self: Any, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.conv(x).flatten(2).mean(-1) + self.text(context).mean(1) + t[:, None]

    assert found(forward_of(forward)) == {
        "x": "torch.randn(batch_size, 5, 8, 6)",
        "t": "torch.rand(batch_size)",
        "context": "torch.randn(batch_size, text, 21)",
    }


def test_the_order_of_axes_is_tried_and_not_bent() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    assert found(forward_of(forward), in_channels=5, num_frames=3) == {"x": "torch.randn(batch_size, 3, 5, 8, 6)"}


def test_what_lacks_is_given_and_the_rest_is_left_out() -> None:
    def forward(self: Any, x: Tensor, other: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return self.linear(x) + self.table(y)[:, None]

    assert found(forward_of(forward)) == {
        "x": "torch.randn(batch_size, 48, 9)",
        "y": "torch.randint(0, 2, (batch_size,))",
    }


def test_a_forward_without_an_answer_ends_and_says_where() -> None:
    def forward(self: Any, x: Tensor, secret: Tensor) -> Tensor:
        raise RuntimeError(f"no {secret.shape} will do")

    fed = feed(model := forward_of(forward), Guesses("Model", {}, parameters_of(model)))
    assert "will do" in fed.error
    assert list(fed.inputs.unknown) == ["secret"]


def test_an_error_names_what_stood_in_its_line() -> None:
    model = forward_of(lambda self, x, y: x)
    given = {"x": torch.randn(2, 3), "y": torch.randn(2, 4)}

    def inner(first: Tensor) -> Tensor:
        return first @ torch.ones(5, 1)

    def outer(x: Tensor, y: Tensor) -> Tensor:
        return inner(x.view(2, 3))

    with pytest.raises(RuntimeError) as raised:
        outer(**given)
    clues = read(raised.value, model, given, 4)
    assert clues.sizes == ((3, 5),)
    assert clues.blamed == ("x",)
