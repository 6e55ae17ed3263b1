"""Labels and places of fields; a setting that isn't listed here gets a label made from its key."""

from __future__ import annotations

from layersync_plugin_webui.language import later

LABELS = {
    "layersync_enabled": later("Enable LayerSync"),
    "layersync_student_block": later("LayerSync Student Block"),
    "layersync_teacher_block": later("LayerSync Teacher Block"),
    "layersync_lambda": later("LayerSync Weight"),
    "layersync_preset": later("LayerSync Preset"),
    "layersync_tokens": later("LayerSync Tokens"),
    "layersync_generated_tokens": later("LayerSync Generated Tokens"),
    "layersync_guard": later("LayerSync Guard"),
    "layersync_pairs": later("LayerSync Pairs"),
    "layersync_warmup_steps": later("LayerSync Warm-up Steps"),
    "layersync_decay_steps": later("LayerSync Decay Steps"),
    "layersync_cutoff_step": later("LayerSync Cut-off Step"),
    "layersync_log_grad_ratio": later("Log the Gradient Ratio"),
    "crepa_enabled": later("Enable CREPA"),
    "crepa_block_index": later("CREPA Block Index"),
    "crepa_lambda": later("CREPA Lambda"),
    "crepa_feature_source": later("CREPA Feature Source"),
    "crepa_teacher_block_index": later("CREPA Teacher Block Index"),
    "crepa_model": later("CREPA Vision Encoder"),
    "crepa_pixels": later("CREPA Pixels"),
    "twinflow_enabled": later("Enable TwinFlow (RCGM)"),
    "twinflow_target_step_count": later("TwinFlow Target Step Count"),
    "model": later("Model folder"),
    "family": later("Model family"),
    "rank": later("LoRA rank"),
    "output_dir": later("Run folder"),
    "layersync_status_dir": later("Run folder"),
    "max_train_steps": later("Steps"),
    "train_batch_size": later("Batch size"),
    "learning_rate": later("Learning rate"),
    "seed": later("Seed"),
    "compare": later("Compare with a vanilla arm"),
    "lr_scheduler": later("Learning-rate schedule"),
    "mixed_precision": later("Mixed precision"),
    "gradient_accumulation_steps": later("Gradient accumulation"),
    "report_to": later("Tracker"),
    "logging_steps": later("Steps between readings"),
    "checkpointing_steps": later("Steps between checkpoints"),
    "checkpoints_total_limit": later("Checkpoints to keep"),
    "resume_from_checkpoint": later("Resume from a checkpoint"),
    "layersync_target": later("Model to train"),
    "layersync_family": later("Family of that model"),
    "layersync_accumulation_steps": later("Accumulation steps"),
}

HELP = {
    "model": later("a local folder or config.json, or owner/name on the hub, of which the config is read"),
    "family": later("read from the folder; without one, the family's tiny model"),
    "output_dir": later("below the folder of runs; empty or absent"),
    "layersync_status_dir": later("below the folder of runs; for its state and metrics"),
}
"""Replaces a model's own description, which is about the command line."""

DEFAULTS = {"layersync_lambda": "0.2"}
"""The displayed default of a setting whose default is computed."""

NAMES = {"layersync": "LayerSync", "crepa": "CREPA", "twinflow": "TwinFlow"}
"""Losses by the prefix of their keys; these are names, and stay in every language."""

SECTIONS = {
    "model": ("family", "model", "rank"),
    "data": ("train_batch_size", "seed"),
    "training": (
        "max_train_steps", "learning_rate", "lr_scheduler", "lr_warmup_steps", "gradient_accumulation_steps",
        "mixed_precision", "compare", "adam_weight_decay", "max_grad_norm", "gradient_checkpointing",
    ),
    "output": (
        "output_dir", "checkpointing_steps", "logging_steps", "report_to", "checkpoints_total_limit",
        "resume_from_checkpoint", "guidance_scale", "num_sampling_steps",
    ),
}  # fmt: skip
"""Sections of the trainer's keys; one that isn't listed here is in ``training``, among the advanced ones."""

PLAIN = {
    "family", "model", "rank", "train_batch_size", "seed", "max_train_steps", "learning_rate", "lr_scheduler",
    "mixed_precision", "compare", "gradient_accumulation_steps", "output_dir", "checkpointing_steps",
    "layersync_enabled",
    "layersync_student_block", "layersync_teacher_block", "layersync_lambda", "crepa_enabled", "crepa_block_index",
    "crepa_feature_source", "crepa_teacher_block_index", "crepa_model", "crepa_pixels", "crepa_lambda",
    "layersync_target", "layersync_family", "layersync_accumulation_steps", "layersync_status_dir",
}  # fmt: skip
"""Fields that are visible at once; the others are advanced. A loss with none listed here shows all."""

BLOCKS = {
    "layersync_student_block": 1,
    "layersync_teacher_block": 1,
    "crepa_block_index": 0,
    "crepa_teacher_block_index": 0,
}
"""Fields that number blocks, and the number of the first block in each."""


def made_of(key: str) -> str:
    """Return a label for a key without a listed one."""
    prefix, _, rest = key.partition("_")
    if prefix in NAMES or key.endswith("_enabled"):
        name = NAMES.get(prefix, prefix.capitalize())
        words = rest.replace("_", " ").title()
        return f"Enable {name}" if rest == "enabled" else f"{name} {words}"
    return key.replace("_", " ").capitalize()
