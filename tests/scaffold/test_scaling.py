"""Settings scaled down: what held between the large ones still holds between the small ones."""

from __future__ import annotations

from typing import Any

import pytest

from layersync_core.scaffold.scaling import Size, guessed, role_of, scaled

FLUX = {
    "patch_size": 1,
    "in_channels": 64,
    "out_channels": None,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 56, 56),
}


def small(values: dict[str, Any], size: Size | None = None) -> dict[str, Any]:
    return values | scaled(values, size or Size())


def test_rotary_axes_still_share_the_channels_of_a_head() -> None:
    found = small(FLUX)
    assert found["attention_head_dim"] == sum(found["axes_dims_rope"]) == 16
    assert all(share % 2 == 0 for share in found["axes_dims_rope"])


def test_widths_of_what_comes_from_elsewhere_occur_once() -> None:
    found = small(FLUX)
    widths = [found[name] for name in ("joint_attention_dim", "pooled_projection_dim", "in_channels")]
    assert len({*widths, found["attention_head_dim"] * found["num_attention_heads"]}) == 4


def test_several_lists_are_short() -> None:
    assert [small(FLUX)[name] for name in ("num_layers", "num_single_layers")] == [2, 2]
    assert small({"num_layers": 48, "num_refiner_layers": 6})["num_layers"] == 4


def test_products_and_multiples_stay_what_they_are() -> None:
    found = small(
        {"num_heads": 16, "hidden_size": 1152, "mlp_dim": 4608, "cross_attention_dim": 1152, "num_kv_heads": 4}
    )
    assert found == {"num_heads": 2, "hidden_size": 32, "mlp_dim": 128, "cross_attention_dim": 32, "num_kv_heads": 1}


def test_frames_and_compression_fit() -> None:
    found = small({"sample_frames": 49, "temporal_compression_ratio": 4, "patch_size_t": 2})
    assert (found["sample_frames"] - 1) % 4 == 0
    assert ((found["sample_frames"] - 1) // 4 + 1) % 2 == 1 or found["sample_frames"] == 13


def test_what_is_small_or_no_size_stays() -> None:
    assert (
        scaled(
            {"in_channels": 16, "patch_size": (1, 2, 2), "rope_theta": 10000, "qk_norm": "rms", "bias": True}, Size()
        )
        == {}
    )


def test_roles_can_be_kept() -> None:
    kept = Size(kept=frozenset({"outer", "patch_size"}))
    assert "joint_attention_dim" not in scaled(FLUX, kept)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("attention_head_dim", "head_dim"),
        ("num_attention_heads", "heads"),
        ("num_key_value_heads", "kv_heads"),
        ("depth", "layers"),
        ("mmdit_layers", "layers"),
        ("num_frame_per_block", "ignored"),
        ("caption_channels", "outer"),
        ("ffn_dim", "mlp"),
        ("freq_dim", "time"),
        ("sample_height", "size"),
        ("whatever", ""),
    ],
)
def test_roles_by_name(name: str, role: str) -> None:
    assert role_of(name) == role


@pytest.mark.parametrize(
    ("name", "annotation", "value"),
    [
        ("patch_size", "tuple[int, int, int]", (1, 2, 2)),
        ("patch_size", "int", 2),
        ("layers", "int", 4),
        ("caption_dim", "int", 24),
        ("use_bias", "bool", False),
        ("engine", "Engine", None),
    ],
)
def test_settings_without_a_default(name: str, annotation: str, value: Any) -> None:
    assert guessed(name, annotation, Size()) == value
