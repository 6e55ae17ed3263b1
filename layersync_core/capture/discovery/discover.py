"""Discover a model's blocks and generated tokens from one call of it."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layersync_core.capture.discovery.behind import behind_zeros
from layersync_core.capture.discovery.chain import Link, before, begins_again, last_link, without_branches
from layersync_core.capture.discovery.counting import count, no_embedder
from layersync_core.capture.discovery.found import Discovery, Question
from layersync_core.capture.discovery.latents import latents_of
from layersync_core.capture.discovery.places import gradients_at, ranges
from layersync_core.capture.discovery.record import Recorder, Recording, Run, by_token
from layersync_core.capture.forward import Forward
from layersync_core.capture.graph import tensors_in
from layersync_core.capture.reading import Parameters
from layersync_core.errors import CaptureError


def discover(model: nn.Module, inputs: Mapping[str, Any], loss: Callable[[Any], Tensor] | None = None) -> Discovery:
    """Discover a model's blocks and generated tokens in a call made for the purpose.

    Args:
        model: The unwrapped model; its weights may be random, and are left as they are.
        inputs: Arguments of its forward by name.
        loss: Returns a scalar computed from the model's output; default: a random projection of the whole output, for
            which references are as good as generated tokens.

    Raises:
        CaptureError: Nothing can be measured: the loss does not depend on what a list of blocks returned.
    """
    recording, recorder = Recording(kwargs=inputs), Recorder(model)
    recorder.begin(recording)
    try:
        with torch.enable_grad():
            recording.output = model(**inputs)
            recorder.end()
            value = projection(recording.output) if loss is None else loss(recording.output)
    finally:
        recorder.remove()
    found = measure(model, recording, value)
    if found is None:
        raise CaptureError(
            f"no gradient of the loss arrives at a block of {type(model).__name__}, so nothing can be measured; give "
            "weights and inputs for which its output isn't zero, and a loss that depends on that output"
        )
    return found


def projection(output: Any) -> Tensor:
    """Return a random projection of all floating tensors in what a model returned."""
    parts = [tensor for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.requires_grad]
    if not parts:
        raise CaptureError("what the model returned has no gradient: its weights, or some of them, must be trainable")
    return torch.stack([(tensor.float() * torch.randn_like(tensor.float())).sum() for tensor in parts]).sum()


def measure(model: nn.Module, recording: Recording, loss: Tensor) -> Discovery | None:
    """Return what one forward and its loss show of a model; None where no gradient shows anything.

    Args:
        model: The unwrapped model.
        recording: The forward, with its graph.
        loss: Its loss, without any term. Its graph is kept.
    """
    with _random_apart(model):
        return _measure(model, recording, loss)


@contextmanager
def _random_apart(model: nn.Module) -> Iterator[None]:
    """Leave the state of the program's random number generators unchanged."""
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        yield


def _measure(model: nn.Module, recording: Recording, loss: Tensor) -> Discovery | None:
    recording.turn()
    lists, questions = without_branches(recording.lists())
    repeated = [runs for runs in lists if len({run.name for run in runs}) < len(runs)]
    name = type(model).__name__
    if not lists:
        asked = Question("blocks", "no list in it has blocks that return hidden states (B, S, D) or (S, D)")
        return Discovery(name, questions=(asked,))
    last, asked_element = _last(model, recording, lists, loss)
    if asked_element is not None:
        return Discovery(name, questions=(*questions, asked_element))
    if last is None:
        return None
    chain = _chain(model, last, lists)
    for link in chain:
        if link.runs in repeated:
            questions.append(Question("blocks", f"a block of {link.path} ran more than once in one forward"))
        elif again := begins_again(link):
            questions.append(again)
    result = count(model, recording, chain)
    arguments = Parameters.of(model).by_name(Forward(args=recording.args, kwargs=recording.kwargs))
    # Stages have grids of their own.
    latents = None if chain[0].resolution else latents_of(model, arguments, result.tokens)
    by_latents = result.counts and result.embedder is None and latents is not None
    if result.counts and result.embedder is None and latents is None and not result.questions:
        result.questions.append(no_embedder(result.tokens, recording))
    return Discovery(
        name,
        tuple(result.stacks),
        tokens=result.tokens,
        generated=tuple(ranges(tokens_S) for tokens_S in last.tokens),
        embedder=result.embedder,
        by_latents=by_latents,
        measured=result.measured,
        latents=latents,
        # Tokens whose grid is unknown must not be viewed by frame.
        video=latents is None or "T" in latents.axes,
        questions=(*questions, *result.questions),
    )


def _last(
    model: nn.Module, recording: Recording, lists: Sequence[Sequence[Run]], loss: Tensor
) -> tuple[Link | None, Question | None]:
    """Return the last list that the generated tokens run through."""
    for runs in reversed(lists):
        made = runs[-1].outputs()
        found = dict(zip(made, gradients_at(loss, list(made.values())), strict=True))
        known = {place: item for place, item in found.items() if item is not None}
        if not known:
            continue  # no path in the graph from it to the loss
        if not any(bool(item.any()) for item in known.values()):
            hidden = behind_zeros(model, recording, runs[-1], loss) or {}
            known = {
                place: by_token(item) if hasattr(made[place], "raw") else item
                for place, item in hidden.items()
                if place in made
            }
        return last_link(runs, {place: item for place, item in known.items() if bool(item.isfinite().all())})
    return None, None


def _chain(model: nn.Module, last: Link, lists: Sequence[Sequence[Run]]) -> list[Link]:
    chain = [last]
    for runs in reversed(lists):
        if runs[-1].number < chain[0].runs[0].number and (link := before(model, chain[0], runs)) is not None:
            chain.insert(0, link)
    return chain
