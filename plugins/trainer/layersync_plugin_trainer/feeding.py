"""Feed noisy samples to any family's forward, as the family's ``tiny`` module describes it."""

# Shapes: B batch

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from layersync_core import ConfigError, Tiny
from layersync_plugin_trainer.layout import OWN_LOOP, layout_of, name_of

DECLARED = {
    "modality": '"image", "video" or "audio"',
    "sample": "the name of the noisy sample among the example inputs",
    "axes": 'its axes, such as "BCHW"',
    "timestep": "the name of the timestep",
    "tiny_model": "a function that returns the model",
    "example_inputs": "a function of model and batch_size that returns the arguments of its forward",
    "grid": "the sizes of the axes in the first parenthesis of axes",
    "classes": "a function of the model that returns how many labels it knows",
}
"""What the trainer reads in a tiny module, and what to write there where it is missing."""
LABEL_EMBEDDERS = ("LabelEmbedding", "LabelEmbedder")


def declared(family: str, module: ModuleType) -> Tiny:
    """Return a family's tiny module after checking that it has what the trainer needs.

    Raises:
        ConfigError: It lacks something.
    """
    axes, labels = getattr(module, "axes", ""), getattr(module, "labels", None)
    spared = {"grid": "(" not in axes.replace("(C22)", ""), "classes": labels is None}
    missing = [name for name in DECLARED if not spared.get(name) and not hasattr(module, name)]
    if missing:
        raise ConfigError(
            f"family {family}: {module.__name__} lacks {', '.join(missing)}, without which layersync train cannot feed "
            f"its model; write there {'; '.join(f'{name} = {DECLARED[name]}' for name in missing)}"
        )
    return cast(Tiny, module)


