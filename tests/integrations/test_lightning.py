"""Lightning's callback: the gradients are those of loss plus term, and nothing is left behind."""

from __future__ import annotations

import copy
import signal
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from layersync_core.errors import CaptureError, ConfigError, LayerSyncWarning
from layersync_core.integrations import lightning as of_lightning
from layersync_core.integrations import pytorch_lightning as of_pytorch_lightning
from tests.models import assert_same_gradients, gradients, gradients_by_autograd, hooks_on, settings
from tests.probe import probe as probe
from tests.run.inside import WEIGHT, main_loss, micro_batches, switched_on

# Lightning's own, of tiny data and models in eval mode.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The '\\w+' does not have many workers",
    "ignore:You defined a `validation_step` but have no",
    "ignore:Found \\d+ module",
    "ignore:.*LeafSpec",
)
LayerSyncCallback = of_lightning.LayerSyncCallback
SETTINGS = settings(1, 3, WEIGHT)


CALLBACKS: dict[Any, Any] = {
    lightning.pytorch: of_lightning.LayerSyncCallback,
    pytorch_lightning: of_pytorch_lightning.LayerSyncCallback,
}


class Steps:
    """Trains a model on batches that are all the arguments of its forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.rate = 0.0
        self.transformer = model
        self.found: list[dict[str, Tensor]] = []
        self.instead: Callable[[Any], Any] | None = None

    def training_step(self, batch: Any, index: int) -> Any:
        if self.instead is not None:
            return self.instead(batch)
        return main_loss(self.transformer(**batch))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.found.append(
            {name: p.grad.clone() for name, p in self.transformer.named_parameters() if p.grad is not None}
        )

    def validation_step(self, batch: Any, index: int) -> Any:
        self.log("validation", main_loss(self.transformer(**batch)))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.transformer.parameters(), lr=self.rate)


class Flow(Steps, lightning.pytorch.LightningModule):
    pass


def flow_of(library: Any) -> Any:
    return type("Flow", (Steps, library.LightningModule), {})


def trainer(folder: Path, library: Any = lightning.pytorch, **more: Any) -> Any:
    arguments = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return library.Trainer(**{**arguments, **more})


def loader(batches: Sequence[Any]) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def fit(flow: Flow, batches: Sequence[Any], folder: Path, **more: Any) -> None:
    trainer(folder, callbacks=[LayerSyncCallback("transformer", **SETTINGS)], **more).fit(flow, loader(batches))


def test_the_gradients_are_those_of_loss_plus_term(tmp_path: Path) -> None:
    model, (inputs,), expected = micro_batches(1)
    flow = Flow(model)
    trainer(tmp_path, callbacks=[LayerSyncCallback("transformer", **SETTINGS)]).fit(flow, loader([inputs]))
    assert_same_gradients(flow.found[0], expected)


@pytest.mark.parametrize("library", [lightning.pytorch, pytorch_lightning], ids=lambda library: library.__name__)
def test_the_gradients_under_accumulation_are_those_of_the_mean(library: Any, tmp_path: Path) -> None:
    model, batches, expected = micro_batches(4)
    callback = CALLBACKS[library]("transformer", **SETTINGS)
    flow = flow_of(library)(model)
    run = trainer(tmp_path, library, accumulate_grad_batches=4, callbacks=[callback])
    run.fit(flow, loader(batches))
    assert len(flow.found) == run.global_step == 1
    assert_same_gradients(flow.found[0], expected)
    logged = run.logged_metrics
    assert float(logged["layersync_loss"]) == pytest.approx(-WEIGHT * float(logged["layersync_similarity"]))


def test_other_keys_beside_the_loss_are_kept(tmp_path: Path) -> None:
    model, (inputs,), expected = micro_batches(1)
    flow, seen = Flow(model), []
    flow.instead = lambda batch: {"loss": main_loss(model(**batch)), "mine": 7}
    flow.on_train_batch_end = lambda outputs, batch, index: seen.append(outputs)  # type: ignore[method-assign]
    fit(flow, [inputs], tmp_path)
    assert_same_gradients(flow.found[0], expected)
    assert seen[0]["mine"] == 7


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_with_reduced_precision(precision: str, tmp_path: Path) -> None:
    """fp16 scales its loss: what reaches the optimiser is unscaled, and the term with it."""
    model, (inputs,), expected = micro_batches(1)
    plain = gradients_by_autograd(main_loss(model(**inputs)), model)
    heavy = {name: plain[name] + 100 * (expected[name] - plain[name]) for name in plain}  # more than the rounding is
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    fp16 = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}  # by its name Lightning takes bf16 on a CPU
    flow, callback = Flow(model), LayerSyncCallback("transformer", **{**SETTINGS, "layersync_lambda": 100 * WEIGHT})
    given = fp16 if precision == "16-mixed" else {"precision": precision}
    trainer(tmp_path, callbacks=[callback], **given).fit(flow, loader([inputs]))
    found = {name: value.float() for name, value in flow.found[0].items()}
    assert_same_gradients(found, heavy, tolerance=0.1, floor=0.1)
    with pytest.raises(AssertionError):
        assert_same_gradients(found, plain, tolerance=0.1, floor=0.1)


def test_forwards_outside_of_the_training_step_are_left_alone(tmp_path: Path) -> None:
    model, (inputs,), expected = micro_batches(1)
    flow = Flow(model)

    def sample(*_: Any) -> None:
        with torch.enable_grad():
            model(**inputs)

    flow.on_train_batch_start = sample  # type: ignore[method-assign]
    run = trainer(
        tmp_path, callbacks=[LayerSyncCallback("transformer", **SETTINGS)], val_check_interval=1, inference_mode=False
    )
    run.fit(flow, loader([inputs, inputs]), loader([inputs]))
    assert len(flow.found) == 2
    assert_same_gradients(flow.found[1], expected)


def test_two_models_have_a_callback_each(tmp_path: Path) -> None:
    model, (inputs,), expected = micro_batches(1)
    flow, other = Flow(model), copy.deepcopy(model)
    flow.other = other
    flow.instead = lambda batch: main_loss(model(**batch)) + main_loss(other(**batch))
    callbacks = [LayerSyncCallback(path, **SETTINGS) for path in ("transformer", "other")]
    trainer(tmp_path, callbacks=callbacks).fit(flow, loader([inputs]))
    assert_same_gradients(flow.found[0], expected)
    assert_same_gradients(gradients(other), expected)
    assert (hooks_on(model), hooks_on(other), vars(flow).get("training_step")) == (0, 0, None)
    assert len({callback.state_key for callback in callbacks}) == 2


def test_nothing_is_left_after_a_fit_and_a_second_one_works(tmp_path: Path) -> None:
    model, (inputs,), expected = micro_batches(1)
    flow, callback = Flow(model), LayerSyncCallback("transformer", **SETTINGS)
    for _ in range(2):
        trainer(tmp_path, callbacks=[callback]).fit(flow, loader([inputs]))
        assert (hooks_on(model), callback.attachment, vars(flow).get("training_step")) == (0, None, None)
    assert_same_gradients(flow.found[1], expected)


class Copies(lightning.pytorch.Callback):
    """Copies and saves a module while it is trained, as averaged weights and checkpoints of whole modules do."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.copy: Any = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.copy = copy.deepcopy(pl_module)
        torch.save(pl_module, self.file)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_copy_of_the_module_trains_itself_and_without_a_term(compiled: bool, tmp_path: Path) -> None:
    model, (inputs,), with_term = micro_batches(1)
    untouched = copy.deepcopy(model)
    expected = gradients_by_autograd(main_loss(untouched(**inputs)), untouched)
    flow = Flow(model)
    if compiled:  # Lightning replaces the method of a module that it compiles
        flow.training_step = types.MethodType(Steps.training_step, flow)
    copies = Copies(tmp_path / "module.pt")
    callback = LayerSyncCallback("transformer", **SETTINGS)
    trainer(tmp_path, callbacks=[callback, copies]).fit(flow, loader([inputs]))
    assert_same_gradients(flow.found[0], with_term)
    for other in (copies.copy, torch.load(tmp_path / "module.pt", weights_only=False)):
        other.training_step(inputs, 0).backward()
        assert_same_gradients(gradients(other.transformer), expected)


