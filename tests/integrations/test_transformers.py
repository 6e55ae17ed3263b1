"""The mixin of transformers' Trainer: the gradients are those of loss plus term, however the Trainer divides."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from layersync_core.errors import CaptureError, ConfigError
from layersync_core.integrations.transformers import LayerSyncTrainerMixin
from tests.models import assert_same_gradients, gradients_by_autograd, hooks_on, settings
from tests.probe import probe as probe
from tests.run.inside import WEIGHT, by_hand, main_loss, micro_batches, switched_on
from tests.since import since

SETTINGS = settings(1, 3, WEIGHT)


class Batches(Dataset[Any]):
    """Whole batches: the loader takes them one by one."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]


class Grads(TrainerCallback):
    """Keeps the gradients of each optimiser step."""

    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        self.found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


class Flow(Trainer):
    """A mean over the samples, as diffusion models are trained with."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        loss = main_loss(outputs)
        return (loss, {"loss": loss, "sample": outputs.sample}) if return_outputs else loss

    def _get_train_sampler(self, *_: Any) -> Any:
        return None


class Synced(LayerSyncTrainerMixin, Flow):
    pass


def trainer(
    kind: Any, model: nn.Module, batches: Sequence[Any], folder: Path, more: Any = None, **arguments: Any
) -> Any:
    given = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "num_train_epochs": 1,
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "optim": "sgd",
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    model.train = lambda mode=True: model  # type: ignore[method-assign]  # a DiT drops labels at random in train mode
    args = TrainingArguments(**{**given, **arguments})
    made = kind(
        model=model,
        args=args,
        train_dataset=Batches(batches),
        eval_dataset=Batches(batches[:1]),
        data_collator=lambda items: items[0],
        **(SETTINGS if more is None else more),
    )
    made.grads = Grads()
    made.add_callback(made.grads)
    return made


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_gradients_are_those_of_loss_plus_term(accumulation: int, tmp_path: Path) -> None:
    model, batches, expected = micro_batches(accumulation)
    run = trainer(Synced, model, batches, tmp_path, gradient_accumulation_steps=accumulation)
    run.train()
    assert len(run.grads.found) == run.state.global_step == 1
    assert_same_gradients(run.grads.found[0], expected)
    logged = run.state.log_history[0]
    assert logged["layersync_loss"] == pytest.approx(-WEIGHT * logged["layersync_similarity"], rel=1e-5)
    assert {"loss", "layersync_loss"} <= logged.keys()
    assert "layersync_loss" not in run.state.log_history[-1], "of the whole training, not of a step"
    assert (hooks_on(model), run.layersync) == (0, None)


class Meaner(nn.Module):
    """Returns a loss that is its share of the accumulated batch, as language models of transformers do."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, labels: Tensor, num_items_in_batch: Any = None, **inputs: Any) -> dict[str, Tensor]:
        outputs = self.transformer(**inputs)
        loss = main_loss(outputs)
        share = 1 if num_items_in_batch is None else labels.numel() / num_items_in_batch
        return {"loss": loss * share, "sample": outputs.sample}


class Own(LayerSyncTrainerMixin, Trainer):
    pass


@since("transformers", "4.49", "its Trainer tells a loss no number of items")
@pytest.mark.parametrize(
    ("way", "accumulation"), [("model", 1), ("model", 4), ("compute_loss_func", 4), ("loss_is_scaled_for_ga", 4)]
)
def test_a_loss_that_is_divided_by_the_items_of_the_step(way: str, accumulation: int, tmp_path: Path) -> None:
    """Batches of one size, so that a share is a mean of all."""
    model, batches, expected = micro_batches(accumulation)
    labelled = [{**inputs, "labels": torch.zeros(2, dtype=torch.long)} for inputs in batches]
    arguments: Any = {"gradient_accumulation_steps": accumulation}
    if way == "model":
        run = trainer(
            Own, Meaner(model), labelled, tmp_path, SETTINGS | {"layersync_model": "transformer"}, **arguments
        )
    elif way == "compute_loss_func":

        def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
            return main_loss(outputs) * labels.numel() / num_items_in_batch

        run = trainer(Own, model, labelled, tmp_path, SETTINGS | {"compute_loss_func": loss}, **arguments)
    else:

        class Scaled(Flow):
            loss_is_scaled_for_ga = True

            def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
                return super().compute_loss(*args, **kwargs) / accumulation

        run = trainer(type("Run", (LayerSyncTrainerMixin, Scaled), {}), model, batches, tmp_path, **arguments)
    run.train()
    found = {name.removeprefix("transformer."): grad for name, grad in run.grads.found[0].items()}
    assert_same_gradients(found, expected)


