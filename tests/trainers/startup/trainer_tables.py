"""The sizes of a model as each trainer's own table has them, made tiny: which module to wait for, and what to do."""

from types import ModuleType


def _musubi(configs: ModuleType) -> None:
    import torch

    # Default arguments of its text encoder, evaluated at import.
    torch.cuda.current_device = lambda: 0
    config = configs.WAN_CONFIGS["t2v-1.3B"]
    config.dim, config.ffn_dim, config.freq_dim, config.num_heads, config.num_layers = 32, 64, 32, 2, 5


TABLES = {
    "musubi": ("musubi_tuner.wan.configs", _musubi),
}