@pytest.mark.parametrize("error", [ArithmeticError, KeyboardInterrupt])
def test_nothing_is_left_after_an_exception(error: type[BaseException], tmp_path: Path) -> None:
    model, (inputs,), _ = micro_batches(1)
    flow, callback = Flow(model), LayerSyncCallback("transformer", **SETTINGS)

    def fail(batch: Any) -> None:
        model(**batch)
        raise error

    flow.instead = fail
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises((error, SystemExit)):
        trainer(tmp_path, callbacks=[callback]).fit(flow, loader([inputs]))
    signal.signal(signal.SIGINT, handler)  # which Lightning ignores after an interrupt
    assert (hooks_on(model), callback.attachment, vars(flow).get("training_step")) == (0, None, None)


@pytest.mark.filterwarnings("ignore:You're resuming")
def test_a_run_goes_on_with_the_step_and_the_trained_part(probe: list[Any], tmp_path: Path) -> None:
    model, batches, _ = micro_batches(3)
    flow, parts = Flow(model), []
    flow.rate = 0.1
    flow.on_train_start = lambda: parts.append(copy.deepcopy(probe[-1].module.state_dict()))  # type: ignore[method-assign]
    first = trainer(tmp_path, max_steps=2, max_epochs=-1, callbacks=[LayerSyncCallback("transformer", **SETTINGS)])
    first.fit(flow, loader(batches[:2]))
    trained = copy.deepcopy(probe[0].module.state_dict())
    assert not torch.equal(parts[0]["weight"], trained["weight"])
    first.save_checkpoint(tmp_path / "some.ckpt")  # after the fit

    callback = LayerSyncCallback("transformer", **SETTINGS)
    run = trainer(tmp_path, max_steps=3, max_epochs=-1, callbacks=[callback])
    run.fit(flow, loader(batches), ckpt_path=tmp_path / "some.ckpt")
    assert len(probe) == 2
    assert all(torch.equal(value, trained[name]) for name, value in parts[1].items())
    assert not torch.equal(probe[1].module.weight, trained["weight"])
    assert (run.global_step, callback.state_dict()["step"]) == (3, 3)


