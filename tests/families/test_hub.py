"""Configurations of models on the hub: what is asked for, in which order, and every way to get none."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layersync_core.families.hub import CONFIG_FILES, is_hub_name
from tests.hub import Hub, environment, fill_cache, served
from tests.since import since
from tests.startup_cases import DIT, FLUX

NAME = "somebody/some-model"
NOWHERE = "http://127.0.0.1:9"  # the port of the discard service, which nobody runs
PROGRAM = """
import sys
if "without the library" in sys.argv:
    sys.modules["huggingface_hub"] = None
from layersync_core.errors import LayerSyncError
from layersync_core.families.hub import fetch_config
try:
    print(fetch_config(sys.argv[1]))
except LayerSyncError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
finally:
    assert "torch" not in sys.modules
"""


def fetch(
    home: Path, url: str, name: str = NAME, *arguments: str, code: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Fetch a config in a process of its own, since the library reads its variables when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, *arguments],
        capture_output=True,
        text=True,
        env=environment(home, url, **variables),
    )
    assert done.returncode == code, done.stderr
    return done


def fetched(home: Path, url: str, name: str = NAME, **variables: str) -> str:
    """Return the text of a config that can be had."""
    return Path(fetch(home, url, name, **variables).stdout.strip()).read_text()


def refused(home: Path, url: str, name: str = NAME, *arguments: str, **variables: str) -> str:
    """Return the one line that says why a config cannot be had."""
    done = fetch(home, url, name, *arguments, code=2, **variables)
    (line,) = done.stderr.splitlines()
    assert name in line
    assert "Traceback" not in line
    return line


@pytest.mark.parametrize("name", ["black-forest-labs/FLUX.1-dev", "a/b", "PixArt-alpha/PixArt_Sigma.2", "A1/2"])
def test_names_of_the_hub(name: str) -> None:
    assert is_hub_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "flux", "./a/b", "../a", "/a/b", "/a", "~/a", "a/b/c", "a/", "a/b.json", "a\\b", "a/ b", "a/b\n", "a/..", "."],
)
def test_what_is_no_name_of_the_hub(name: str) -> None:
    assert not is_hub_name(name)


class TestFromTheCache:
    @pytest.mark.parametrize("file", CONFIG_FILES)
    def test_without_any_request(self, file: str, tmp_path: Path) -> None:
        fill_cache(tmp_path, NAME, {file: json.dumps(DIT)})
        with served(Hub({NAME: {file: "other"}})) as hub:
            assert json.loads(fetched(tmp_path, hub.url)) == DIT
            assert hub.asked == []

    def test_in_the_order_of_local_folders(self, tmp_path: Path) -> None:
        for number in range(len(CONFIG_FILES)):
            home = tmp_path / str(number)
            fill_cache(home, NAME, {file: file for file in CONFIG_FILES[number:]})
            assert fetched(home, NOWHERE) == CONFIG_FILES[number]

    def test_offline(self, tmp_path: Path) -> None:
        fill_cache(tmp_path, NAME, {"transformer/config.json": "{}"})
        assert fetched(tmp_path, NOWHERE, HF_HUB_OFFLINE="1") == "{}"

    def test_in_a_folder_of_its_own(self, tmp_path: Path) -> None:
        fill_cache(tmp_path, NAME, {"config.json": "{}"})
        elsewhere = str(tmp_path / "hub")
        assert fetched(tmp_path / "home", NOWHERE, HF_HUB_CACHE=elsewhere) == "{}"


class TestOverTheNetwork:
    def test_of_a_pipeline_nothing_but_the_denoiser_s_config(self, tmp_path: Path) -> None:
        files = {
            "model_index.json": json.dumps({"_class_name": "FluxPipeline"}),
            "text_encoder/config.json": "{}",
            "transformer/config.json": json.dumps(FLUX),
            "transformer/diffusion_pytorch_model.safetensors": "weights",
        }
        with served(Hub({NAME: files})) as hub:
            assert json.loads(fetched(tmp_path, hub.url)) == FLUX
            assert {request.removeprefix(f"HEAD {NAME}/") for request in hub.asked if "HEAD" in request} == {
                "config.json",
                "transformer/config.json",
            }
            assert [request for request in hub.asked if "HEAD" not in request] == [
                f"GET {NAME}/transformer/config.json"
            ]
            asked = list(hub.asked)
            assert json.loads(fetched(tmp_path, hub.url)) == FLUX  # now from the cache
            assert hub.asked == asked

    @pytest.mark.parametrize("file", CONFIG_FILES)
    def test_each_place(self, file: str, tmp_path: Path) -> None:
        with served(Hub({NAME: {file: json.dumps(DIT)}})) as hub:
            assert json.loads(fetched(tmp_path, hub.url)) == DIT
            assert not {request for request in hub.asked if request.split(f"{NAME}/")[1] not in CONFIG_FILES}


class TestWithoutAConfig:
    def test_a_wrong_name(self, tmp_path: Path) -> None:
        with served(Hub({NAME: {"config.json": "{}"}})) as hub:
            line = refused(tmp_path, hub.url, "somebody/some-modle")
            assert hub.asked == ["HEAD somebody/some-modle/config.json"]
        assert "no such model" in line
        assert "hf auth login" in line
        assert "local path" in line

    @pytest.mark.parametrize("name", ["somebody/some--model", "some..body/model", "somebody/" + "x" * 200])
    def test_a_name_that_the_hub_does_not_allow(self, name: str, tmp_path: Path) -> None:
        with served(Hub()) as hub:
            assert "nor a possible name of a model on the hub" in refused(tmp_path, hub.url, name)
            assert hub.asked == []

    def test_a_gated_repository(self, tmp_path: Path) -> None:
        files = {"transformer/config.json": "{}"}
        with served(Hub({NAME: files}, gated=frozenset({NAME}))) as hub:
            line = refused(tmp_path, hub.url)
            assert f"{hub.url}/{NAME}" in line
        assert "gated" in line
        assert "hf auth login" in line

    def test_a_repository_without_one(self, tmp_path: Path) -> None:
        with served(Hub({NAME: {"README.md": "", "text_encoder/config.json": "{}"}})) as hub:
            line = refused(tmp_path, hub.url)
        for file in CONFIG_FILES:
            assert file in line

    @since("huggingface-hub", "1", "it asks again for a while")
    @pytest.mark.parametrize(
        ("status", "says"),
        [(500, "later"), (503, "later"), (429, "later"), (403, "hf auth login"), (404, "check the name")],
    )
    def test_a_server_that_answers_with_an_error(self, status: int, says: str, tmp_path: Path) -> None:
        with served(Hub(status=status)) as hub:
            line = refused(tmp_path, hub.url)
            assert len(hub.asked) == 1
        assert f"{hub.url} answers {status}" in line
        assert says in line

    @since("huggingface-hub", "1", "it asks again for a while")
    def test_nobody_there(self, tmp_path: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # and does not listen
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            line = refused(tmp_path, url)
        assert f"{url} cannot be reached" in line
        assert "refused" in line
        assert "check the network" in line

    @since("huggingface-hub", "1", "it asks again for a while")
    def test_a_server_that_hangs(self, tmp_path: Path) -> None:
        with served(Hub({NAME: {"config.json": "{}"}}, hangs=60.0)) as hub:
            began = time.monotonic()
            line = refused(tmp_path, hub.url, HF_HUB_ETAG_TIMEOUT="1")
            assert time.monotonic() - began < 40
            assert len(hub.asked) == 1
        assert "cannot be reached" in line

    def test_offline(self, tmp_path: Path) -> None:
        with served(Hub({NAME: {"config.json": "{}"}})) as hub:
            line = refused(tmp_path, hub.url, HF_HUB_OFFLINE="1")
            assert hub.asked == []
        assert "HF_HUB_OFFLINE" in line
        assert str(tmp_path / "hub") in line

    def test_no_library(self, tmp_path: Path) -> None:
        assert "pip install huggingface_hub" in refused(tmp_path, NOWHERE, NAME, "without the library")

    def test_a_cache_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "hub").write_text("a file where the cache should be")
        with served(Hub({NAME: {"config.json": "{}"}})) as hub:
            line = refused(tmp_path, hub.url)
        assert "the cache cannot be written" in line
        assert str(tmp_path / "hub") in line
