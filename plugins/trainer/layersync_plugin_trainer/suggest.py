"""``layersync suggest MODEL``: run a model on a few batches, and suggest a pair from what its blocks do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from layersync_core import (
    Adapter,
    CaptureError,
    ConfigError,
    Findings,
    Probe,
    blocks_of,
    find_model_config,
    load_tiny,
    model_of,
    validate,
)
from layersync_plugin_trainer import data
from layersync_plugin_trainer.config import SuggestConfig
from layersync_plugin_trainer.feeding import Feed, check_forward, declared
from layersync_plugin_trainer.models import Source, find_source
from layersync_plugin_trainer.objective import Batch, draw, flow_loss
from layersync_plugin_trainer.skipping import leave_out, leave_out_between

FED = (
    "fed with embedded samples, mixed with noise as flow matching does; for a model trained on other data or with "
    "other noise, --data or layersync run --layersync_suggest say more"
)
TINY = (
    "this is the family's tiny model with random weights: it shows what the command does, and says nothing about "
    "trained ones"
)
_BATCHES_OF_LOSS = 4  # per noise level
WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")


def suggest(settings: Mapping[str, Any], model: str, family: str | None) -> None:
    """Measure a model, write the three files and print the findings.

    Args:
        settings: The settings of ``SuggestConfig`` by name.
        model: Local folder, family, config.json or hub name.
        family: The family, for models whose config does not determine it.

    Raises:
        LayerSyncError: The model is unknown, refused or cannot be fed, a setting is wrong, or a file cannot be written.
    """
    config = validate(SuggestConfig, dict(settings))
    least = 2 * len(config.noise_levels)
    if 0 < config.skip < least:
        raise ConfigError(f"skip is {config.skip}, but leaving out one block takes {least} forwards; give more, or 0")
    found = _measured(config, model, family)
    for line in (*found.lines(), *found.write(config.output_dir)):
        print(line)


def _measured(config: SuggestConfig, model: str, family: str | None) -> Findings:
    source = _source(model, family)
    if isinstance(source, Findings):
        return source
    try:  # before the long measurement
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir {config.output_dir} cannot be made: {error.strerror or error}") from None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = source.whole().to(device).eval().requires_grad_(False)
    if config.data is not None:
        if config.skip:
            raise ConfigError("skip needs a loss, which batches of data do not have; leave skip or data out")
        chosen = config.model_fields_set & {"batches", "batch_size", "noise_levels"}
        if chosen:
            raise ConfigError(
                f"{' and '.join(sorted(chosen))} would do nothing: the files of data hold the batches, and their "
                "timesteps the noise; leave one or the other out"
            )
        return _with_data(config, network, source.adapter, device)
    return _with_embedded(config, network, source, device)


def _source(model: str, family: str | None) -> Source | Findings:
    """Return where a model's weights come from, or what is known if there is only its configuration."""
    if Path(model).exists() and any(
        file for pattern in WEIGHTS for file in find_model_config(model).parent.glob(pattern)
    ):
        return find_source(model, family)
    named = model_of(model, family)
    if next(named.model.parameters()).is_meta:
        return Findings(named.title, blocks_of(named.adapter, named.model))
    return Source(model, named.adapter, declared(model, load_tiny(model)))


def _with_data(config: SuggestConfig, model: nn.Module, adapter: Adapter, device: torch.device) -> Findings:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(config.data or "")
    try:
        files = sorted(item for item in path.iterdir() if item.suffix == ".safetensors") if path.is_dir() else [path]
    except OSError as error:
        raise ConfigError(f"data {path} cannot be read: {error.strerror or error}") from None
    if not files:
        raise ConfigError(
            f"data {path} has no safetensors file; write one for each forward, with its arguments by name"
        )
    with Probe(model, adapter, config.tokens, config.seed) as probe:
        for file in tqdm(files, desc="suggest", unit="forward"):
            try:
                arguments = load_file(file, device=str(device))
            except (OSError, SafetensorError) as error:
                raise ConfigError(f"data {file} cannot be read: {error}") from None
            labels = arguments.pop("labels", None)
            _check_labels(labels, arguments, file)
            before = probe.forwards
            with probe.at(labels=labels):
                _run(model, arguments, file)
            if probe.forwards == before:
                raise CaptureError(f"data {file}: the forward did not run all blocks of the model")
    return probe.findings()