def test_the_schedule_counts_optimiser_steps(tmp_path: Path) -> None:
    """The third of four steps is the first without the term."""
    model, batches, _ = micro_batches(2)
    flow, found = Flow(model), []
    flow.on_train_batch_end = lambda *_: found.append("layersync_loss" in run.callback_metrics)  # type: ignore[method-assign]
    callback = LayerSyncCallback("transformer", **SETTINGS, layersync_cutoff_step=2)
    run = trainer(tmp_path, accumulate_grad_batches=2, callbacks=[callback])
    run.fit(flow, loader(batches * 4))
    plain = gradients_by_autograd(sum(main_loss(model(**inputs)) for inputs in batches) / 2, model)
    assert_same_gradients(flow.found[3], plain)
    assert_same_gradients(flow.found[2], plain)
    with pytest.raises(AssertionError):
        assert_same_gradients(flow.found[1], plain)


@pytest.mark.parametrize(
    ("path", "more", "message"),
    [
        ("transformr", SETTINGS, "finds no model 'transformr' in Flow; it has transformer"),
        ("transformer", {**SETTINGS, "modle": 1}, "LayerSyncCallback has no setting 'modle'"),
        ("transformer", {**SETTINGS, "layersync_lamda": 1}, "layersync_lamda"),
        ("transformer", {"layersync_student_block": 3}, "without layersync_enabled"),
        ("transformer", settings(1, 99), "LayerSync could not find layer"),
    ],
)
def test_a_mistake_is_an_error(path: str, more: dict[str, Any], message: str, tmp_path: Path) -> None:
    model, (inputs,), _ = micro_batches(1)
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, callbacks=[LayerSyncCallback(path, **more)]).fit(Flow(model), loader([inputs]))
    assert hooks_on(model) == 0


def test_manual_optimisation_is_refused_by_name(tmp_path: Path) -> None:
    model, (inputs,), _ = micro_batches(1)
    flow = Flow(model)
    flow.automatic_optimization = False
    with pytest.raises(ConfigError, match="Flow optimises manually"):
        fit(flow, [inputs], tmp_path)


def test_a_step_without_a_forward_of_the_model_is_an_error(tmp_path: Path) -> None:
    model, (inputs,), _ = micro_batches(1)
    flow = Flow(model)
    flow.instead = lambda batch: next(flow.parameters()).sum()
    with pytest.raises(CaptureError, match=r"LayerSyncCallback: .* no forward of transformer with gradients ran in it"):
        fit(flow, [inputs], tmp_path)


def test_a_loss_without_a_gradient_is_an_error(tmp_path: Path) -> None:
    model, (inputs,), _ = micro_batches(1)
    flow = Flow(model)
    flow.instead = lambda batch: main_loss(model(**batch)).detach()
    with pytest.raises(CaptureError, match="LayerSyncCallback: the training step's loss has no gradient"):
        fit(flow, [inputs], tmp_path)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_without_a_loss_is_said_once_and_the_next_one_is_right(tmp_path: Path) -> None:
    model, (inputs,), expected = micro_batches(1)
    flow, losses = Flow(model), iter([False, False, True])

    def step(batch: Any) -> Any:
        loss = main_loss(model(**batch))
        return loss if next(losses) else None

    flow.instead = step
    with pytest.warns(LayerSyncWarning, match="returned no loss") as said:
        fit(flow, [inputs] * 3, tmp_path)
    assert len([it for it in said if it.category is LayerSyncWarning]) == 1
    assert_same_gradients(flow.found[-1], expected)


def test_switched_off_it_leaves_everything_as_it_is(tmp_path: Path) -> None:
    model, (inputs,), _ = micro_batches(1)
    flow = Flow(model)
    run = trainer(tmp_path, callbacks=[LayerSyncCallback("transformer", layersync_enabled=False)])
    run.fit(flow, loader([inputs]))
    assert_same_gradients(flow.found[0], gradients_by_autograd(main_loss(model(**inputs)), model))
    assert "layersync_loss" not in run.logged_metrics


def test_under_layersync_run_it_is_refused(tmp_path: Path) -> None:
    with switched_on(tmp_path) as launch:
        training = launch()
        model, (inputs,), _ = micro_batches(1)
        with pytest.raises(ConfigError, match=r"under layersync run .* would count twice"):
            fit(Flow(model), [inputs], tmp_path)
        assert "would count twice" in training.journal.status.error, "and the run ends with exit code 2"
