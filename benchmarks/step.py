# Shapes: B batch, S tokens, D channels
"""What LayerSync costs a training step: `python -m benchmarks.step [--quick]`.

The first table has whole training steps (forward, backward, AdamW, gradients set to None) of a DiT of 12 blocks, width
768, 256 tokens, batch 4, and of a Wan of 6 blocks, width 256, 2048 tokens. Arms: the plain step; LayerSync by `attach`,
`apply` and `metrics`; the same after `layersync_cutoff_step`; and a version written by hand, with two hooks that store
into a dict and `F.cosine_similarity` of student and detached teacher in float32. The arms share their weights and run
in turn, in an order that rotates. Shown is the median of the ratios to the plain step of the same round, with its 95 %
interval (or the range, if that covers less). On a CPU the time is this process's CPU time (`time.process_time`), so
other programs on the same core do not count. Memory is measured in a separate step: the peak beyond weights and
optimiser state, on a CPU as the running sum of torch's allocations.

The second table is about the host: models of near-empty blocks (one multiplication by a scalar), 16 tokens of width 32.
`ours` is a step with LayerSync minus a step that gets the same term from the same tensors without LayerSync, in
microseconds: the model returns its states, `similarity` is called on two of them, and its result times the weight is
added to the loss. What remains is everything but the arithmetic of the term: hooks, collecting, reading tokens, buffer,
bookkeeping, metrics and their reading. `run` is the same difference for `layersync run`, whose patches find the forward
and the loss by themselves and write the metrics to a file. The arms take turns of 25 steps, since a training has its
own code in the processor's caches and not that of other arms. Shown are the difference of the fastest hundredth of the
steps, which other programs disturb least, and the median of the differences with its 95 % interval. The times of the
plain step and of summing the first thousand numbers in Python show how fast the machine is.

The third table has a Flux of 6 blocks, width 256, whose captions (20 to 120 tokens) and buckets (64 to 256 tokens)
change at every step: it shows the cost of measuring which tokens the main loss trains. Both arms have LayerSync, one of
them with `layersync_guard` false; shown are how many milliseconds longer the first step of a training takes, and the
median ratio of steps with the guard to those without it, in the first steps and after them.
"""

# Longer than others: two of the tables come from one program, which reads as one recipe.

from __future__ import annotations

import argparse
import copy
import gc
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import optimizer as optimizers

from benchmarks.changing import print_changing
from benchmarks.measure import fastest, median, peak_bytes, seconds
from layersync_core import attach
from layersync_core.losses.alignment import similarity
from layersync_core.run import patches
from layersync_core.run.startup.sitecustomize import VARIABLE

WEIGHT = 0.2
PAIR = 2, 5  # of the near-empty blocks
GOALS = "goals: time <= 1.02, peak <= 1.01; ours <= 100 µs, whatever the number of blocks"

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One way to train a model; `add` turns the main loss into the total."""

    model: nn.Module
    inputs: Inputs
    optimiser: torch.optim.Optimizer
    add: Callable[[Tensor], Tensor] = lambda loss: loss
    after: Callable[[], object] = lambda: None
    backward: Callable[[Tensor], None] = torch.autograd.backward  # the original, which `layersync run` replaces

    def step(self) -> None:
        """Train one step."""
        loss = self.model(**self.inputs)[0].square().mean()
        self.backward(self.add(loss))
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.after()


def times(arms: Sequence[Arm], rounds: int, device: torch.device, turn: int = 1) -> list[list[float]]:
    """Return the seconds of every arm's steps, round by round; each arm takes several steps per turn."""
    found: list[list[float]] = [[] for _ in arms]
    for number in range(-1, rounds):
        for offset in range(len(arms)):
            which = (number + offset) % len(arms)
            elapsed = [seconds(arms[which].step, device, time.process_time) for _ in range(turn)]
            if number >= 0:
                found[which] += elapsed
    return found


