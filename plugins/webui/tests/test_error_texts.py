"""Errors of the command line in the reader's language: every one that a setting of the page can give."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path

import pytest

import layersync_core
import layersync_plugin_crepa
import layersync_plugin_trainer
from layersync_core import ConfigError, LayerSyncConfig, plugins, validate
from layersync_core.errors import LayerSyncError
from layersync_core.families.refusals import REFUSALS
from layersync_core.families.registry import get_adapter, resolve
from layersync_core.losses.claims import ONLY_TRAINED_HERE
from layersync_core.run import settings as run
from layersync_plugin_crepa.config import _THEIRS
from layersync_plugin_trainer.config import Settings, TrainerConfig
from layersync_plugin_webui import language
from layersync_plugin_webui.error_texts import ERRORS
from layersync_plugin_webui.language import LOCALE
from plugins.webui.tests.messages import OURS, TRANSLATED
from plugins.webui.tests.said import errors

CORE, CREPA, TRAINER = (
    Path(module.__path__[0]) for module in (layersync_core, layersync_plugin_crepa, layersync_plugin_trainer)
)
NONE = dict.fromkeys(("hint", "also", "taken_for_the_hosts(self.given)", "spelling.taken_for_the_hosts(given)"), "")
SAMPLES = NONE | {
    "_right_spelling(found)": "the setting is layersync_enabled",
    "_installed_text()": "installed families: dit, wan; to add one see https://layersync.readthedocs.io/en/latest/adapters/",
    "did_you_mean(key, known)": "known: layersync_enabled",
    "' or '.join(close)": "layersync_lambda",
    "LAYER_SYNC": "layer_sync",
    "unknown_key(key, sorted({*own, *claimed}))": "unknown setting x; known: layersync_enabled",
    "LOSS_TYPE": "loss_type",
    "PREFIX": "layersync_",
    "SWITCH": "_enabled",
    "LOAD_VARIABLE": "LAYERSYNC_LOAD",
    "field": "lambda",
    "': false' if found['off'] else ''": ": false",
    "role": "teacher",
    "error": "boom: at line 1; and so on",
    "failure": "ValueError: boom; and so on",
    "describe_failure(error)": "ValueError: boom; and so on",
    "value": "3",
    "key": "crepa_enabled",
    "_INSTEAD": "give a local model folder or its config.json",
    "remedy": "give a local model folder or its config.json; download a model of the hub first: hf download a/b "
    "--local-dir FOLDER",
    "_REMEDIES.get(status, 'try again later')": "try again later",
    "found": "somebodys-adapter 1.0",
    "fault": "is not valid JSON (YAML and TOML are recognised by .yaml, .yml and .toml)",
}
PARTS = ("jobs", "training", "settings_files")
"""Of the page, where errors are made that are not the command line's."""
PAGE = {"remedy": "/x/python -m pip install layersync-core"}
PLACES = [
    *((CORE / f"{name}.py", {}, ()) for name in ("pairs", "spelling", "errors", "files", "config")),
    (CORE / "run/settings.py", {}, ()),
    (
        CORE / "losses/plugins.py",
        {
            "reason": "its plugin is not installed: pip install x",
            "claims.ONLY_TRAINED_HERE.format(key.removesuffix(SWITCH))": ONLY_TRAINED_HERE.format("x"),
        },
        (),
    ),
    (
        CORE / "losses/layersync.py",
        {
            "' and '.join(described)": "student block 1 of 4 (a.0) has width 8 and teacher block "
            "2 of 4 (a.1) has width 16"
        },
        ("_find", "_check_fit"),
    ),
    (CORE / "families/refusals.py", {}, ()),
    (CORE / "families/known.py", {}, ()),
    (CORE / "families/folders.py", {}, ()),
    (
        CORE / "families/hub.py",
        {
            "why": "the cache cannot be written (boom); set HF_HOME to another folder, or give a local "
            "model folder or its config.json"
        },
        (),
    ),
    (
        CORE / "families/registry.py",
        {
            "error": "the adapter of family wan is not installed; pip install x",
            "why": "no adapter knows the model class X",
            "refusal.reason": "declared unsupported",
        },
        (),
    ),
    (TRAINER / "config.py", {}, ()),
    (CORE / "cli/meta.py", {"near": "known: dit, wan"}, ()),
    (TRAINER / "models.py", {}, ()),
    (TRAINER / "arm.py", {"remedy": "pip install wandb", "' '.join(str(error).split())": "boom"}, ()),
    *(
        (path, PAGE, ())
        for part in ("jobs", "training", "settings_files")
        for path in (LOCALE.parent / part).rglob("*.py")
    ),
    *((CREPA / "config.py", {"reason": reason}, ()) for reason in _THEIRS.values()),
]
BIG = 10**5000
BAD = [
    "x",
    "1.5",
    "on",
    "inf",
    "nan",
    "[1]",
    "9" * 5000,
    b"\xff",
    -1,
    0,
    1.5,
    0.5,
    BIG,
    math.inf,
    -math.inf,
    math.nan,
    True,
    [],
    {},
    [[1]],
    (1,),
]


