"""The sizes of a model as each trainer's own table has them, made tiny: which module to wait for, and what to do."""

from types import ModuleType
from typing import Any


def _musubi_wan(configs: ModuleType) -> None:
    _name_a_gpu()
    config = configs.WAN_CONFIGS["t2v-1.3B"]
    config.dim, config.ffn_dim, config.freq_dim, config.num_heads, config.num_layers = 32, 64, 32, 2, 5


def _name_a_gpu() -> None:
    """Answer the default arguments of Wan's text encoder, evaluated at import."""
    import torch

    torch.cuda.current_device = lambda: 0


def _musubi_hunyuan_video(models: ModuleType) -> None:
    import torch

    sizes = {"mm_double_blocks_depth": 4, "mm_single_blocks_depth": 3, "hidden_size": 32, "heads_num": 2}
    models.HUNYUAN_VIDEO_CONFIG["HYVideo-T/2-cfgdistill"].update(sizes, rope_dim_list=[4, 6, 6])
    # It asks for a GPU by name; only flash attention reads the numbers, the other ways of attention the shape.
    models.get_cu_seqlens = lambda mask, tokens: torch.zeros(2 * len(mask) + 1, dtype=torch.int32)


def _musubi_flux_kontext(models: ModuleType) -> None:
    sizes = {"hidden_size": 32, "num_heads": 2, "axes_dim": [4, 6, 6], "vec_in_dim": 32, "context_in_dim": 32}
    vars(models.configs_flux_dev_context.params).update(sizes, depth=4, depth_single_blocks=3)
    _float32()


def _musubi_flux2(utils: ModuleType) -> None:
    sizes = {"hidden_size": 32, "num_heads": 2, "axes_dim": [4, 4, 4, 4], "context_in_dim": 32}
    for version in ("dev", "klein-base-4b"):
        vars(utils.FLUX2_MODEL_INFO[version].params).update(sizes, depth=4, depth_single_blocks=3)
    _float32()


def _musubi_qwen_image(module: ModuleType) -> None:
    sizes = {"attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 6, 6), "joint_attention_dim": 32}
    _resize(module.QwenImageTransformer2DModel, **sizes)
    _float32()


def _musubi_framepack(module: ModuleType) -> None:
    sizes = {"attention_head_dim": 16, "num_attention_heads": 2, "rope_axes_dim": (4, 6, 6), "text_embed_dim": 32}
    depths = {"num_layers": 4, "num_single_layers": 3, "num_refiner_layers": 1}
    _name_a_gpu()
    _resize(module.HunyuanVideoTransformer3DModelPacked, **sizes, **depths, pooled_projection_dim=32, image_proj_dim=32)
    _float32()


def _musubi_hunyuan_video_1_5(module: ModuleType) -> None:
    # The sizes are attributes that the function that makes the model sets, all but the depth.
    for name, size in {"hidden_size": 32, "heads_num": 2, "rope_dim_list": [4, 6, 6]}.items():
        fixed = property(lambda self, size=size: size, lambda self, value: None)
        setattr(module.HunyuanVideo_1_5_DiffusionTransformer, name, fixed)


def _resize(model: Any, **sizes: Any) -> None:
    """Make a class smaller whose sizes are written inside the function that makes the model."""
    make = model.__init__
    model.__init__ = lambda self, **given: make(self, **{**given, **sizes})


def _musubi_z_image(config: ModuleType) -> None:
    config.DEFAULT_TRANSFORMER_DIM, config.DEFAULT_TRANSFORMER_N_LAYERS = 32, 5
    config.DEFAULT_TRANSFORMER_N_HEADS = config.DEFAULT_TRANSFORMER_N_KV_HEADS = 2
    config.DEFAULT_TRANSFORMER_N_REFINER_LAYERS, config.DEFAULT_TRANSFORMER_CAP_FEAT_DIM = 1, 32
    config.ROPE_AXES_DIMS = [4, 6, 6]


def _musubi_kandinsky5(configs: ModuleType) -> None:
    sizes = {"in_text_dim": 32, "in_text_dim2": 32, "time_dim": 32, "model_dim": 32, "ff_dim": 64}
    depths = {"num_text_blocks": 1, "num_visual_blocks": 5, "axes_dims": (4, 6, 6)}
    for task in configs.TASK_CONFIGS.values():
        vars(task.dit_params).update(sizes, **depths)


def _float32() -> None:
    """Let a script whose weights are always in bfloat16 have them in float32 where mixed precision is off."""
    from musubi_tuner.training.trainer_base import NetworkTrainer

    prepare = NetworkTrainer._prepare_accelerator_and_dtypes

    def prepared(trainer: NetworkTrainer, args: Any) -> Any:
        args.dit_dtype = "float32" if args.mixed_precision == "no" else args.dit_dtype
        return prepare(trainer, args)

    NetworkTrainer._prepare_accelerator_and_dtypes = prepared


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

    if sys.version_info < (3, 12):  # it expects 3.12, whose sqlite3.connect takes autocommit
        connect: Any = sqlite3.connect
        sqlite3.connect = lambda path, autocommit=True: connect(path)  # type: ignore[misc]

    torch.manual_seed(1)  # it has no setting for that
    cli_args.args.cpu = True  # ComfyUI's own flag, which diffusion-pipe does not pass on
    # It names the device outright, which a CPU must replace.
    torch.cuda.set_device = lambda device: None
    for owner in (torch.Tensor, torch.nn.Module):
        owner.to = _to_cpu(owner.to)


def _to_cpu(to: Any) -> Any:
    def moved(value: Any, *args: Any, **kwargs: Any) -> Any:
        return to(value, *("cpu" if arg == "cuda" else arg for arg in args), **kwargs)

    return moved


TABLES = {
    "musubi_wan": ("musubi_tuner.wan.configs", _musubi_wan),
    "musubi_hunyuan_video": ("musubi_tuner.hunyuan_model.models", _musubi_hunyuan_video),
    "musubi_flux_kontext": ("musubi_tuner.flux.flux_models", _musubi_flux_kontext),
    "musubi_flux2": ("musubi_tuner.flux_2.flux2_utils", _musubi_flux2),
    "musubi_qwen_image": ("musubi_tuner.qwen_image.qwen_image_model", _musubi_qwen_image),
    "musubi_hunyuan_video_1_5": (
        "musubi_tuner.hunyuan_video_1_5.hunyuan_video_1_5_models",
        _musubi_hunyuan_video_1_5,
    ),
    "musubi_framepack": ("musubi_tuner.frame_pack.hunyuan_video_packed", _musubi_framepack),
    "musubi_z_image": ("musubi_tuner.zimage.zimage_config", _musubi_z_image),
    "musubi_kandinsky5": ("musubi_tuner.kandinsky5.configs", _musubi_kandinsky5),
    "diffsynth": ("diffsynth.models.model_loader", _diffsynth),
    "ai_toolkit": ("toolkit.accelerator", _ai_toolkit),
    "diffusion_pipe": ("comfy.cli_args", _diffusion_pipe),
    "onetrainer": ("modules.util.create", _onetrainer),
    "sd_scripts": ("library.flux_utils", _sd_scripts),
}
