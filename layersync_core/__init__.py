"""LayerSync regularisation for any diffusion transformer and any trainer, over unmodified model code.

Names are loaded on first use, so that importing the package does not import torch. Adapters and plugins may rely on the
names in the table below and on nothing else; ``__init__.pyi``, for type checkers, is generated from it.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

FACE = {
    "attachment": ("Attachment",),
    "capture.buffer": ("HiddenStateBuffer",),
    "capture.layout": ("BlockStack", "ForwardCall", "ModelLayout", "joined_text", "latent_grid"),
    "cli.meta": ("build_on_meta", "model_of"),
    "cli.inspect": ("model_parameters",),
    "cli.kinds": ("field_schemas",),
    "cli.list_supported": ("family_rows",),
    "cli.options": ("add_command",),
    "config": ("BlockNumber", "LayerSyncConfig", "Steps", "Weight", "not_boolean", "validate"),
    "distributed": ("several_ranks",),
    "capture.forward": ("Forward",),
    "capture.policy": ("only_forward",),
    "errors": (
        "AdapterNotInstalledError",
        "CaptureError",
        "ConfigError",
        "LayerSyncError",
        "LayerSyncWarning",
        "UnknownFamilyError",
        "UnsupportedFamilyError",
    ),
    "families.adapter": ("BlockStackAdapter",),
    "families.asking": ("blocks_of",),
    "families.folders": ("find_model_config", "read_model_config"),
    "families.registry": (
        "get_adapter",
        "list_families",
        "load_tiny",
        "provider",
        "resolve",
    ),
    "files": ("kind_of", "parse_settings", "replace_file"),
    "losses.alignment": ("alignment_loss",),
    "losses.hookspecs": ("hookimpl",),
    "losses.pairing": ("suggest_pair",),
    "losses.plugins": ("third_parties",),
    "markup": ("printable",),
    "schedule": ("Schedule",),
    "metrics": ("check_term",),
    "participants": ("libraries", "only_loaded"),
    "objective": ("Batch", "Objective", "ObjectiveBase", "Predict", "completed"),
    "process_record": (
        "LOG_FILE",
        "PROCESS_FILE",
        "ASKED_FILE",
        "ProcessRecord",
        "ProcessState",
        "note_end",
        "read_process",
    ),
    "protocol": (
        "Adapter",
        "Block",
        "CaptureHandle",
        "Modality",
        "Regularizer",
        "RegularizerBase",
        "States",
        "Term",
        "Tiny",
    ),
    "report.contents": ("Arm", "Picture", "Report", "Series", "metric_rank"),
    "report.facts": ("facts_of",),
    "report.page": ("render_report",),
    "replacing": ("wrap_once",),
    "run.settings": ("LaunchSettings", "run_settings"),
    "signalling": ("RUN_FOLDER", "interrupt_run", "kill_run"),
    "state": ("load_states", "save_states"),
    "session": ("attach", "plugins"),
    "suggest.figures": ("SkippedRun",),
    "suggest.findings": ("Findings",),
    "suggest.probe": ("Probe",),
    "suggest.verdict": ("allowed_places",),
    "spelling": (
        "canonical",
        "flag",
        "is_on",
        "overlay",
        "plain",
        "same_value",
        "settings_of",
        "taken_for_the_hosts",
        "unknown_key",
    ),
}
"""Module -> the names that it contributes to the public face."""

_MODULE_OF = {name: module for module, names in FACE.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
