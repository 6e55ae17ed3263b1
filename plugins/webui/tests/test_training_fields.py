"""Fields come from the models themselves, and what is typed is what is sent."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, field_validator

from layersync_core import LaunchSettings, LayerSyncConfig, third_parties
from layersync_plugin_trainer.config import TrainerConfig
from layersync_plugin_webui.training import labels, limits, routes
from layersync_plugin_webui.training.answering import schema
from layersync_plugin_webui.training.fields import Fields
from layersync_plugin_webui.training.values import Form, read
from plugins.webui.tests.filling import Controls, FakeWorker, everything, fields


@pytest.fixture
def worker(monkeypatch):
    found = FakeWorker()
    monkeypatch.setattr(routes, "Worker", lambda: found)
    return found


class Odd:
    pass


class Several(BaseModel):
    """A third party's settings."""

    several_enabled: bool = Field(False, description="100% <b>new</b>")
    several_mode: Literal["a", "b"] = "a"
    several_share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    several_count: Annotated[int, Field(gt=0, le=9)] | None = None
    several_pairs: list[list[int]] = []
    several_any: object = None
    several_name: str = "x"
    several_needed: int

    @field_validator("several_share")
    @classmethod
    def _fits(cls, value: float) -> float:
        return value


class Strange(BaseModel, arbitrary_types_allowed=True):
    strange_enabled: bool = False
    strange_thing: Odd | None = None


def with_loss(model):
    described = everything()
    return {**described, "losses": [*described["losses"], schema.described(model)]}


def test_every_field_of_every_model_is_on_the_page_once(worker, reader):
    worker.described = with_loss(Several)
    page = Controls(reader.get("/training").text)
    models = [TrainerConfig, LayerSyncConfig, LaunchSettings, *third_parties().config_models(), Several]
    keys = [key for model in models for key in model.model_fields]
    counts = Counter(page.ids)
    assert {key: counts[key] for key in keys} == dict.fromkeys(keys, 1)
    sent = Counter(name for name, _ in page.sent)
    assert all(sent[key] <= 1 for key in keys)
    assert max(Counter(page.ids).values()) == 1
    assert len(keys) == len(set(keys))


def test_a_new_key_of_a_plugin_has_a_control_of_its_kind(worker, reader):
    worker.described = with_loss(Several)
    text = reader.get("/training").text
    loss = Fields(worker.described).losses[-1]
    kinds = {field.key: field.kind for field in loss.fields}
    assert kinds == {
        "several_enabled": "bool",
        "several_mode": "choice",
        "several_share": "float",
        "several_count": "int",
        "several_pairs": "list",
        "several_any": "text",
        "several_name": "text",
        "several_needed": "int",
    }
    assert [limits.limits(field) for field in loss.fields] == [
        "", "", "at least 0, less than 1", "more than 0, at most 9", "", "", "", "",
    ]  # fmt: skip
    assert loss.name == "Several"
    assert loss.switch.label == "Enable Several"
    assert [field.label for field in loss.fields][1:3] == ["Several mode", "Several share"]
    assert "100% &lt;b&gt;new&lt;/b&gt;" in text, "a description is text, whatever is in it"
    assert 'placeholder="0.5"' in text


def test_a_field_that_json_cannot_describe_is_a_line_of_text():
    kinds = {field["key"]: field["kind"] for field in schema.described(Strange)["fields"]}
    assert kinds == {"strange_enabled": "bool", "strange_thing": "text"}


def test_users_find_what_they_know():
    known = fields().by_key
    told = {key: known[key].label for key in list(labels.LABELS)[:4]}
    assert list(told.values()) == [
        "Enable LayerSync",
        "LayerSync Student Block",
        "LayerSync Teacher Block",
        "LayerSync Weight",
    ]
    loss = fields().losses[0]
    assert [field.key for field in loss.plain] == list(told)[1:]
    assert known["layersync_lambda"].default == "0.2"
    assert "layersync_warmup_steps" in [field.key for field in loss.advanced]


def test_the_page_names_no_key_that_is_gone():
    stale = {*labels.LABELS, *labels.HELP, *labels.PLAIN, *labels.BLOCKS} - {*fields().by_key}
    assert {key for key in stale if not key.startswith("twinflow_")} == set()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("layersync_student_block", "8", 8),
        ("layersync_student_block", "8.5", "8.5"),
        ("layersync_student_block", "8.0", "8.0"),
        ("layersync_student_block", "true", "true"),
        ("layersync_student_block", "0x8", "0x8"),
        ("layersync_student_block", "12345678901234567890", 12345678901234567890),
        ("layersync_lambda", "0.2", 0.2),
        ("layersync_lambda", "1e-4", 1e-4),
        ("layersync_lambda", "1", 1),
        ("layersync_lambda", "0.1234567890123456789", "0.1234567890123456789"),
        ("layersync_lambda", "NaN", "NaN"),
        ("layersync_lambda", "Infinity", "Infinity"),
        ("layersync_lambda", "1e999", "1e999"),
        ("layersync_lambda", "0,2", "0,2"),
        ("layersync_guard", "false", False),
        ("layersync_guard", "maybe", "maybe"),
        ("layersync_guard", "1", "1"),
        ("layersync_pairs", "[[4, 12], [8, 16, 0.1]]", [[4, 12], [8, 16, 0.1]]),
        ("layersync_pairs", "[[4, 12", "[[4, 12"),
        ("layersync_pairs", "[" * 5000, "[" * 5000),
        ("layersync_tokens", "all", "all"),
        ("crepa_pixels", "null", "null"),
    ],
)
def test_a_file_holds_exactly_what_was_typed(key, text, value):
    got = fields().by_key[key].typed(text)
    assert got == value
    assert type(got) is type(value)
    json.dumps({key: got}, allow_nan=False)


def test_only_what_was_given_is_sent_and_defaults_are_not_pruned():
    form = read(
        [
            ("layersync_enabled", "true"),
            ("layersync_student_block", "  "),
            ("layersync_lambda", "0.2"),
            ("layersync_guard", "true"),
            ("max_train_steps", "400"),
            ("layersync_target", "Transformer"),
            ("nothing_known", "1"),
            ("page.way", "train"),
        ]
    )
    given = {"layersync_enabled": "true", "layersync_lambda": "0.2", "layersync_guard": "true"}
    assert form.given(fields()) == {"max_train_steps": "400", **given}
    own = read([*form.texts.items(), ("page.way", "run")])
    assert own.given(fields()) == {"layersync_target": "Transformer", **given}
    assert form.typed(fields())["layersync_lambda"] == 0.2


def test_an_emptied_number_is_not_given():
    assert Form({"layersync_lambda": "", "layersync_student_block": " "}).given(fields()) == {}
