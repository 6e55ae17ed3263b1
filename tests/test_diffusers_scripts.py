"""`layersync run` over unmodified training programs: diffusers' own scripts, and a copy of their structure.

diffusers' scripts aren't part of its package. With LAYERSYNC_DIFFUSERS_CHECKOUT=<folder of a clone> they run too, on
tiny random pipelines; tests/stubs replaces what they import beyond requirements.txt.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.curves import Curve, check_term, read_curves

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parent
STUBS = (TESTS / "stubs", TESTS / "stubs" / "diffusers_examples")
LAYERSYNC = Path(sys.executable).with_name("layersync")
ENABLED = "--layersync_enabled true --layersync_student_block 2 --layersync_teacher_block 4 --layersync_lambda 0.5"
DISABLED = "--layersync_enabled false"


@dataclass(frozen=True)
class Done:
    """What a finished run left behind."""

    folder: Path
    output: str

    @property
    def curves(self) -> dict[str, Curve]:
        """What the program's tracker holds."""
        return read_curves(self.folder)

    @property
    def losses(self) -> list[str]:
        """The lines of our own script, which print every loss in full precision."""
        return [line for line in self.output.splitlines() if line.startswith("step ")]

    def same_weights(self, other: Done) -> bool:
        """Tell whether the saved LoRA weights are equal bit by bit; the files differ, in their metadata."""
        mine, others = (load_file(done.folder / "pytorch_lora_weights.safetensors") for done in (self, other))
        assert mine
        assert mine.keys() == others.keys()
        return all(torch.equal(mine[name], others[name]) for name in mine)


def run(script: Path, flags: str, folder: Path, layersync: str | None) -> Done:
    """Run a script in a process of its own, plain where no flags of `layersync run` are given."""
    command = [sys.executable, str(script), *flags.split(), "--output_dir", str(folder)]
    if layersync is not None:
        command = [str(LAYERSYNC), "run", *layersync.split(), "--", *command]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, STUBS)),
        "WANDB_DIR": str(folder / "wandb"),
    }
    done = subprocess.run(
        command,
        env=environment,
        cwd=folder.parent,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return Done(folder, done.stdout)


def check_runs(plain: Done, enabled: Done, tag: str = "loss", steps: int = 3) -> None:
    """Check what holds for every script: the term is there, it trains, and the script's own loss is without it."""
    check_term(enabled.curves, steps)
    assert "layersync_loss" not in plain.curves
    # LoRA starts at zero, so the first forward is the same.
    assert enabled.curves[tag][0] == plain.curves[tag][0]
    assert [step for step, _ in enabled.curves[tag]] == [step for step, _ in plain.curves[tag]]
    assert not enabled.same_weights(plain)


def check_disabled(plain: Done, disabled: Done) -> None:
    """Check that a run with LayerSync switched off is the plain run, bit by bit."""
    assert disabled.curves == plain.curves
    assert disabled.losses == plain.losses
    assert disabled.same_weights(plain)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Done]:
    """Run our own script, once for equal arguments."""

    @cache
    def own(flags: str, layersync: str | None = None) -> Done:
        folder = tmp_path_factory.mktemp("own") / "output"
        return run(TESTS / "scripts" / "train_like_diffusers.py", flags, folder, layersync)

    return own


FLUX_FLAGS = "--family flux --checkpointing_steps 2"
SD3_FLAGS = "--family sd3 --gradient_accumulation_steps 2 --mixed_precision bf16"
WAN_FLAGS = "--family wan --with_prior_preservation --gradient_checkpointing --validation_steps 1"


@pytest.mark.parametrize("flags", [FLUX_FLAGS, SD3_FLAGS, WAN_FLAGS])
def test_a_script_like_those_of_diffusers(own, flags):
    check_runs(own(flags), own(flags, ENABLED))


@pytest.mark.parametrize("flags", [FLUX_FLAGS, SD3_FLAGS])
def test_switched_off_it_changes_no_bit(own, flags):
    check_disabled(own(flags), own(flags, DISABLED))


def test_what_does_not_change_the_plain_run_does_not_change_the_term(own):
    reference = own(FLUX_FLAGS, ENABLED)
    other = own("--family flux --gradient_checkpointing --validation_steps 1", ENABLED)
    assert other.losses == reference.losses
    assert other.curves == reference.curves
    assert other.same_weights(reference)