def _check_labels(labels: Tensor | None, arguments: Mapping[str, Tensor], file: Path) -> None:
    if labels is None:
        return
    sizes = {len(value) for value in arguments.values() if value.ndim}
    whole = not labels.is_floating_point() and labels.dtype is not torch.bool
    if labels.ndim != 1 or not whole or len(labels) not in sizes or not len(labels):
        raise ConfigError(
            f"data {file}: labels has shape {tuple(labels.shape)} and type {labels.dtype}; expected one whole number "
            f"for each sample of the batch, (B,)"
        )
    if int(labels.min()) < 0:
        raise ConfigError(
            f"data {file}: labels has {int(labels.min())}; leave out the samples whose class is not known"
        )
    for name, value in arguments.items():
        if value.shape == labels.shape and torch.equal(value, labels):
            raise ConfigError(
                f"data {file}: {name} tells the model the labels, so a linear probe would read them back; leave labels "
                f"out, or give the model's null class as {name}"
            )


def _run(model: nn.Module, arguments: dict[str, Tensor], file: Path) -> None:
    try:
        model(**arguments)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        kinds = {value.dtype for value in arguments.values() if value.is_floating_point()}
        own = next(model.parameters()).dtype
        if kinds - {own}:
            reason += f" (the model's weights are {own}, arguments of this file {', '.join(map(str, kinds - {own}))})"
        raise ConfigError(f"data {file} does not fit the forward of {type(model).__name__}: {reason}") from error


def _with_embedded(config: SuggestConfig, model: nn.Module, source: Source, device: torch.device) -> Findings:
    feed = Feed(source.tiny, model, config.seed)
    try:
        check_forward(feed, model)
    except ConfigError as error:
        raise ConfigError(
            f"{error}, where sync.probe() measures it; or give --data with its own samples, or start its trainer "
            "with layersync run --layersync_suggest N"
        ) from error
    samples = data.load(feed.layout.modality, feed.layout.shape, feed.classes)
    found = measure(config, model, source.adapter, feed, samples, device)
    found.fed = TINY if source.folder is None else FED
    return found


def measure(
    config: SuggestConfig,
    model: nn.Module,
    adapter: Adapter,
    feed: Feed,
    samples: data.Dataset,
    device: torch.device,
    bar: bool = True,
) -> Findings:
    """Measure a model on samples: its blocks, and its loss without those between the pairs that speak for themselves.

    Args:
        config: How much is measured.
        model: The model, in eval mode and without an attachment.
        adapter: Its family's adapter.
        feed: How it is fed.
        samples: The data.
        device: Where the model is.
        bar: Whether to show progress.

    Raises:
        CaptureError: Hidden states are not finite.
    """
    batches = [*_batches(config, samples, feed)]
    # If the model got the classes, every probe could read them back.
    asked = feed.classes is None or feed.null_label is not None
    with Probe(model, adapter, config.tokens, config.seed) as probe:
        for level, batch in tqdm(batches, desc="suggest", unit="forward", disable=not bar):
            there = batch.to(device)
            labels = there.labels if feed.null_label is None else torch.full_like(there.labels, feed.null_label)
            with probe.at(level, there.labels if asked else None):
                feed(model, there.noisy, there.time, labels)
    found = probe.findings()
    each = len(batches) // len(config.noise_levels)
    some = [batch.to(device) for place, (_, batch) in enumerate(batches) if place % each < _BATCHES_OF_LOSS]
    leave_out_between(found, model, partial(_loss, model, feed, some))
    if config.skip:
        first = [batch.to(device) for _, batch in batches[::each]]
        leave_out(found, model, partial(_loss, model, feed, first), len(first), config.skip)
    return found


def _batches(config: SuggestConfig, samples: data.Dataset, feed: Feed) -> Iterator[tuple[float, Batch]]:
    """Yield batches for each noise level: the same samples at every level, each with its own noise, none twice."""
    size = min(config.batches * config.batch_size, len(samples.samples))
    chosen = data.positions(config.seed, 0, size, len(samples.samples))
    for level in config.noise_levels:
        whole = draw(samples.samples[chosen], samples.labels[chosen], data.generator(config.seed, "suggest", level))
        whole = replace(whole, time=torch.full_like(whole.time, level))
        for start in range(0, size, config.batch_size):
            yield level, whole[start : start + config.batch_size]


@torch.no_grad()
def _loss(model: nn.Module, feed: Feed, batches: list[Batch]) -> float:
    """Return the mean flow-matching loss over batches."""
    return float(torch.stack([flow_loss(partial(feed, model), batch) for batch in batches]).mean())
