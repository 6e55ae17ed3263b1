"""DeepSpeed's engine: it divides under accumulation by itself, in three ways that its versions have had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import accelerate
import pytest
from torch import Tensor, nn

from layersync_core.errors import CaptureError
from layersync_core.run import patches
from tests.models import assert_same_gradients, gradients
from tests.run.inside import Launch, library, main_loss, micro_batches, sgd


class DividesLoss:
    """Up to 0.18.2."""

    num_stages = 1
    supports_direct = False

    def __init__(self, module: nn.Module, losses: int = 4) -> None:
        self.module, self._losses, self._scale = module, losses, 1.0
        self._running_engine_backward = self._manual_backward_expected = False

    def gradient_accumulation_steps(self) -> int:
        return self._losses

    def __call__(self, **inputs: Any) -> Any:
        return self.module(**inputs)

    def backward(self, loss: Tensor, scale_wrt_gas: bool = True) -> None:
        (loss / self._losses if scale_wrt_gas else loss).backward()


class _Hooking(DividesLoss):
    def __call__(self, **inputs: Any) -> Any:
        output = self.module(**inputs)
        getattr(output, "sample", output).register_hook(self._began)
        return output

    def _began(self, gradient: Tensor) -> Tensor:
        self._backward_prologue()
        self._manual_backward_expected = False
        return gradient / self._losses if self._divides_here() else gradient

    def _backward_prologue(self) -> None:
        pass

    def _divides_here(self) -> bool:
        return not self._running_engine_backward

    def scale(self, loss: Tensor) -> Tensor:
        self._manual_backward_expected = True
        return loss * self._scale


class DividesResults(_Hooking):
    """From 0.18.3: the gradient of what the model returned, which a term does not pass."""

    def __init__(self, module: nn.Module, losses: int = 4) -> None:
        super().__init__(module, losses)
        self._scale_wrt_gas = True

    def _divides_here(self) -> bool:
        return self._scale_wrt_gas

    def backward(self, loss: Tensor, scale_wrt_gas: bool = True) -> None:
        self._running_engine_backward, self._scale_wrt_gas = True, scale_wrt_gas
        loss.backward()
        self._running_engine_backward = False


class DividesLossAgain(_Hooking):
    """0.19.8: the loss, and the gradient of what the model returned where backward is called directly."""

    def backward(self, loss: Tensor, scale_wrt_gas: bool = True) -> None:
        self._running_engine_backward = True
        super().backward(loss, scale_wrt_gas)
        self._running_engine_backward = False


class Changed(DividesResults):
    """A version that divides where no version is known to."""

    def __init__(self, module: nn.Module, losses: int = 4) -> None:
        super().__init__(module, losses)
        del self._scale_wrt_gas

    def _divides_here(self) -> bool:
        return True

    def backward(self, loss: Tensor, scale_wrt_gas: bool = True) -> None:
        self._running_engine_backward = True
        loss.backward()


ENGINES = [DividesLoss, DividesResults, DividesLossAgain]
HOOKING = [DividesResults, DividesLossAgain]


@pytest.fixture
def deepspeed(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Switch ``layersync run`` on beside a version of DeepSpeed; return its engine's class."""

    def switch_on(version: type, **settings: Any) -> Any:
        methods = {name: getattr(version, name, None) for name in ("backward", "scale", "_backward_prologue")}
        engine = type("DeepSpeedEngine", (version,), {name: method for name, method in methods.items() if method})
        library(monkeypatch, "deepspeed", DeepSpeedEngine=engine)
        launch(**settings)
        patches.install("deepspeed")
        return engine

    return switch_on