def test_a_resumed_run_goes_on(own):
    whole = own(FLUX_FLAGS, ENABLED)
    resumed = own(f"--family flux --resume_from_checkpoint {whole.folder / 'checkpoint-2'}", ENABLED)
    assert len(whole.losses) == 3
    assert resumed.losses == whole.losses[2:]
    assert resumed.curves == {tag: curve[2:] for tag, curve in whole.curves.items()}
    assert resumed.same_weights(whole)


@dataclass(frozen=True)
class Script:
    """One of diffusers' scripts.

    Attributes:
        path: Below examples/.
        pipeline: The function of tests.pipelines that makes the model.
        data: The function of tests.pipelines that makes the data.
        flags: With {data} for the data's folder.
        loss: Under which tag the script logs its loss.
    """

    path: str
    pipeline: str
    data: str
    flags: str
    loss: str = "loss"

    def __str__(self) -> str:
        return self.pipeline.removesuffix("_pipeline")


_DREAMBOOTH = (
    "--instance_data_dir {data} --instance_prompt photo --resolution 32 --train_batch_size 1 --max_train_steps 3 "
    "--max_sequence_length 16 --rank 2 --learning_rate 1e-2 --seed 0 --report_to tensorboard "
)
FLUX = Script("dreambooth/train_dreambooth_lora_flux.py", "flux_pipeline", "images", _DREAMBOOTH)
SD3 = Script("dreambooth/train_dreambooth_lora_sd3.py", "sd3_pipeline", "images", _DREAMBOOTH)
COSMOS = Script(
    "cosmos/train_cosmos_predict25_lora.py",
    "cosmos_pipeline",
    "videos",
    # One epoch of three videos. Its pipeline loads in bf16. Its arguments hold a dict, which tensorboard refuses.
    "--train_data_dir {data} --num_frames 9 --height 32 --width 48 --train_batch_size 1 --num_train_epochs 1 "
    "--dataloader_num_workers 0 --mixed_precision bf16 --lora_rank 2 --learning_rate 1e-2 --scheduler_warm_up_steps 1 "
    "--seed 0 --report_to wandb ",
    loss="train_loss",
)
PRIOR = "--with_prior_preservation --class_data_dir {data} --class_prompt picture --num_class_images 3"
SAMPLED_PRIOR = "--with_prior_preservation --class_data_dir class --class_prompt picture --num_class_images 1"
VALIDATION = "--validation_prompt photo --num_validation_images 1 --validation_epochs 1"


@pytest.fixture(scope="module")
def diffusers_script(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Done]:
    """Run a script of diffusers, once for equal arguments."""
    checkout = os.environ.get("LAYERSYNC_DIFFUSERS_CHECKOUT")
    if not checkout:
        pytest.skip("LAYERSYNC_DIFFUSERS_CHECKOUT names no clone of diffusers")
    from tests import pipelines

    @cache
    def made(name: str) -> Path:
        return getattr(pipelines, name)(tmp_path_factory.mktemp("made") / name)

    @cache
    def diffusers_script(script: Script, more: str = "", layersync: str | None = None) -> Done:
        flags = f"--pretrained_model_name_or_path {made(script.pipeline)} {script.flags}{more}"
        folder = tmp_path_factory.mktemp("diffusers") / "output"
        program = Path(checkout, "examples", script.path)
        return run(program, flags.format(data=made(script.data)), folder, layersync)

    return diffusers_script


@pytest.mark.parametrize(
    ("script", "more"),
    [
        (FLUX, ""),
        (FLUX, "--gradient_accumulation_steps 2"),
        (FLUX, "--gradient_checkpointing"),
        (FLUX, "--train_text_encoder"),
        (FLUX, "--mixed_precision bf16"),
        (FLUX, PRIOR),
        (SD3, ""),
        (SD3, SAMPLED_PRIOR),
        (SD3, VALIDATION),
        (COSMOS, ""),
        (COSMOS, "--gradient_checkpointing"),
    ],
    ids=lambda value: str(value).split("{")[0] or "plain",
)
def test_a_script_of_diffusers(diffusers_script, script, more):
    check_runs(diffusers_script(script, more), diffusers_script(script, more, ENABLED), tag=script.loss)


@pytest.mark.parametrize("script", [FLUX, SD3, COSMOS], ids=str)
def test_switched_off_it_changes_no_bit_of_diffusers(diffusers_script, script):
    check_disabled(diffusers_script(script), diffusers_script(script, layersync=DISABLED))