def twin(model: nn.Module) -> nn.Module:
    """Return a copy that shares the weights."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def settings(student: int, teacher: int) -> dict[str, Any]:
    return {
        "layersync_enabled": True,
        "layersync_student_block": student,
        "layersync_teacher_block": teacher,
        "layersync_lambda": WEIGHT,
    }


# Whole training steps.


def dit(quick: bool) -> tuple[nn.Module, Inputs]:
    from diffusers import DiTTransformer2DModel

    batch, size, depth, heads = (2, 16, 6, 2) if quick else (4, 32, 12, 12)
    model: nn.Module = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=64,
        in_channels=4,
        out_channels=4,
        num_layers=depth,
        sample_size=size,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    return model, {
        "hidden_states": torch.randn(batch, 4, size, size),
        "timestep": torch.randint(0, 1000, (batch,)),
        "class_labels": torch.randint(0, 1000, (batch,)),
    }


def wan(quick: bool) -> tuple[nn.Module, Inputs]:
    from diffusers import WanTransformer3DModel

    frames, size, heads = (2, 16, 1) if quick else (8, 32, 4)
    model: nn.Module = WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=64,
        in_channels=16,
        out_channels=16,
        text_dim=64,
        freq_dim=64,
        ffn_dim=256 * heads,
        num_layers=6,
    )
    return model, {
        "hidden_states": torch.randn(1, 16, frames, size, size),
        "timestep": torch.randint(0, 1000, (1,)),
        "encoder_hidden_states": torch.randn(1, 16, 64),
    }


def by_hand(model: nn.Module, blocks: Sequence[nn.Module], chosen: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """Put two hand-written hooks on a model, and return a function that adds the plain formula to its loss."""
    states: dict[str, Tensor] = {}
    for role in ("student", "teacher"):
        block = blocks[chosen[f"layersync_{role}_block"] - 1]
        block.register_forward_hook(lambda _module, _args, output, role=role: states.__setitem__(role, output))

    def add(loss: Tensor) -> Tensor:
        student, teacher = states.pop("student"), states.pop("teacher").detach()
        return loss - WEIGHT * F.cosine_similarity(student.float(), teacher.float(), dim=-1).mean()

    return add


def print_steps(name: str, built: tuple[nn.Module, Inputs], rounds: int, device: torch.device) -> None:
    model, inputs = built
    model.to(device).eval()  # in train mode DiT drops labels at random
    inputs = {key: value.to(device) for key, value in inputs.items()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ours, ended, hooked = (twin(model) for _ in range(3))
    blocks: Any = hooked.transformer_blocks if name == "DiT" else hooked.blocks
    chosen = settings(len(blocks) // 3, 2 * len(blocks) // 3)
    sync, over = attach(ours, chosen), attach(ended, {**chosen, "layersync_cutoff_step": 1})
    arms = {
        "plain": Arm(model, inputs, optimiser),
        "layersync": Arm(ours, inputs, optimiser, sync.apply, sync.metrics),
        "cut off": Arm(ended, inputs, optimiser, over.apply, over.metrics),  # by the end of the warm-up
        "by hand": Arm(hooked, inputs, optimiser, by_hand(hooked, blocks, chosen)),
    }
    plain, *others = times([*arms.values()], rounds, device)
    peaks = [peak_bytes(arm.step, device) for arm in arms.values()]
    for arm, measured, peak in zip([*arms][1:], others, peaks[1:], strict=True):
        ratio, low, high = median([one / base for one, base in zip(measured, plain, strict=True)])
        print(
            f"{name:>6} {arm:>10} | {median(plain)[0] * 1e3:8.1f} ms {ratio:7.4f} ({low:.4f} to {high:.4f}) | "
            f"{peaks[0] / 2**20:8.1f} MiB {peak / peaks[0]:7.4f}",
            flush=True,
        )


# The host's part.


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class _Embedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(4, 32, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        patches_BDHW: Tensor = self.proj(x)
        return patches_BDHW.flatten(2).transpose(1, 2)


class SiT(nn.Module):
    """Near-empty blocks that look like those of SiT's own repository, so that the installed adapter knows them."""

    patch_size = 2

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.x_embedder = _Embedder()
        self.blocks = nn.ModuleList(_Block() for _ in range(depth))
        self.states: list[Tensor] = []

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Return the last state, (B, S, D), in a tuple as diffusers' models do."""
        state, self.states = self.x_embedder(x), []  # kept in every arm, since one of them needs them
        for block in self.blocks:
            state = block(state)
            self.states.append(state)
        return (state,)


