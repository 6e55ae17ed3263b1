"""Which distributions took part: recorded in states, and compared where one is taken up again."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from layersync_core import __version__, attach, load_states, save_states
from layersync_core.losses.plugins import third_parties
from layersync_core.participants import INDEX, changed, libraries, only_loaded, origin_of
from layersync_core.run.status import Status, read_all
from layersync_core.session import plugins
from layersync_core.state import STATE_FILE
from tests import fakes
from tests.models import TOY, build, settings, toy

THEIRS = """
from pydantic import BaseModel
from layersync_core import RegularizerBase, Term

class TheirConfig(BaseModel):
    theirs_enabled: bool = False

class Theirs(RegularizerBase):
    name = "theirs"
    order = 150
    def layers(self, blocks):
        return {0}
    def compute(self, states, step):
        return Term(states.trainable_tokens(0).mean(), {})

@hookimpl
def layersync_config_models():
    return [TheirConfig]

@hookimpl
def layersync_regularizers(config):
    return [Theirs()] if config.of(TheirConfig) else []
"""
URL = "https://somebody:secret@example.com/their-loss.git"


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Somebody's plugin that was installed from a repository, and another one that is not switched on."""
    for cached in (plugins, third_parties, origin_of):
        cached.cache_clear()
    site = fakes.plugin("their-loss", THEIRS, "theirs").install(tmp_path, monkeypatch)
    (info,) = site.glob("*.dist-info")
    about = {"url": URL, "vcs_info": {"vcs": "git", "commit_id": "abc123"}}
    (info / "direct_url.json").write_text(json.dumps(about))
    idle = THEIRS.replace("theirs", "idle").replace("Their", "Idle")
    fakes.plugin("idle-loss", idle, "idle").install(tmp_path, monkeypatch)
    yield
    for cached in (plugins, third_parties, origin_of):
        cached.cache_clear()


def names(records: list[dict[str, str]]) -> list[tuple[str, str, str]]:
    return [(record["name"], record["version"], record["role"]) for record in records]


CORE = ("layersync-core", __version__, "core")


def test_core_and_the_adapter_of_the_model() -> None:
    model, _ = build("dit")
    with attach(model, settings(1, 2)) as sync:
        found = sync.distributions()
        assert names(found) == [CORE, ("layersync-adapter-dit", __version__, "adapter")]
        assert found[1]["entry"] == "dit = layersync_adapter_dit:adapter"
        assert sync.state_dict()["distributions"] == found


def test_an_adapter_of_one_s_own_is_nobody_s() -> None:
    with attach(toy(), settings(1, 3), adapter=TOY) as sync:
        assert names(sync.distributions()) == [CORE]


@pytest.mark.usefixtures("theirs")
def test_a_third_party_that_is_on_with_its_origin_and_one_that_is_only_loaded() -> None:
    with attach(toy(), settings(1, 3, theirs_enabled=True), adapter=TOY) as sync:
        found = sync.distributions()
        assert names(found) == [CORE, ("their-loss", "9.8", "plugin")]
        assert found[1]["origin"] == "https://example.com/their-loss.git@abc123"
        assert found[1]["entry"].startswith("theirs = fake_")
        assert "idle-loss 9.8" in only_loaded(found)
        assert "their-loss 9.8" not in only_loaded(found)
    with attach(toy(), settings(1, 3), adapter=TOY) as sync:
        assert names(sync.distributions()) == [CORE]


def test_where_a_distribution_comes_from() -> None:
    assert origin_of("pydantic") == INDEX
    assert origin_of("no-such-distribution") == INDEX


def test_libraries_that_were_imported() -> None:
    import torch  # noqa: F401

    assert libraries()["torch"] == version("torch")
    assert "deepspeed" not in libraries()


def test_the_state_file_says_it(tmp_path: Path) -> None:
    model, _ = build("dit")
    with attach(model, settings(1, 2)) as sync:
        save_states(tmp_path, {"": sync.state_dict()})
        states = load_states(tmp_path)
        assert states is not None
        assert states[""]["distributions"] == sync.distributions()
    with safe_open(tmp_path / STATE_FILE, framework="pt") as file:
        about = json.loads(file.metadata()["layersync"])
    assert about["libraries"] == libraries()
    assert about["states"][""]["distributions"][1]["name"] == "layersync-adapter-dit"


@pytest.mark.parametrize("gone", ["distributions", "libraries"])
def test_an_earlier_file_without_the_record_is_read_without_a_word(
    gone: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import save_file

    about: dict[str, Any] = {"version": 2, "states": {"": {"step": 5, "modules": [], "distributions": []}}}
    about["libraries"] = {}
    about.pop(gone, None)
    about["states"][""].pop(gone, None)
    save_file({}, tmp_path / STATE_FILE, metadata={"layersync": json.dumps(about)})
    states = load_states(tmp_path)
    assert states is not None
    with attach(toy(), settings(1, 3), adapter=TOY) as sync, caplog.at_level(logging.WARNING):
        sync.load_state_dict(states[""])
        assert sync.state_dict()["step"] == 5
        sync.load_state_dict({"version": 1, "step": 6, "modules": {}})  # as attachments once gave it
    assert caplog.messages == []


def test_another_version_is_one_line_with_both_versions(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = build("dit")
    with attach(model, settings(1, 2)) as sync, caplog.at_level(logging.WARNING):
        state = sync.state_dict()
        sync.load_state_dict(state)
        assert caplog.messages == []
        core, adapter = state["distributions"]
        adapter = {**adapter, "name": "LayerSync_Adapter.dit", "version": "0.0.9"}
        their = {"name": "their-loss", "version": "1.0", "role": "plugin", "entry": "", "origin": ""}
        sync.load_state_dict({**state, "distributions": [core, adapter, their]})
    assert caplog.messages == [
        f"the checkpoint was written with LayerSync_Adapter.dit 0.0.9 (now {__version__}), "
        "their-loss 1.0 (takes no part now)"
    ]


def test_a_record_from_elsewhere_is_one_plain_line() -> None:
    their = {"name": "their-loss", "version": "9\n\x1b[31m"}
    assert changed([their, their], []) == r"their-loss 9\n\x1b[31m (takes no part now)"


def test_no_record_is_no_difference() -> None:
    assert changed(None, []) == ""


@pytest.mark.parametrize("record", ["x", 3, {"a": 1}, [3, None, {"name": 3, "version": "1"}, {"name": "a"}]])
def test_a_damaged_record_is_told(record: Any) -> None:
    assert changed(record, []) == "something that its damaged record does not name"


def test_status_files_of_a_run_with_and_without_it(tmp_path: Path) -> None:
    Status(distributions=["layersync-core 1.0"]).write(tmp_path)
    (status,) = read_all(tmp_path)
    assert status.distributions == ["layersync-core 1.0"]
    (path,) = tmp_path.glob("layersync_status_*.json")
    earlier = {key: value for key, value in json.loads(path.read_text()).items() if key != "distributions"}
    path.write_text(json.dumps(earlier))
    (status,) = read_all(tmp_path)
    assert status.distributions == []
