"""What every family of the listing can do: be inspected, at released depths too, and be trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layersync_core.cli import main
from layersync_core.cli.meta import build_on_meta
from layersync_core.families.known import KNOWN
from layersync_core.families.registry import get_adapter, list_families, load_tiny, resolve
from layersync_core.losses.pairing import suggest_pair

# Depths of the released models, by class defaults or by the settings of their configs.
RELEASED: list[tuple[str, dict[str, Any], int]] = [
    ("auraflow", {"_class_name": "AuraFlowTransformer2DModel"}, 36),
    ("chroma", {"_class_name": "ChromaTransformer2DModel"}, 57),
    ("cogvideox", {"_class_name": "CogVideoXTransformer3DModel"}, 30),
    (
        "cogvideox",
        {
            "_class_name": "CogVideoXTransformer3DModel",
            "num_layers": 42,
            "num_attention_heads": 48,
            "patch_size_t": 2,
            "use_rotary_positional_embeddings": True,
        },
        42,
    ),
    ("cogview4", {"_class_name": "CogView4Transformer2DModel"}, 30),
    ("cosmos", {"_class_name": "CosmosTransformer3DModel"}, 28),
    ("dit", {"_class_name": "DiTTransformer2DModel"}, 28),
    ("ernie_image", {"_class_name": "ErnieImageTransformer2DModel"}, 24),
    ("flux", {"_class_name": "FluxTransformer2DModel"}, 57),
    ("flux2", {"_class_name": "Flux2Transformer2DModel"}, 56),
    ("flux3", {"_class_name": "Flux3Transformer2DModel"}, 33),
    (
        "hidream",
        {
            "_class_name": "HiDreamImageTransformer2DModel",
            "attention_head_dim": 128,
            "axes_dims_rope": [64, 32, 32],
            "caption_channels": [4096, 4096],
            "in_channels": 16,
            "llama_layers": list(range(48)),
            "max_resolution": [128, 128],
            "num_activated_experts": 2,
            "num_attention_heads": 20,
            "num_layers": 16,
            "num_routed_experts": 4,
            "num_single_layers": 32,
            "patch_size": 2,
            "text_emb_dim": 2048,
        },
        48,
    ),
    ("hunyuan_image", {"_class_name": "HunyuanImageTransformer2DModel"}, 60),
    ("hunyuan_video", {"_class_name": "HunyuanVideoTransformer3DModel"}, 60),
    ("hunyuan_video", {"_class_name": "HunyuanVideo15Transformer3DModel"}, 54),
    ("ideogram4", {"_class_name": "Ideogram4Transformer2DModel"}, 34),
    (
        "kandinsky5_video",
        {
            "_class_name": "Kandinsky5Transformer3DModel",
            "model_dim": 1792,
            "num_visual_blocks": 32,
            "visual_cond": True,
            "ff_dim": 7168,
        },
        32,
    ),
    ("krea2", {"_class_name": "Krea2Transformer2DModel"}, 28),
    ("longcat", {"_class_name": "LongCatImageTransformer2DModel"}, 57),
    ("ltx_video", {"_class_name": "LTXVideoTransformer3DModel"}, 28),
    ("ltx_video", {"_class_name": "LTX2VideoTransformer3DModel"}, 48),
    ("minimax_h3", {"_class_name": "MiniMaxH3Transformer3DModel"}, 50),
    ("mochi", {"_class_name": "MochiTransformer3DModel"}, 48),
    ("pixart", {"_class_name": "PixArtTransformer2DModel"}, 28),
    ("qwen_image", {"_class_name": "QwenImageTransformer2DModel"}, 60),
    ("qwen_image", {"_class_name": "QwenImage21Transformer2DModel"}, 32),
    ("sana", {"_class_name": "SanaTransformer2DModel"}, 20),
    ("sana", {"_class_name": "SanaVideoTransformer3DModel"}, 20),
    ("sd3", {"_class_name": "SD3Transformer2DModel"}, 18),
    ("sd3", {"_class_name": "SD3Transformer2DModel", "num_layers": 38, "num_attention_heads": 38}, 38),
    (
        "sdxl",
        {
            "_class_name": "UNet2DConditionModel",
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "projection_class_embeddings_input_dim": 2816,
            "transformer_layers_per_block": [1, 2, 10],
            "use_linear_projection": True,
        },
        70,
    ),
    ("skyreels_v2", {"_class_name": "SkyReelsV2Transformer3DModel"}, 32),
    ("wan", {"_class_name": "WanTransformer3DModel"}, 40),
    ("wan", {"_class_name": "WanTransformer3DModel", "num_layers": 30, "num_attention_heads": 12}, 30),
    ("wan", {"_class_name": "WanVACETransformer3DModel"}, 40),
    ("wan", {"_class_name": "WanAnimateTransformer3DModel"}, 40),
    ("z_image", {"_class_name": "ZImageTransformer2DModel"}, 30),
    ("ace_step", {"_class_name": "AceStepTransformer1DModel"}, 24),
    ("allegro", {"_class_name": "AllegroTransformer3DModel"}, 32),
    ("anyflow", {"_class_name": "AnyFlowTransformer3DModel"}, 40),
    ("bria", {"_class_name": "BriaTransformer2DModel"}, 57),
    ("chronoedit", {"_class_name": "ChronoEditTransformer3DModel"}, 40),
    ("cogview3", {"_class_name": "CogView3PlusTransformer2DModel"}, 30),
    ("consisid", {"_class_name": "ConsisIDTransformer3DModel"}, 30),
    (
        "easyanimate",
        {"_class_name": "EasyAnimateTransformer3DModel", "in_channels": 16, "out_channels": 16, "patch_size": 2},
        48,
    ),
    ("fibo", {"_class_name": "BriaFiboTransformer2DModel"}, 57),
    ("fibo", {"_class_name": "BriaFibo2Transformer2DModel"}, 44),
    ("glm_image", {"_class_name": "GlmImageTransformer2DModel"}, 30),
    (
        "hunyuan_dit",
        {"_class_name": "HunyuanDiT2DModel", "in_channels": 4, "patch_size": 2, "hidden_size": 1408, "num_layers": 40},
        40,
    ),
    ("joyimage", {"_class_name": "JoyImageEditTransformer3DModel"}, 20),
    ("joyimage", {"_class_name": "JoyImageEditPlusTransformer3DModel"}, 20),
    ("kandinsky6", {"_class_name": "Kandinsky6Transformer3DModel"}, 60),
    ("lumina_next", {"_class_name": "LuminaNextDiT2DModel", "num_kv_heads": 8, "num_layers": 24}, 24),
    ("minimax_music", {"_class_name": "MiniMaxMusic3Transformer1DModel"}, 36),
    ("motif_video", {"_class_name": "MotifVideoTransformer3DModel"}, 60),
    ("nucleus", {"_class_name": "NucleusMoEImageTransformer2DModel"}, 24),
    ("ovis", {"_class_name": "OvisImageTransformer2DModel"}, 33),
    ("prx", {"_class_name": "PRXTransformer2DModel"}, 16),
    ("stable_audio", {"_class_name": "StableAudioDiTModel"}, 24),
    ("stable_audio", {"_class_name": "StableAudio3DiTModel"}, 24),
]


def test_every_known_family_is_installed_here() -> None:
    assert list_families() == sorted(KNOWN)


@pytest.mark.parametrize(
    ("family", "config", "depth"), RELEASED, ids=[f"{config['_class_name']}-{depth}" for _, config, depth in RELEASED]
)
def test_released_models(family: str, config: dict[str, Any], depth: int) -> None:
    adapter = resolve(config)
    assert adapter.family == family
    model = build_on_meta(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    blocks = adapter.list_blocks(model)
    assert len(blocks) == depth
    assert all(block.width and model.get_submodule(block.path) is not None for block in blocks)
    student, teacher = suggest_pair(blocks)
    assert (student.width, student.stage) == (teacher.width, teacher.stage)
    assert student.index < teacher.index < depth - depth // 5
    assert 0.2 <= (student.index + 1) / depth <= 0.4 or family == "sdxl"
    assert 0.55 <= (teacher.index + 1) / depth <= 0.75 or family == "sdxl"


@pytest.mark.parametrize("family", sorted(KNOWN))
def test_inspect_shows_a_tiny_model(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_tiny(family).tiny_model()
    model.save_config(tmp_path)
    assert main(["inspect", str(tmp_path), "--family", family, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    blocks = get_adapter(family).list_blocks(model)
    assert [(block["index"], block["path"], block["width"]) for block in shown["blocks"]] == [
        (block.index, block.path, block.width) for block in blocks
    ]
    assert main(["inspect", str(tmp_path), "--family", family]) == 0
    text = capsys.readouterr().out
    for block in blocks:
        assert f"{block.index + 1:5}  {block.index:5}  {block.width:5}  {block.path}" in text
    assert "suggested student: " in text


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(KNOWN))
def test_train(family: str, tmp_path: Path) -> None:
    steps = ["--max_train_steps", "2", "--num_sampling_steps", "2", "--report_to", "none", "--logging_steps", "2"]
    steps += ["--train_batch_size", "1"] if family == "minimax_h3" else []  # one timestep for a whole batch
    assert main(["train", "--family", family, *steps, "--output_dir", str(tmp_path / "out")]) == 0
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["family"] == family
    assert run["steps"] == 2
    assert -1 <= run["metrics"]["layersync_similarity"] <= 1
    assert run["metrics"]["layersync_loss"] != 0