@pytest.fixture(params=TRANSLATED)
def translated(request):
    language.choose("", request.param)
    yield language.error_in_the_readers_language
    language.choose("")


@pytest.mark.parametrize(
    ("path", "samples", "only"), PLACES, ids=lambda value: value.name if isinstance(value, Path) else ""
)
def test_every_error_of_the_sources_has_a_translation(path, samples, only, translated):
    found = list(errors(path, SAMPLES | samples, only))
    assert found or path.name == "refusals.py" or LOCALE.parent in path.parents
    for said in found:
        translation = translated(said.text)
        assert translation is not None, f"{said!r} is in no text of error_texts.py"
        lost = [sample for sample in said.samples if sample not in translation]
        assert not lost, f"{said!r}: {translation}"


def test_every_refused_family_is_reported_in_the_readers_language(translated):
    for family in REFUSALS:
        with pytest.raises(LayerSyncError) as error:
            get_adapter(family)
        assert REFUSALS[family].models in translated(str(error.value))


MODELS = [
    model
    for model in dict.fromkeys((LayerSyncConfig, run.LaunchSettings, TrainerConfig, *plugins().config_models()))
    if model.__module__.startswith(OURS)
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_what_pydantic_says_of_each_field_has_a_translation(model, translated):
    switch = {key: True for key in model.model_fields if key.endswith("_enabled")}
    said = set()
    for key in model.model_fields:
        for value in BAD:
            try:
                validate(model, switch | {key: value})
            except ConfigError as error:
                said.add(str(error))
            except ValueError:  # Python's, of a number of thousands of digits
                assert value == BIG
    assert len(said) > 10
    missing = [text for text in said if len(text) < 4000 and translated(text) is None]
    assert missing == []


REAL = [
    (LayerSyncConfig.from_mapping, {"layersync_enabled": True}),
    (LayerSyncConfig.from_mapping, {"layersync_enabled": True, "encoder_depth": 3}),
    (LayerSyncConfig.from_mapping, {"layersync_lambda": 1, "layersync_tokens": "a; b: c", "layersync_guard": "x"}),
    (LayerSyncConfig.from_mapping, {"layersync_student": 1}),
    (LayerSyncConfig.from_mapping, {"layersync_nothing": 1}),
    (LayerSyncConfig.from_mapping, {"layersync foo": 1}),
    (LayerSyncConfig.from_mapping, {"layersync": {"enabled": True}}),
    (LayerSyncConfig.from_mapping, {"training": {"layersync_enabled": True}}),
    (LayerSyncConfig.from_mapping, {"--layersync-lambda": 0.1, "layersync_lambda": 0.2}),
    (LayerSyncConfig.from_mapping, {"loss_type": "LayerSync"}),
    (LayerSyncConfig.from_mapping, {1: 2}),
    (LayerSyncConfig.from_mapping, {"layersync_enabled": True, "layersync_pairs": [[1, 2, 0]]}),
    (LayerSyncConfig.from_mapping, {"layersync_enabled": True, "layersync_pairs": [["a; b", 2]]}),
    (LayerSyncConfig.from_mapping, {"layersync_enabled": True, "layersync_pairs": [[1, 2], [0, 2]]}),
    (LayerSyncConfig.from_mapping, {"layersync_enabled": True, "layersync_student_block": 1, "layersync_lambda": 0}),
    (run.read, {}),
    (run.read, {"layersync_target": "X"}),
    (run.read, {"layersync_enabled": False, "layersync_accumulation_steps": 0, "layersync_start_step": -1}),
    (run.read, {"layersync_suggest_dir": "x"}),
    (Settings, {"max_train_step": 3}),
    (Settings, {"max_train_steps": 0, "train_batch_size": "many: too many", "lr_scheduler": "it's"}),
    (Settings, {"lr_warmup_steps": 3}),
    (Settings, {"compare": True, "layersync_enabled": False}),
    (get_adapter, "no such family"),
    (resolve, "/no/such/folder"),
    (resolve, "owner/name"),
    (resolve, {"_class_name": "Nobody"}),
    (resolve, {}),
    (resolve, {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768}),
    (resolve, {"_class_name": "Transformer2DModel", "norm_type": "layer_norm"}),
]


@pytest.mark.parametrize(("asked", "given"), REAL, ids=lambda value: getattr(value, "__qualname__", str(value)))
def test_real_errors_are_translated_whole(asked, given, translated):
    with pytest.raises(LayerSyncError) as error:
        asked(given)
    text = str(error.value)
    translation = translated(text)
    assert translation is not None, text
    assert re.search(r"[\u0900-\u097f\u4e00-\u9fff]", translation)
    for key in re.findall(r"\b(?:layersync|lr|max)_\w+", text):
        assert key in translation


def test_several_faults_are_reported_one_after_the_other_with_what_was_given():
    language.choose("", "zh")
    try:
        with pytest.raises(ConfigError) as error:
            validate(TrainerConfig, {"max_train_steps": 0, "mixed_precision": "a: b; keep one"})
        assert language.error_in_the_readers_language(str(error.value)) == (
            "max_train_steps 为 0：应大于或等于 1；"
            "mixed_precision 为 'a: b; keep one'：应为下列之一：'no', 'bf16', 'fp16'"
        )
    finally:
        language.choose("")


@pytest.mark.parametrize(
    "text", ["", "something else", "max_train_steps is 0: something else", "keep one; and more", "x" * 10_000]
)
def test_what_is_not_known_as_a_whole_is_shown_only_in_english(text, translated):
    assert translated(text) is None


def test_in_english_there_is_nothing_to_translate():
    assert language.error_in_the_readers_language("keep one") is None


def test_an_error_that_is_new_in_a_source_is_found(tmp_path, translated):
    (tmp_path / "new.py").write_text('def check(key):\n    raise ConfigError(f"{key} is much too new; keep one")\n')
    (said,) = errors(tmp_path / "new.py", {})
    assert said.text == "x1 is much too new; keep one"
    assert translated(said.text) is None


def test_each_text_is_used():
    """A text would never be used if an earlier one matched all of its errors."""
    samples = {"why": "keep one", "choices": "'a' or 'b'", "value": "3", "second": "4", "names": "a and b"}
    language.choose("", "zh")
    try:
        for text in ERRORS:
            places = re.findall(r"%\((\w+)\)s", text)
            error = text % {name: samples.get(name, name) for name in places}
            found = language.gettext(text) % {name: samples.get(name, name) for name in places}
            found = found.replace("keep one", language.gettext("keep one")).replace("'a' or 'b'", "'a', 'b'")
            assert language.error_in_the_readers_language(error) == found.replace("a and b", "a, b"), text
    finally:
        language.choose("")


def test_a_text_made_to_take_long_does_not(translated):
    for part in (
        " is ",
        "a is 'b' and ",
        "layersync_pairs has [",
        "' and ",
        "; keep one",
        ": ",
        "a given without b, so it would do nothing",
    ):
        error = "a is 1 and b is 2" + part * 400
        for end in ("", ": two spellings of a b with different values", "; keep one"):
            started = time.process_time()
            translated(error[:3900] + end)
            assert time.process_time() - started < 2