@pytest.mark.parametrize("version", ENGINES)
def test_the_engines_division_reaches_the_term(deepspeed: Callable[..., Any], version: type) -> None:
    engine_class = deepspeed(version)
    model, batches, expected = micro_batches()
    engine, optimiser = engine_class(model), sgd(model)
    for inputs in batches:
        engine.backward(main_loss(engine(**inputs)))
    optimiser.step()
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("version", ENGINES)
def test_an_engine_that_is_told_not_to_divide(deepspeed: Callable[..., Any], version: type) -> None:
    engine_class = deepspeed(version)
    model, batches, expected = micro_batches()
    engine, optimiser = engine_class(model), sgd(model)
    for inputs in batches:
        engine.backward(main_loss(engine(**inputs)) / 4, scale_wrt_gas=False)
    optimiser.step()
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("version", ENGINES)
def test_accelerate_leaves_the_division_to_the_engine(deepspeed: Callable[..., Any], version: type) -> None:
    engine_class = deepspeed(version)
    model, batches, expected = micro_batches()
    engine = engine_class(model)
    optimiser, accelerator = sgd(model), accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
    accelerator.state.distributed_type = accelerate.DistributedType.DEEPSPEED

    class Wrapped:
        def backward(self, loss: Tensor, **kwargs: Any) -> None:
            engine.backward(loss)

    accelerator.deepspeed_engine_wrapped = Wrapped()
    for inputs in batches:
        accelerator.backward(main_loss(engine(**inputs)))
    optimiser.step()
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("version", ENGINES)
def test_fabric_leaves_the_division_to_the_engine(
    deepspeed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, version: type
) -> None:
    engine_class = deepspeed(version)
    model, batches, expected = micro_batches()
    engine = engine_class(model)
    optimiser = sgd(model)

    class Fabric:
        strategy = type("DeepSpeedStrategy", (), {})()

        def backward(self, tensor: Tensor) -> None:
            engine.backward(tensor)

    library(monkeypatch, "lightning_fabric", Fabric=Fabric)
    patches.install("lightning_fabric")
    for inputs in batches:
        Fabric().backward(main_loss(engine(**inputs)))
    optimiser.step()
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("version", HOOKING)
def test_a_loss_that_the_engine_scales_for_a_direct_backward(deepspeed: Callable[..., Any], version: type) -> None:
    engine_class = deepspeed(version)
    model, batches, expected = micro_batches()
    engine, optimiser = engine_class(model), sgd(model)
    engine._scale = 65536.0
    for inputs in batches:
        engine.scale(main_loss(engine(**inputs))).backward()
    optimiser.step()
    found = {name: gradient / engine._scale for name, gradient in gradients(model).items()}
    assert_same_gradients(found, expected)


@pytest.mark.parametrize("version", HOOKING)
def test_a_direct_backward_is_refused_where_the_engine_divides(deepspeed: Callable[..., Any], version: type) -> None:
    engine_class = deepspeed(version)
    model, batches, _ = micro_batches()
    engine = engine_class(model)
    sgd(model)
    with pytest.raises(CaptureError, match=r"engine\.backward\(loss\).*--layersync_accumulation_steps 4"):
        main_loss(engine(**batches[0])).backward()


@pytest.mark.parametrize("version", HOOKING)
def test_a_direct_backward_is_right_with_the_number_given(deepspeed: Callable[..., Any], version: type) -> None:
    engine_class = deepspeed(version, layersync_accumulation_steps=4)
    model, batches, expected = micro_batches()
    engine, optimiser = engine_class(model), sgd(model)
    for inputs in batches:
        main_loss(engine(**inputs)).backward()
    optimiser.step()
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("version", HOOKING)
def test_a_direct_backward_without_accumulation(deepspeed: Callable[..., Any], version: type) -> None:
    engine_class = deepspeed(version)
    model, batches, expected = micro_batches(1)
    engine, optimiser = engine_class(model, 1), sgd(model)
    main_loss(engine(**batches[0])).backward()
    optimiser.step()
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("version", [Changed])
def test_a_version_that_divides_elsewhere_is_refused(deepspeed: Callable[..., Any], version: type) -> None:
    engine_class = deepspeed(version)
    model, batches, _ = micro_batches()
    engine = engine_class(model)
    sgd(model)
    with pytest.raises(CaptureError, match="in a place not yet known"):
        engine.backward(main_loss(engine(**batches[0])))


@pytest.mark.parametrize("stages", [1, 2])
def test_a_pipeline_of_several_stages_is_refused(launch: Launch, monkeypatch: pytest.MonkeyPatch, stages: int) -> None:
    class PipelineEngine(DividesLoss):
        def __init__(self, num_stages: int) -> None:
            self.num_stages = num_stages

    library(monkeypatch, "deepspeed", DeepSpeedEngine=type("DeepSpeedEngine", (DividesLoss,), {}))
    library(monkeypatch, "deepspeed.runtime.pipe.engine", PipelineEngine=PipelineEngine)
    launch()
    patches.install("deepspeed")
    if stages == 1:
        assert PipelineEngine(1).num_stages == 1
    else:
        with pytest.raises(CaptureError, match="a DeepSpeed pipeline with 2 stages"):
            PipelineEngine(2)
