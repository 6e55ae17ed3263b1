"""The regimes of one process in which weights are another package's: LyCORIS, torchao and quanto."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from tests.regimes.cell import Cell, Regime
from tests.regimes.eager import Setup, checkpointed, kohya, peft, reentrant, reentrant_with_grad


def lycoris(kind: str, cell: Cell, late: bool = False, setup: Setup | None = None) -> None:
    """Train LyCORIS weights, which take over the forwards of a frozen model's linear layers."""
    from lycoris import LycorisNetwork, create_lycoris

    if late:
        cell.attach()
    cell.model.requires_grad_(False)
    LycorisNetwork.apply_preset({"target_module": [], "target_name": [".*to_q", ".*to_v"], "use_fnmatch": False})
    network = create_lycoris(cell.model, 1.0, linear_dim=2, linear_alpha=2, algo=kind)
    network.apply_to()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    cell.expect(network)
    if setup:
        setup(cell)
    if not late:
        cell.attach()
    cell.train()


def torchao(model: nn.Module) -> None:
    """Keep the weights of a model's linear layers as torchao's int8."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model.requires_grad_(False)
    quantize_(model, Int8WeightOnlyConfig())


def quanto(model: nn.Module) -> None:
    """Keep the weights of a model's linear layers as quanto's int8."""
    from optimum.quanto import freeze, qint8, quantize

    model.requires_grad_(False)
    quantize(model, weights=qint8)
    freeze(model)


def quantised(quantise: Callable[[nn.Module], None], train: Callable[..., None], cell: Cell) -> None:
    """Train LoRA weights on a model that is quantised first."""
    quantise(cell.model)
    cell.copies = False  # such weights cannot be copied
    train(cell)


_reentrant = partial(checkpointed, how=reentrant)
_NON, _RE = "non-re-entrant checkpointing", "re-entrant checkpointing"
_TRICK = f"{_RE}, embedders' outputs require grad"
_LORA: dict[str, Callable[..., None]] = {
    "PEFT add_adapter": partial(peft, "add_adapter"),
    "LoRA outside the model (kohya)": kohya,
}

REGIMES: dict[str, Regime] = {
    **{f"LyCORIS {kind}, then attach": partial(lycoris, kind) for kind in ("lora", "loha", "lokr", "full")},
    "attach, then LyCORIS lokr": partial(lycoris, "lokr", late=True),
    f"LyCORIS lokr, {_NON}": partial(lycoris, "lokr", setup=checkpointed),
    f"LyCORIS lokr, {_RE}": partial(lycoris, "lokr", setup=_reentrant),
    f"LyCORIS lokr, {_TRICK}": partial(lycoris, "lokr", setup=reentrant_with_grad),
    **{
        f"{name} int8, {lora}{f', {more}' if more else ''}": partial(quantised, quantise, partial(train, setup=setup))
        for name, quantise in (("torchao", torchao), ("quanto", quanto))
        for lora, train in _LORA.items()
        for more, setup in (("", None), (_RE, _reentrant), (_TRICK, reentrant_with_grad))
    },
}

DISTRIBUTIONS = {"LyCORIS": "lycoris-lora", "torchao": "torchao", "quanto": "optimum-quanto"}
"""What must be installed for the regimes in whose names these words are."""