class Feed:
    """What goes into one model's forward, and what comes out.

    Attributes:
        layout: How plain samples are arranged for the model.
        time_scale: The largest timestep of the model, 1 or 1000.
        classes: How many classes the model knows; None if it takes no classes.
        null_label: The label for "no class"; None if there isn't one.

    Args:
        tiny: A family's tiny module.
        model: The model, bare (without wrappers).
        seed: Makes ``example_inputs`` return the same conditions every time.

    Raises:
        ConfigError: The example inputs do not fit the model, or are not what the tiny module declares.
    """

    def __init__(self, tiny: Tiny, model: nn.Module, seed: int = 0) -> None:
        self._model, self._seed = model, seed
        self._tiny = cast(Any, tiny)  # attributes beyond the protocol are looked up by name
        self._labels: str | None = getattr(tiny, "labels", None)
        self._in_one = tiny.axes.startswith("B")
        self._cache: dict[tuple[int, str], dict[str, Any]] = {}
        example = self._example(2)
        kinds: dict[str, Any] = {tiny.sample: Tensor if self._in_one else list, tiny.timestep: Tensor}
        for name, kind in (kinds | ({self._labels: Tensor} if self._labels else {})).items():
            if not isinstance(example.get(name), kind):
                given = ", ".join(f"{key} ({type(value).__name__})" for key, value in example.items())
                raise ConfigError(
                    f"{name_of(tiny)} declares {name!r} as a {kind.__name__} (axes {tiny.axes}), but its "
                    f"example_inputs are {given or '(none)'}; correct what it declares"
                )
        sample = example[tiny.sample]
        whole = sample if self._in_one else sample[0][None]
        self.layout = layout_of(tiny, whole)
        _check_channels(tiny, self.layout.channel, whole, model)
        time = self._drawn(8)[tiny.timestep]
        # Integers, or values above 1, mean that the model counts time from 0 to 1000.
        self.time_scale = 1000 if not time.is_floating_point() or float(time.max()) > 1 else 1
        self._shares_time = example[tiny.timestep].shape[:1] == (1,)
        self.classes: int | None = self._tiny.classes(model) if self._labels else None
        self.null_label = _null_label(model, self.classes)

    def check_batch(self, size: int) -> None:
        """Refuse batches of several samples if the model takes one time for all of them.

        Args:
            size: Samples per forward, each with its own time.

        Raises:
            ConfigError: All of them would get the time of the first.
        """
        if self._shares_time and size > 1:
            raise ConfigError(
                f"train_batch_size is {size}, but {type(self._model).__name__} takes one timestep for a whole batch; "
                "give 1, and gradient_accumulation_steps for larger steps"
            )

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
        inputs = self._on(len(noisy), noisy.device)
        inputs[self._tiny.sample] = self._beside_conditions(sample, inputs[self._tiny.sample])
        inputs[self._tiny.timestep] = self._time(inputs[self._tiny.timestep], time)
        if self._labels is not None:
            inputs[self._labels] = labels.to(inputs[self._labels].dtype)
        return self.layout.from_model(self._prediction(model(**inputs), sample))

    def _beside_conditions(self, sample: Tensor, example: Any) -> Any:
        """Return a sample as the model takes it: with the example's conditions as extra channels, or as a list."""
        if not self._in_one:
            return [*sample.unbind()]
        axis, noisy = self.layout.channel, sample.shape[self.layout.channel]
        rest = example.shape[axis] - noisy
        return torch.cat([sample, example.narrow(axis, noisy, rest)], axis) if rest else sample

    def _prediction(self, output: Any, sample: Tensor) -> Tensor:
        """Return what a forward predicts: the first tensor shaped like the sample.

        Twice the channels means a prediction and a variance, as in the original DiT: the first half is the prediction.

        Raises:
            ConfigError: There is no such tensor.
        """
        if hasattr(self._tiny, "prediction"):
            found: Tensor = self._tiny.prediction(output, sample)
            return found
        seen, axis = [], self.layout.channel
        doubled = [size * 2 if place == axis else size for place, size in enumerate(sample.shape)]
        for value in _tensors(output):
            if value.shape == sample.shape:
                return value
            if list(value.shape) == doubled:
                return value.chunk(2, dim=axis)[0]
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
        # Every sample gets the conditions of the first, so that the batch size doesn't change what the model sees.
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
                where = f"{name_of(self._tiny)}.example_inputs does not fit {type(self._model).__name__}"
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
    """Run one forward without gradients, to find out at once whether the model can be fed.

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


def _check_channels(tiny: Tiny, channel: int, sample: Tensor, model: nn.Module) -> None:
    """Refuse axes that put channels where the model has frames, for example: both orders have the same shape."""
    config = getattr(model, "config", None)
    wanted = config.get("in_channels") if isinstance(config, Mapping) else getattr(config, "in_channels", None)
    sizes = sample.shape[1:]
    if isinstance(wanted, int) and sizes[channel - 1] != wanted and wanted in sizes:
        raise ConfigError(
            f"{name_of(tiny)} declares axes {tiny.axes}, with {sizes[channel - 1]} channels in a sample of shape "
            f"{tuple(sample.shape)}, but in_channels of {type(model).__name__} is {wanted}, the size of another axis; "
            "correct axes, for example to BTCHW where frames come before channels"
        )


def _null_label(model: nn.Module, classes: int | None) -> int | None:
    # DiT's label embedder has one more row than there are classes, for "no class".
    tables = [module.embedding_table for module in model.modules() if type(module).__name__ in LABEL_EMBEDDERS]
    rows = {getattr(table, "num_embeddings", 0) for table in tables}
    return classes if classes and classes + 1 in rows else None


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from (value for item in output.values() for value in _tensors(item))
    elif isinstance(output, (list, tuple)):
        alike = len({item.shape if isinstance(item, Tensor) else None for item in output}) == 1
        if alike and len(output) > 1 and isinstance(output[0], Tensor) and output[0].dim() > 2:
            yield torch.stack(list(output))  # one prediction per sample, for models that take a list
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
