"""Feed noisy samples to any family's forward, knowing only its ``tiny_model`` and ``example_inputs``.

An adapter's ``tiny`` module may help where the rules here do not fit, with any of:

- ``modality``: "image", "video" or "audio";
- ``sample_of(inputs) -> Tensor``: the noisy sample among the forward's arguments;
- ``with_sample(inputs, sample) -> dict``: the arguments with another sample;
- ``prediction(output, sample) -> Tensor``: what the forward returned, shaped like the sample.
"""

# Shapes: B batch

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from layersync_core import ConfigError
from layersync_plugin_trainer.layout import Layout, layout_of

SAMPLE_NAMES = ("hidden_states", "sample", "x", "img", "latents", "latent", "x_t", "noisy_latents", "inputs")
TIME_NAMES = ("timestep", "timesteps", "t", "time", "sigma", "sigmas")
LABEL_NAMES = ("class_labels", "y", "labels", "label")
CLASS_COUNTS = ("num_embeds_ada_norm", "num_classes", "num_class_embeds")
LABEL_EMBEDDERS = ("LabelEmbedding", "LabelEmbedder")
OWN_LOOP = "train it in a loop of your own with layersync_core.attach"


class Feed:
    """What goes into one model's forward, and what comes out.

    Args:
        tiny: A family's tiny module.
        model: The model, bare (without wrappers).
        seed: Makes ``example_inputs`` give the same conditions every time.

    Raises:
        ConfigError: The example inputs do not fit the model, or no sample or timestep is found among them.
    """

    def __init__(self, tiny: ModuleType, model: nn.Module, seed: int = 0) -> None:
        self._tiny, self._model, self._seed = tiny, model, seed
        self._cache: dict[tuple[int, str], dict[str, Any]] = {}
        example = self._example(2)
        self.sample_name = "" if hasattr(tiny, "sample_of") else _find_sample(example)
        self.time_name = _find(example, TIME_NAMES, "timestep")
        sample = self.sample_of(example)
        self.layout: Layout = layout_of(sample, example, getattr(tiny, "modality", None))
        time = self._drawn(8)[self.time_name]
        # Integers, or values above 1, mean that the model counts time from 0 to 1000.
        self.time_scale = 1000 if not time.is_floating_point() or float(time.max()) > 1 else 1
        self.classes = _classes(model)
        self.label_name = _find_labels(example) if self.classes else None
        self.null_label = _null_label(model, self.classes) if self.label_name else None

    def __call__(self, model: nn.Module, noisy: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """Return the model's prediction for noisy samples.

        Args:
            model: The model, wrapped or bare.
            noisy: (B, *shape) plain samples, see ``Layout``.
            time: (B,) share of noise, 0 to 1.
            labels: (B,) classes; unused by models without labels.

        Returns:
            (B, *shape).
        """
        sample = self.layout.to_model(noisy)
        inputs = self.with_sample(self._on(len(noisy), noisy.device), sample)
        inputs[self.time_name] = self._time(inputs[self.time_name], time)
        if self.label_name is not None:
            inputs[self.label_name] = labels.to(inputs[self.label_name].dtype)
        return self.layout.from_model(self.prediction(model(**inputs), sample))

    def sample_of(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the noisy sample among forward arguments; a list of equal samples is stacked."""
        if hasattr(self._tiny, "sample_of"):
            found: Tensor = self._tiny.sample_of(inputs)
            return found
        value = inputs[self.sample_name]
        return torch.stack(list(value)) if isinstance(value, (list, tuple)) else value

    def with_sample(self, inputs: Mapping[str, Any], sample: Tensor) -> dict[str, Any]:
        """Return forward arguments with another sample."""
        if hasattr(self._tiny, "with_sample"):
            return dict(self._tiny.with_sample(inputs, sample))
        listed = isinstance(inputs[self.sample_name], (list, tuple))
        return {**inputs, self.sample_name: list(sample.unbind()) if listed else sample}

    def prediction(self, output: Any, sample: Tensor) -> Tensor:
        """Return what a forward predicts: the first tensor shaped like the sample.

        Twice the channels are a prediction and a variance, as in the original DiT: the first half counts.

        Raises:
            ConfigError: There is no such tensor.
        """
        if hasattr(self._tiny, "prediction"):
            found: Tensor = self._tiny.prediction(output, sample)
            return found
        seen = []
        for value in _tensors(output):
            if value.shape == sample.shape:
                return value
            channel = 2 if sample.dim() == 3 else 1
            doubled = list(sample.shape)
            doubled[channel] *= 2
            if list(value.shape) == doubled:
                return value.chunk(2, dim=channel)[0]
            seen.append(str(tuple(value.shape)))
        raise ConfigError(
            f"the model returned {', '.join(seen) or 'no tensor'} for a sample of shape {tuple(sample.shape)}; its "
            "tiny module may define prediction(output, sample)"
        )

    def _on(self, count: int, device: torch.device) -> dict[str, Any]:
        key = (count, str(device))
        if key not in self._cache:
            self._cache[key] = _move(self._example(count), device)
        return dict(self._cache[key])

    def _example(self, count: int) -> dict[str, Any]:
        # Every sample gets the conditions of the first, so that a model sees the same whatever the batch size is.
        row, batch = self._drawn(1), self._drawn(count)
        for name, value in batch.items():
            if isinstance(value, Tensor) and value.dim() and value.shape[0] == count != row[name].shape[0]:
                batch[name] = row[name].expand(count, *row[name].shape[1:]).clone()
        return batch

    def _drawn(self, count: int) -> dict[str, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            try:
                return dict(self._tiny.example_inputs(self._model, count))
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                where = f"{self._tiny.__name__}.example_inputs does not fit {type(self._model).__name__}"
                raise ConfigError(f"{where} ({reason}); {OWN_LOOP}") from error

    def _time(self, example: Tensor, time: Tensor) -> Tensor:
        value = time * self.time_scale
        if not example.is_floating_point():
            value = value.round().clamp(max=self.time_scale - 1)
        value = value.to(example.dtype)
        if example.dim() > 1 and example.shape[0] == len(time):  # a time for each token or frame
            value = value.reshape(-1, *[1] * (example.dim() - 1)).expand_as(example)
        return value


def check_forward(feed: Feed, model: nn.Module) -> None:
    """Run one forward without gradients, so that a model that cannot be fed is known at once.

    Raises:
        ConfigError: The forward fails, or returns nothing shaped like the sample.
    """
    device = next(model.parameters()).device
    noisy = torch.zeros(2, *feed.layout.shape, device=device)
    with torch.no_grad():
        try:
            feed(model, noisy, torch.full((2,), 0.5, device=device), torch.zeros(2, dtype=torch.long, device=device))
        except ConfigError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(
                f"{type(model).__name__} cannot be fed with embedded data ({reason}); {OWN_LOOP}"
            ) from error


def _find(inputs: Mapping[str, Any], names: tuple[str, ...], what: str) -> str:
    for name in names:
        if isinstance(inputs.get(name), Tensor):
            return name
    raise ConfigError(f"no {what} among the inputs {', '.join(inputs)}; it is looked for as {', '.join(names)}")


def _find_sample(inputs: Mapping[str, Any]) -> str:
    def size(value: Any) -> int:
        if isinstance(value, (list, tuple)) and value and all(isinstance(item, Tensor) for item in value):
            return value[0].numel() * len(value) if len({item.shape for item in value}) == 1 else 0
        floating = isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 3
        return value.numel() if floating else 0

    named = [name for name in SAMPLE_NAMES if size(inputs.get(name))]
    if named:
        return named[0]
    found = max(inputs, key=lambda name: size(inputs[name]), default="")
    if not found or not size(inputs[found]):
        raise ConfigError(
            f"no noisy sample among the inputs {', '.join(inputs) or '(none)'}; it is looked for as "
            f"{', '.join(SAMPLE_NAMES)}, then as the largest floating tensor; a tiny module may define sample_of"
        )
    return found


def _find_labels(inputs: Mapping[str, Any]) -> str | None:
    for name in LABEL_NAMES:
        value = inputs.get(name)
        if isinstance(value, Tensor) and value.dim() == 1 and not value.is_floating_point():
            return name
    return None


def _classes(model: nn.Module) -> int | None:
    config = getattr(model, "config", None)
    for name in CLASS_COUNTS:
        count = config.get(name) if isinstance(config, Mapping) else getattr(config, name, getattr(model, name, None))
        if isinstance(count, int) and count > 0:
            return count
    return None


def _null_label(model: nn.Module, classes: int | None) -> int | None:
    # DiT's label embedder has one row more than there are classes: the row for no class.
    for module in model.modules():
        if type(module).__name__ in LABEL_EMBEDDERS and getattr(module.embedding_table, "num_embeddings", 0) == (
            (classes or 0) + 1
        ):
            return classes
    return None


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from (value for item in output.values() for value in _tensors(item))
    elif isinstance(output, (list, tuple)):
        alike = len({item.shape if isinstance(item, Tensor) else None for item in output}) == 1
        if alike and len(output) > 1 and isinstance(output[0], Tensor) and output[0].dim() > 2:
            yield torch.stack(list(output))  # one prediction a sample, for models that take a list
        yield from (value for item in output for value in _tensors(item))
    elif hasattr(output, "sample"):
        yield from _tensors(output.sample)


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _move(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_move(item, device) for item in value)
    return value