@since("transformers", "4.49", "its Trainer leaves such a step out")
def test_a_last_step_of_fewer_batches_is_their_mean(tmp_path: Path) -> None:
    model, batches, _ = micro_batches(3)
    expected = gradients_by_autograd(by_hand(untouched := copy.deepcopy(model), batches[2]), untouched)
    run = trainer(Synced, model, batches, tmp_path, gradient_accumulation_steps=2)
    run.train()
    assert_same_gradients(run.grads.found[1], expected)


def test_evaluation_is_without_the_term_and_disturbs_nothing(tmp_path: Path) -> None:
    model, (inputs,), expected = micro_batches(1)
    plain = float(main_loss(model(**inputs)).detach())
    run = trainer(Synced, model, [inputs] * 2, tmp_path, eval_strategy="steps", eval_steps=1, label_names=["timestep"])
    run.train()
    assert [row["eval_loss"] for row in run.state.log_history if "eval_loss" in row] == pytest.approx([plain] * 2)
    assert not any("layersync_loss" in row for row in run.state.log_history if "eval_loss" in row)
    assert_same_gradients(run.grads.found[1], expected)
    assert run.evaluate()["eval_loss"] == pytest.approx(plain)


def test_outputs_are_returned_beside_the_loss(tmp_path: Path) -> None:
    model, (inputs,), expected = micro_batches(1)

    class Asking(LayerSyncTrainerMixin, Flow):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            assert outputs["sample"].shape[0] == 2
            return loss

    run = trainer(Asking, model, [inputs], tmp_path)
    run.train()
    assert_same_gradients(run.grads.found[0], expected)


def test_in_bf16(tmp_path: Path) -> None:
    model, (inputs,), expected = micro_batches(1)
    plain = gradients_by_autograd(main_loss(model(**inputs)), model)
    heavy = {name: plain[name] + 100 * (expected[name] - plain[name]) for name in plain}
    run = trainer(Synced, model, [inputs], tmp_path, {**SETTINGS, "layersync_lambda": 100 * WEIGHT}, bf16=True)
    run.train()
    assert_same_gradients(run.grads.found[0], heavy, tolerance=0.1, floor=0.1)


