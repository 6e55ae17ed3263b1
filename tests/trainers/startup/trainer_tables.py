"""The sizes of a model as each trainer's own table has them, made tiny: which module to wait for, and what to do."""

from types import ModuleType
from typing import Any


def _musubi(configs: ModuleType) -> None:
    import torch

    # Default arguments of its text encoder, evaluated at import.
    torch.cuda.current_device = lambda: 0
    config = configs.WAN_CONFIGS["t2v-1.3B"]
    config.dim, config.ffn_dim, config.freq_dim, config.num_heads, config.num_layers = 32, 64, 32, 2, 5


def _sd_scripts(utils: ModuleType) -> None:
    from dataclasses import replace

    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    dev = utils.flux_models.configs["dev"]
    sizes = {"hidden_size": 32, "num_heads": 2, "axes_dim": [4, 6, 6], "vec_in_dim": 16, "context_in_dim": 32}
    dev.params = replace(dev.params, **sizes, depth=5, depth_single_blocks=2)
    dev.ae_params = replace(dev.ae_params, ch=32, ch_mult=[1, 1, 1, 1], num_res_blocks=1)
    # The sizes of its text encoders are written inside the functions that load them.
    size = {"vocab_size": 100, "num_attention_heads": 2, "num_heads": 2, "num_hidden_layers": 1, "num_layers": 1}
    clip = CLIPTextConfig(**size, hidden_size=16, intermediate_size=16)
    t5 = T5Config(**size, d_model=32, d_kv=16, d_ff=32)
    utils.load_clip_l = lambda *args, **kwargs: CLIPTextModel(clip)
    utils.load_t5xxl = lambda *args, **kwargs: T5EncoderModel(t5)


def _diffsynth(loader: ModuleType) -> None:
    import torch

    torch.manual_seed(1)  # it has no flag for that
    # It tells models by a hash of their weights' names and shapes.
    wan = "9269f8db9040a9d860eaca435be61814"
    loader.hash_model_file = lambda path: wan
    config = next(config for config in loader.MODEL_CONFIGS if config["model_hash"] == wan)
    config["extra_kwargs"].update(dim=24, ffn_dim=48, freq_dim=32, text_dim=32, num_heads=2, num_layers=5)


def _onetrainer(create: ModuleType) -> None:
    import torch
    import trainer_gradients

    torch.manual_seed(1)  # it has no setting for that
    original = create.create_optimizer

    def create_optimizer(*args: Any, **kwargs: Any) -> Any:
        optimizer = original(*args, **kwargs)
        one = getattr(optimizer, "step_parameter", None)
        if one is not None:

            def step_parameter(parameter: torch.Tensor, *rest: Any) -> None:
                trainer_gradients.keep(parameter)
                one(parameter, *rest)

            optimizer.step_parameter = step_parameter
        return optimizer

    create.create_optimizer = create_optimizer


def _ai_toolkit(accelerator: ModuleType) -> None:
    """Change nothing: its model comes from a folder, and it takes a seed."""


def _diffusion_pipe(cli_args: ModuleType) -> None:
    import sqlite3
    import sys

    import torch

    if sys.version_info < (3, 12):  # its own is 3.12, whose sqlite3 begins a transaction when it is told to
        connect: Any = sqlite3.connect
        sqlite3.connect = lambda path, autocommit=True: connect(path)  # type: ignore[misc]

    torch.manual_seed(1)  # it has no setting for that
    cli_args.args.cpu = True  # ComfyUI's own flag, which diffusion-pipe does not pass on
    # It names the device outright, where a CPU must stand in.
    torch.cuda.set_device = lambda device: None
    for owner in (torch.Tensor, torch.nn.Module):
        owner.to = _to_cpu(owner.to)


def _to_cpu(to: Any) -> Any:
    def moved(value: Any, *args: Any, **kwargs: Any) -> Any:
        return to(value, *("cpu" if arg == "cuda" else arg for arg in args), **kwargs)

    return moved


TABLES = {
    "musubi": ("musubi_tuner.wan.configs", _musubi),
    "diffsynth": ("diffsynth.models.model_loader", _diffsynth),
    "ai_toolkit": ("toolkit.accelerator", _ai_toolkit),
    "diffusion_pipe": ("comfy.cli_args", _diffusion_pipe),
    "onetrainer": ("modules.util.create", _onetrainer),
    "sd_scripts": ("library.flux_utils", _sd_scripts),
}