class Launched:
    """The patches of `layersync run` in this process; those that affect every step are on only for one arm."""

    def __init__(self, folder: str) -> None:
        os.environ[VARIABLE] = json.dumps({**settings(*PAIR), "layersync_status_dir": folder})
        patches.install("torch")
        self._hooks = dict(optimizers._global_optimizer_pre_hooks)
        self.switch(on=False)

    def switch(self, on: bool) -> None:
        """Switch the hooks on optimisers on or off."""
        hooks = optimizers._global_optimizer_pre_hooks
        hooks.clear()
        hooks.update(self._hooks if on else {})


@dataclass(frozen=True)
class LaunchedArm(Arm):
    """An arm that needs these patches."""

    launched: Launched | None = None

    def step(self) -> None:
        """Train one step."""
        assert self.launched is not None
        self.launched.switch(on=True)
        super().step()
        self.launched.switch(on=False)


def small(model: SiT, device: torch.device, kind: type[Arm] = Arm, **more: Any) -> Arm:
    x = torch.randn(1, 4, 8, 8, device=device)
    model.to(device)
    return kind(model, {"x": x}, torch.optim.SGD(model.parameters(), lr=0), **more)


def add_directly(model: SiT, loss: Tensor) -> Tensor:
    student, teacher = (model.states[number - 1] for number in PAIR)
    return loss + similarity(student, teacher).weighted * -WEIGHT


def print_host(depths: Sequence[int], rounds: int, device: torch.device) -> None:
    logging.getLogger("layersync_core").setLevel(logging.ERROR)  # advice on the pair
    built = []
    for depth in depths:
        plain, direct, ours = (SiT(depth) for _ in range(3))
        sync = attach(ours, settings(*PAIR))
        built.append(
            [
                small(plain, device),
                small(direct, device, add=partial(add_directly, direct)),
                small(ours, device, add=sync.apply, after=sync.metrics),
            ]
        )
    with tempfile.TemporaryDirectory() as folder:
        launched = Launched(folder)  # only now: it would treat the models above as its own
        for depth, arms in zip(depths, built, strict=True):
            arms.append(small(SiT(depth), device, LaunchedArm, backward=torch.autograd.backward, launched=launched))
            plain_s, direct_s, *others = times(arms, rounds, device, turn=25)
            for name, measured in zip(("ours", "run"), others, strict=True):
                least = fastest(measured) - fastest(direct_s)
                extra = median([one - base for one, base in zip(measured, direct_s, strict=True)])
                middle, low, high = (value * 1e6 for value in extra)
                print(
                    f"{depth:>6} {name:>10} | {fastest(plain_s) * 1e6:8.0f} µs | {least * 1e6:9.0f} µs | "
                    f"{middle:6.0f} µs ({low:.0f} to {high:.0f})",
                    flush=True,
                )


def main(arguments: list[str] | None = None) -> None:
    """Print the tables.

    Args:
        arguments: command-line arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step", description="LayerSync's cost in a training step"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    parser.add_argument("--rounds", type=int, help="rounds of the first table (default: 6 for DiT, 12 for Wan)")
    parser.add_argument("--quick", action="store_true", help="smaller models and few rounds, to see that it runs")
    options = parser.parse_args(arguments)
    quick = options.quick
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {options.threads} thread(s)"
    print(f"torch {torch.__version__}, {name}{', quick: the figures mean little' if quick else ''}")
    print(f"{'model':>6} {'arm':>10} | {'plain':>11} {'time ratio':>28} | {'plain peak':>12} {'ratio':>7}", flush=True)
    for model, make, rounds in (("DiT", dit, 6), ("Wan", wan, 12)):
        print_steps(model, make(quick), 3 if quick else options.rounds or rounds, device)
        gc.collect()
    python = fastest([seconds(lambda: sum(range(1000)), torch.device("cpu")) for _ in range(1000)])
    print(
        f"\n{'blocks':>6} {'arm':>10} | {'plain':>11} | {'fastest':>12} | "
        f"median; sum(range(1000)): {python * 1e6:.0f} µs",
        flush=True,
    )
    print_host((8, 32) if quick else (8, 32, 128), 2 if quick else 120, device)
    print(f"\n{'steps':>10} | guard on / off, captions and buckets that change")
    print_changing(1 if quick else 6, 12 if quick else 60, device)
    print(GOALS)


if __name__ == "__main__":
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    main()
