"""The regimes of one process that do not compile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
    offload_wrapper,
)
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from tests.models import Outside
from tests.regimes.cell import ROUNDED, Around, Cell, NoDevice, Regime, blocks

Setup = Callable[[Cell], None]
reentrant = partial(checkpoint, use_reentrant=True)
not_reentrant = partial(checkpoint, use_reentrant=False)


def checkpointed(cell: Cell, how: Callable[..., Any] = not_reentrant) -> None:
    cell.model.enable_gradient_checkpointing(how)


def plain(cell: Cell, setup: Setup | None = None, late: bool = False, around: Around = nullcontext) -> None:
    """Set the model up before or after attaching, and train."""
    if setup and not late:
        setup(cell)
    cell.attach()
    if setup and late:
        setup(cell)
    cell.train(around=around)


def in_eval_mode(cell: Cell) -> None:
    cell.model.eval()


def copying(run: Callable[..., Any], *args: Any) -> Any:
    """Checkpoint with copied inputs and outputs, as in kohya's offloading between devices."""

    def body(*args: Any) -> Any:
        return _copied(run(*_copied(args)))

    return not_reentrant(body, *args)


def _copied(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_copied, value))
    return value.clone() if isinstance(value, Tensor) else value


class Offloaded(torch.autograd.Function):
    """Re-entrant checkpointing that keeps a copy of a block's inputs elsewhere, as unsloth wrote it."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Any], *args: Any) -> Any:
        ctx.run = run
        ctx.rest = [None if isinstance(arg, Tensor) else arg for arg in args]
        ctx.save_for_backward(*(arg.detach().clone() if isinstance(arg, Tensor) else None for arg in args))
        with torch.no_grad():
            return run(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        saved = [
            rest if tensor is None else tensor.detach().requires_grad_(tensor.is_floating_point())
            for tensor, rest in zip(ctx.saved_tensors, ctx.rest, strict=True)
        ]
        with torch.enable_grad():
            outputs = ctx.run(*saved)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if isinstance(o, Tensor) and g is not None]
        torch.autograd.backward(*map(list, zip(*pairs, strict=True)))
        return None, *(value.grad if isinstance(value, Tensor) else None for value in saved)


def wrapped(wrap: Callable[[nn.Module], nn.Module], cell: Cell) -> None:
    """Put every block into a wrapper."""
    for stack, index in blocks(cell.model):
        stack[index] = wrap(stack[index])


def rounded(dtype: torch.dtype, cell: Cell, setup: Setup | None = None) -> None:
    """Train under autocast; fp16 with a scaler."""
    autocast = partial(torch.autocast, "cpu", dtype=dtype)
    cell.tolerance = ROUNDED
    half = dtype == torch.float16
    cell.expect(around=autocast, scale=1024.0 if half else 1.0)
    if not half:
        plain(cell, setup, around=autocast)
        return
    cell.attach()
    optimiser = torch.optim.SGD(cell.model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(2):
        with autocast():
            loss = cell.total(cell.model)
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        scaler.step(optimiser)
        scaler.update()
        cell.keep()


def peft(way: str, cell: Cell, late: bool = False, setup: Setup | None = None) -> None:
    """Train LoRA weights that PEFT puts into the model, before or after attaching."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    run = cell.model
    if late:
        cell.attach()
    torch.manual_seed(1)
    if way == "get_peft_model":
        run = get_peft_model(cell.model, config)
    else:
        cell.model.requires_grad_(False)
        cell.model.add_adapter(config)
    cell.expect()
    if setup:
        setup(cell)
    if not late:
        cell.attach(run)
    cell.train(run)


def kohya(cell: Cell, late: bool = False, setup: Setup | None = None) -> None:
    """Train LoRA weights outside of a frozen model, whose linear layers' forwards they replace."""
    if late:
        cell.attach()
    cell.model.requires_grad_(False)
    torch.manual_seed(1)
    names = ("to_q", "to_v")
    linears = [module for name, module in cell.model.named_modules() if name.endswith(names)]
    networks = nn.ModuleList(Outside(linear) for linear in linears)
    cell.expect(networks)
    if setup:
        setup(cell)
    if not late:
        cell.attach()
    cell.train()


# What makes the first tokens of a family, for the image and, where blocks return it too, for the text.
_EMBEDDERS = {
    "flux": ("x_embedder", "context_embedder"),
    "wan": ("patch_embedding",),
    "sd3": ("pos_embed", "context_embedder"),
    "z_image": ("all_x_embedder.2-1", "cap_embedder"),
    "hunyuan_video": ("x_embedder", "context_embedder"),
}


def reentrant_with_grad(cell: Cell) -> None:
    """Make re-entrant checkpoints of a frozen model have gradients, as trainers do."""
    checkpointed(cell, reentrant)
    for path in _EMBEDDERS[cell.family]:
        embedder = cell.model.get_submodule(path)
        embedder.register_forward_hook(lambda module, args, output: output.requires_grad_())


