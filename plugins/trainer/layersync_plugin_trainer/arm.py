"""One arm of a run: build a model, attach, train, and report the outcome."""

from __future__ import annotations

import json
import math
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from tqdm.auto import tqdm

from layersync_core import ConfigError, Objective, attach, completed
from layersync_plugin_trainer import checkpoint as checkpoints
from layersync_plugin_trainer import data, models, objective
from layersync_plugin_trainer.config import Settings, TrainerConfig
from layersync_plugin_trainer.feeding import Feed, check_forward
from layersync_plugin_trainer.loop import Trainer
from layersync_plugin_trainer.outcome import Outcome
from layersync_plugin_trainer.restoring import restore
from layersync_plugin_trainer.similarity import layer_similarity
from layersync_plugin_trainer.stopping import Stop
from layersync_plugin_trainer.writing import together, whole, writing

SAMPLES = {"image": 40, "video": 4, "audio": 8}
"""How many samples are drawn for the figures."""


def make_accelerator(config: TrainerConfig, folder: Path) -> Accelerator:
    """Return an accelerator whose trackers write into ``folder``/logs.

    Raises:
        ConfigError: The precision does not work here, or the tracker is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    tracker = None if config.report_to == "none" else config.report_to
    if tracker is not None and tracker not in [str(name) for name in get_available_trackers()]:
        known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
        remedy = f"pip install {tracker}" if tracker in known else f"known: {', '.join(known)}, none"
        raise ConfigError(f"report_to is {tracker!r}, which accelerate cannot use here; {remedy}")
    try:
        return Accelerator(
            mixed_precision=config.mixed_precision,
            # As a plugin, since accelerate's environment variable overrides the plain argument.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=config.gradient_accumulation_steps, sync_with_dataloader=False
            ),
            log_with=tracker,
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "logs")),
            step_scheduler_with_optimizer=False,
        )
    except ValueError as error:
        raise ConfigError(f"mixed_precision {config.mixed_precision}: {' '.join(str(error).split())}") from error


def train_arm(
    name: str,
    settings: Settings,
    regularizers: dict[str, Any],
    main: Objective,
    source: models.Source,
    folder: Path,
    resume: checkpoints.Checkpoint | None,
    accelerator: Accelerator,
    resume_line: str,
    started: Callable[[], None],
) -> Outcome:
    """Train one arm to its end and export it.

    Args:
        name: ``layersync`` or ``vanilla``.
        settings: The run's settings.
        regularizers: The arm's own regularizers' settings.
        main: The objective that computes the main loss.
        source: Where the model comes from.
        folder: The arm's output folder.
        resume: Complete checkpoint to continue from.
        accelerator: This arm's accelerator.
        resume_line: The command that continues the run after a stop.
        started: Called once every start-up check has passed, before anything is written.

    Raises:
        ConfigError: The checkpoint belongs to another run, or the model cannot be trained as asked.
        SystemExit: The run was stopped by a signal, after its checkpoint was written.
    """
    config, device = settings.trainer, accelerator.device
    set_seed(config.seed)
    model = source.build(config).to(device)
    feed = Feed(source.tiny, model, config.seed)
    dataset = data.load(feed.layout.modality, feed.layout.shape, feed.classes)
    own = completed(main)
    own.begin(model, guided=feed.null_label is not None)
    feed.check_batch(config.batch_size)
    check_forward(feed, model)
    if config.guidance_scale is not None and feed.null_label is None:
        raise ConfigError(f"guidance_scale has no effect: {type(model).__name__} has no null class here; leave it out")
    identity = _identity(source, model, config, accelerator.num_processes, main)
    if config.compare:
        identity["arm"] = name
    if resume is not None:
        checkpoints.check_identity(resume, identity)
    weights = list(model.parameters())
    outcome = Outcome(
        name=name,
        family=source.family,
        objective=main.name,
        blocks=[],
        history=[],
        data=dataset,
        layout_modality=feed.layout.modality,
        model_class=type(model).__name__,
        parameters=(sum(w.numel() for w in weights), sum(w.numel() for w in weights if w.requires_grad)),
        device=str(device),
        processes=accelerator.num_processes,
        pairs=[],
        conditional=feed.classes is not None,
    )
    if config.compare and accelerator.is_main_process:
        outcome.similarity["before"] = layer_similarity(model, source.adapter, feed, dataset, config.seed, device)
    scheduled = {**regularizers, "max_train_steps": config.max_train_steps}
    with attach(model, scheduled, family=source.family, objective=main) as sync:
        outcome.blocks = [{"student": str(pair.student), "teacher": str(pair.teacher)} for pair in sync.pairs]
        outcome.pairs = [(pair.student.index, pair.teacher.index) for pair in sync.pairs]
        _announce(accelerator, outcome, [*own.describe(), *sync.describe()], config)
        trainer = prepare(accelerator, model, sync, feed, config, main)
        if resume is not None:
            with together(accelerator):
                restore(trainer, resume)
        accelerator.wait_for_everyone()
        started()
        with writing(folder / "logs"):
            accelerator.init_trackers("layersync", config=_flat(config, regularizers))
        batches = objective.Batches(
            dataset,
            config.seed,
            config.batch_size,
            config.gradient_accumulation_steps,
            accelerator.num_processes,
            accelerator.process_index,
            feed.null_label,
        )

        def save() -> None:
            limit = config.checkpoints_total_limit
            checkpoints.write(
                accelerator, sync, folder, trainer.global_step, identity, settings.given, trainer.history, limit
            )

        first, began = trainer.global_step, time.perf_counter()
        with (
            Stop() as stop,
            tqdm(
                total=config.max_train_steps,
                initial=first,
                desc=name,
                unit="step",
                mininterval=0.1 if sys.stderr.isatty() else 10,  # a log file gets one line per logged step
                disable=not accelerator.is_main_process,
            ) as bar,
        ):

            def of_step(step: int) -> Iterator[objective.Batch]:
                yield from batches.of_step(step)
                bar.update()

            def show(metrics: dict[str, float], step: int) -> None:
                if not math.isfinite(metrics["loss"]):
                    accelerator.print(
                        f"\nwarning: the loss is {metrics['loss']} at step {step}; lower the learning rate"
                    )
                bar.set_postfix({key: f"{value:.4g}" for key, value in metrics.items()})
                with writing(folder / "logs"):
                    accelerator.log({**metrics, "lr": trainer.scheduler.get_last_lr()[0]}, step=step)

            trainer.run(
                of_step, config.max_train_steps, stop, config.logging_steps, config.checkpointing_steps, save, show
            )
        outcome.seconds, outcome.steps = time.perf_counter() - began, trainer.global_step - first
        outcome.history, outcome.distributions = trainer.history, sync.distributions()
        with writing(folder / "logs"):
            for tracker in accelerator.trackers:
                tracker.finish()
    if stop.signal and trainer.global_step < config.max_train_steps:
        accelerator.print(f"stopped at step {trainer.global_step}; to resume: {resume_line}")
        raise SystemExit(stop.exit_code)
    if accelerator.is_main_process:
        _finish(outcome, model.eval(), main, source, feed, config, device, folder)
    accelerator.wait_for_everyone()
    return outcome


def _finish(
    outcome: Outcome,
    model: nn.Module,
    main: Objective,
    source: models.Source,
    feed: Feed,
    config: TrainerConfig,
    device: torch.device,
    folder: Path,
) -> None:
    kinds = int(outcome.data.labels.max()) + 1
    outcome.sample_labels = torch.arange(SAMPLES[outcome.layout_modality]) % kinds
    guidance = 2.0 if config.guidance_scale is None else config.guidance_scale
    outcome.samples = objective.sample(
        model, feed, outcome.sample_labels, config.num_sampling_steps, config.seed, device, guidance
    )
    noise = objective.sample_noise(feed, len(outcome.sample_labels), config.seed).to(device)
    with torch.no_grad():
        further = completed(main).draw(objective.Trained(model, feed), noise, outcome.sample_labels.to(device))
    outcome.further_samples = {title: samples.float().cpu() for title, samples in further.items()}
    outcome.held_out = objective.held_out_loss(model, feed, outcome.data, config.seed, device)
    if config.compare:
        outcome.similarity["after"] = layer_similarity(model, source.adapter, feed, outcome.data, config.seed, device)
    # Mixed precision wraps the forward; the exported model gets its own back.
    with whole(folder / "model") as place:
        completed(main).export(model, place)
        models.export(model, place, config.rank is not None)


def prepare(
    accelerator: Accelerator,
    model: nn.Module,
    sync: Any,
    feed: Feed,
    config: TrainerConfig,
    main: Objective | None = None,
) -> Trainer:
    """Return a trainer with optimiser and schedule, all prepared by accelerate; ``main`` defaults to flow matching."""
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    parameters += [weight for weight in sync.modules().parameters() if weight.requires_grad]
    # The fused update doesn't copy the step count back to the host.
    fused = accelerator.device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(
        parameters, lr=config.peak_rate, weight_decay=config.adam_weight_decay, fused=fused or None
    )
    scheduler = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
    )
    if config.rank is not None:
        accelerator.register_save_state_pre_hook(_only_trained(parameters))
    wrapped, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    main = main or objective.FlowMatching()
    return Trainer(accelerator, wrapped, sync, feed, optimizer, scheduler, parameters, config.max_grad_norm, main)


def _only_trained(parameters: list[nn.Parameter]) -> Any:
    trained = {id(weight) for weight in parameters}

    def keep(wrapped: list[nn.Module], states: list[dict[str, Tensor]], folder: str) -> None:
        for index, module in enumerate(wrapped):
            names = {name for name, weight in module.named_parameters() if id(weight) in trained}
            states[index] = {name: value for name, value in states[index].items() if name in names}

    return keep


def _identity(
    source: models.Source, model: nn.Module, config: TrainerConfig, processes: int, main: Objective
) -> dict[str, Any]:
    shapes = "".join(f"{name}{tuple(weight.shape)}" for name, weight in model.named_parameters())
    return {
        "objective": main.name,
        "family": source.family,
        "model class": type(model).__name__,
        "rank": config.rank,
        "model config": models.model_config(model),
        "weights' names and shapes": zlib.crc32(shapes.encode()),
        "number of processes": processes,
        "seed": config.seed,
    }


def _announce(accelerator: Accelerator, outcome: Outcome, attached: list[str], config: TrainerConfig) -> None:
    total, trained = outcome.parameters
    lora = f", {trained:,} of them trained (LoRA, rank {config.rank})" if config.rank else ""
    shape = "x".join(str(size) for size in outcome.data.samples.shape[1:])
    accelerator.print(f"{outcome.name}: {outcome.model_class}, {total:,} weights{lora}, on {outcome.device}")
    accelerator.print(f"data: {len(outcome.data.samples)} {outcome.data.name} of {shape}")
    accelerator.print(f"objective: {outcome.objective}")
    for line in attached:
        accelerator.print(line)


def _flat(config: TrainerConfig, regularizers: dict[str, Any]) -> dict[str, Any]:
    values = {**config.model_dump(), **regularizers}
    plain = (bool, int, float, str)
    return {key: value if isinstance(value, plain) else json.dumps(value, default=str) for key, value in values.items()}