def test_a_run_goes_on_with_the_step_and_the_trained_part(probe: list[Any], tmp_path: Path) -> None:
    model, batches, _ = micro_batches(4)
    settings = {"learning_rate": 0.1, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    first = trainer(Synced, model, batches, tmp_path, **settings)
    first.train()
    parts: list[Any] = []

    class Begin(TrainerCallback):
        def on_train_begin(self, *_: Any, **more: Any) -> None:
            parts.append(copy.deepcopy(again.layersync.state_dict()))

    again = trainer(Synced, model, batches, tmp_path, **settings)
    again.add_callback(Begin())
    again.train(resume_from_checkpoint=True)  # of the last step, so that nothing is left to train
    saved = probe[0].module.state_dict()
    assert parts[0]["step"] == again.state.global_step == 4
    assert all(torch.equal(value, saved[name]) for name, value in parts[0]["modules"]["probe"].items())
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert parts[1]["step"] == 2
    assert not torch.equal(parts[1]["modules"]["probe"]["weight"], saved["weight"])
    assert len(probe) == 3
    (tmp_path / "checkpoint-2" / "layersync_state.safetensors").unlink()
    with pytest.raises(ConfigError, match="probe would start anew"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_the_schedule_counts_optimiser_steps(tmp_path: Path) -> None:
    model, batches, expected = micro_batches(2)
    more = {**SETTINGS, "layersync_cutoff_step": 2}
    run = trainer(Synced, model, batches * 3, tmp_path, more, gradient_accumulation_steps=2)
    run.train()
    plain = gradients_by_autograd(sum(main_loss(model(**inputs)) for inputs in batches) / 2, model)
    assert_same_gradients(run.grads.found[1], expected)
    assert_same_gradients(run.grads.found[2], plain)


def test_nothing_is_left_after_an_interrupt_and_training_can_begin_anew(tmp_path: Path) -> None:
    model, (inputs,), expected = micro_batches(1)

    class Fails(Flow):
        fails = True

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            if self.fails:
                raise KeyboardInterrupt
            return loss

    run = trainer(type("Run", (LayerSyncTrainerMixin, Fails), {}), model, [inputs], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert (hooks_on(model), run.layersync) == (0, None)
    run.fails = False
    run.train()
    assert_same_gradients(run.grads.found[0], expected)


def test_a_loss_without_the_term_is_an_error(tmp_path: Path) -> None:
    model, (inputs,), _ = micro_batches(1)

    class Around(LayerSyncTrainerMixin, Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return main_loss(model(**inputs))

    with pytest.raises(CaptureError, match="compute_loss of Around doesn't call that of LayerSyncTrainerMixin"):
        trainer(Around, model, [inputs], tmp_path).train()


def test_an_optimiser_that_is_made_past_the_mixin_is_an_error(tmp_path: Path) -> None:
    model, (inputs,), _ = micro_batches(1)

    class Past(LayerSyncTrainerMixin, Flow):
        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0)
            return self.optimizer

    with pytest.raises(CaptureError, match="create_optimizer of Past has to call that of LayerSyncTrainerMixin"):
        trainer(Past, model, [inputs], tmp_path).train()


def test_a_division_that_is_not_known_is_an_error(tmp_path: Path) -> None:
    model, batches, _ = micro_batches(2)

    class Divides(Flow):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().training_step(*args, **kwargs)

    kind = type("Run", (LayerSyncTrainerMixin, Divides), {})
    with pytest.raises(CaptureError, match=r"Run divides its losses .* set loss_is_scaled_for_ga"):
        trainer(kind, model, batches, tmp_path, gradient_accumulation_steps=2).train()


def test_a_loss_without_a_gradient_is_an_error(tmp_path: Path) -> None:
    model, (inputs,), _ = micro_batches(1)

    class Detaches(Flow):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs).detach()

    kind = type("Run", (LayerSyncTrainerMixin, Detaches), {})
    with pytest.raises(CaptureError, match="Run: the training step's loss has no gradient"):
        trainer(kind, model, [inputs], tmp_path).train()


def test_the_mixin_behind_the_trainer_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"class Wrong\(LayerSyncTrainerMixin, Trainer\)"):

        class Wrong(Trainer, LayerSyncTrainerMixin):
            pass


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({**SETTINGS, "layersync_model": "transformer"}, "Synced finds no model 'transformer' in DiT"),
        ({**SETTINGS, "layersync_lamda": 1}, "layersync_lamda"),
        ({"layersync_student_block": 3}, "without layersync_enabled"),
        (settings(1, 99), "LayerSync could not find layer"),
    ],
)
def test_a_mistake_is_an_error(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    model, (inputs,), _ = micro_batches(1)
    with pytest.raises(ConfigError, match=message):
        trainer(Synced, model, [inputs], tmp_path, more).train()
    assert hooks_on(model) == 0


def test_replicas_are_refused(tmp_path: Path) -> None:
    model, (inputs,), _ = micro_batches(1)
    run = trainer(Synced, model, [inputs], tmp_path)
    run.args._n_gpu = 2
    with pytest.raises(ConfigError, match=r"nn\.DataParallel on 2 devices"):
        run.create_optimizer()


def test_switched_off_it_leaves_everything_as_it_is(tmp_path: Path) -> None:
    model, batches, _ = micro_batches(2)
    plain = gradients_by_autograd(sum(main_loss(model(**inputs)) for inputs in batches) / 2, model)
    more = {"layersync_enabled": False}
    run = trainer(Synced, model, batches, tmp_path, more, gradient_accumulation_steps=2, save_strategy="epoch")
    run.train()
    assert_same_gradients(run.grads.found[0], plain)
    assert "layersync_loss" not in run.state.log_history[0]
    assert not [*tmp_path.glob("**/layersync_*")]


def test_under_layersync_run_it_is_refused(tmp_path: Path) -> None:
    with switched_on(tmp_path) as launch:
        training = launch()
        model, (inputs,), _ = micro_batches(1)
        with pytest.raises(ConfigError, match=r"under layersync run .* would count twice"):
            trainer(Synced, model, [inputs], tmp_path).train()
        assert "would count twice" in training.journal.status.error, "and the run ends with exit code 2"