def steps_inside_backward(cell: Cell) -> None:
    """Let every parameter be updated as soon as its gradient is there: its movement is its gradient."""
    cell.tolerance = 1e-4  # digits are lost in the weights
    before = {name: parameter.detach().clone() for name, parameter in cell.model.named_parameters()}
    optimisers = {parameter: torch.optim.SGD([parameter], lr=1.0) for parameter in cell.model.parameters()}

    def update(parameter: Tensor) -> None:
        optimisers[parameter].step()
        optimisers[parameter].zero_grad()

    for parameter in cell.model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    cell.attach()
    cell.total(cell.model).backward()
    cell.found.append({name: before[name] - parameter.detach() for name, parameter in cell.model.named_parameters()})


def blocks_called_outside(cell: Cell) -> None:
    """Run the model's code without its ``__call__``: what hooks see where a trainer loops over the blocks itself."""
    cell.attach()
    cell.train(cell.model.forward)


def two_devices(cell: Cell, second: str = "cuda") -> None:
    """Put the blocks from the teacher's on upon another device."""
    if second == "cuda" and not torch.cuda.is_available():
        raise NoDevice
    cell.pair, cell.tolerance = (2, 3), 1e-3  # two kinds of kernels
    cell.expect()
    places = blocks(cell.model)[2:]
    for stack, index in places:
        stack[index].to(second)
        stack[index].register_forward_pre_hook(
            lambda module, args, kwargs: (moved(args, second), moved(kwargs, second)), with_kwargs=True
        )
    stack, index = places[-1]
    stack[index].register_forward_hook(lambda module, args, output: moved(output, "cpu"))
    cell.attach()
    cell.train()


def moved(value: Any, device: str) -> Any:
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(moved(item, device) for item in value)
    return value.to(device) if isinstance(value, Tensor) else value


_NON, _RE = "non-re-entrant checkpointing", "re-entrant checkpointing"
_early_stop_off = partial(set_checkpoint_early_stop, False)
_bf16, _fp16 = (partial(rounded, dtype) for dtype in (torch.bfloat16, torch.float16))
_reentrant = partial(checkpointed, how=reentrant)

REGIMES: dict[str, Regime] = {
    "no checkpointing": plain,
    "eval mode": partial(plain, setup=in_eval_mode),
    f"{_NON}": partial(plain, setup=checkpointed),
    f"{_NON}, early stop off": partial(plain, setup=checkpointed, around=_early_stop_off),
    f"{_RE}": partial(plain, setup=_reentrant),
    f"{_NON}, switched on after attaching": partial(plain, setup=checkpointed, late=True),
    f"{_NON}, early stop off, switched on after attaching": partial(
        plain, setup=checkpointed, late=True, around=_early_stop_off
    ),
    f"{_RE}, switched on after attaching": partial(plain, setup=_reentrant, late=True),
    f"blocks in torch's checkpoint_wrapper, {_NON}": partial(plain, setup=partial(wrapped, checkpoint_wrapper)),
    f"blocks in torch's checkpoint_wrapper, {_RE}": partial(
        plain, setup=partial(wrapped, partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.REENTRANT))
    ),
    "activations saved on the CPU (save_on_cpu)": partial(plain, around=save_on_cpu),
    f"{_NON}, what it saves on the CPU (save_on_cpu)": partial(plain, setup=checkpointed, around=save_on_cpu),
    "blocks in torch's offload_wrapper": partial(plain, setup=partial(wrapped, offload_wrapper)),
    f"{_NON} that copies between devices (kohya)": partial(plain, setup=partial(checkpointed, how=copying)),
    f"{_RE} that keeps inputs on the CPU (unsloth)": partial(plain, setup=partial(checkpointed, how=Offloaded.apply)),
    "autocast bf16": _bf16,
    f"autocast bf16, {_NON}": partial(_bf16, setup=checkpointed),
    f"autocast bf16, {_RE}": partial(_bf16, setup=_reentrant),
    "autocast fp16 with GradScaler": _fp16,
    "PEFT add_adapter, then attach": partial(peft, "add_adapter"),
    "attach, then PEFT add_adapter": partial(peft, "add_adapter", late=True),
    "PEFT get_peft_model, then attach": partial(peft, "get_peft_model"),
    "attach, then PEFT get_peft_model": partial(peft, "get_peft_model", late=True),
    f"PEFT add_adapter, {_NON}": partial(peft, "add_adapter", setup=checkpointed),
    f"PEFT add_adapter, {_RE}": partial(peft, "add_adapter", setup=_reentrant),
    f"PEFT add_adapter, {_RE}, embedders' outputs require grad": partial(
        peft, "add_adapter", setup=reentrant_with_grad
    ),
    "LoRA outside the model (kohya), then attach": kohya,
    "attach, then LoRA outside the model (kohya)": partial(kohya, late=True),
    f"LoRA outside the model (kohya), {_NON}": partial(kohya, setup=checkpointed),
    f"LoRA outside the model (kohya), {_RE}": partial(kohya, setup=_reentrant),
    f"LoRA outside the model (kohya), {_RE}, embedders' outputs require grad": partial(
        kohya, setup=reentrant_with_grad
    ),
    "optimiser that steps inside backward": steps_inside_backward,
    "blocks called by an outside loop": blocks_called_outside,
    "blocks on two devices": two_devices,
}
