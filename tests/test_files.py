"""Files of settings: JSON, read strictly. LayerSync's own files: private, and not written through links."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layersync_core import ConfigError, LayerSyncConfig
from layersync_core.files import append_to_file, replace_file
from tests.configs import GOOD, ON, STUDENT, settings_of


class TestFromJson:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "settings.json"

    def complaint(self, path: Path | str) -> str:
        with pytest.raises(ConfigError) as error:
            LayerSyncConfig.from_json(path)
        message = str(error.value)
        assert len(message.splitlines()) == 1
        return message

    @pytest.mark.parametrize("as_type", [str, Path])
    def test_reads_what_from_mapping_reads(self, file: Path, as_type: Any) -> None:
        file.write_text(json.dumps({"--loss-type": "layer_sync", "--encoder-depth": "8", "lr": 1e-4, "x": None}))
        assert settings_of(LayerSyncConfig.from_json(as_type(file))) == ON | {STUDENT: 8}

    def test_a_byte_order_mark(self, file: Path) -> None:
        file.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
        assert settings_of(LayerSyncConfig.from_json(file)) == GOOD

    def test_missing(self, file: Path) -> None:
        assert self.complaint(file) == f"cannot read {file}: No such file or directory"

    def test_a_directory(self, tmp_path: Path) -> None:
        assert str(tmp_path) in self.complaint(tmp_path)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b'{"layersync_enabled": true,',
            b"{'a': 1}",
            b"{} {}",
            b"\xff\xfe{}",
            b"layersync_enabled: true",
            b"[" * 100000,
            b'{"layersync_student_block": ' + b"9" * 5000 + b"}",
        ],
        ids=str,
    )
    def test_torn(self, file: Path, content: bytes) -> None:
        file.write_bytes(content)
        message = self.complaint(file)
        assert str(file) in message
        assert "JSON" in message

    @pytest.mark.parametrize("content", ["[]", "3", "null", '"layersync_enabled"', "true"])
    def test_no_object(self, file: Path, content: str) -> None:
        file.write_text(content)
        message = self.complaint(file)
        assert str(file) in message
        assert "object" in message

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1", "0"])
    def test_weights_that_json_can_hold(self, file: Path, number: str) -> None:
        text = json.dumps(GOOD | {"layersync_lambda": 12345}).replace("12345", number)
        file.write_text(text)
        assert "finite and greater than 0" in self.complaint(file)

    @pytest.mark.parametrize(
        ("content", "key"),
        [
            ('{"layersync_enabled": true, "lr": 1, "layersync_enabled": false}', "layersync_enabled"),
            ('{"lr": 1, "lr": 1}', "lr"),
            ('{"a": [{"b": 1, "b": 2}]}', "b"),
        ],
    )
    def test_a_key_twice(self, file: Path, content: str, key: str) -> None:
        file.write_text(content)
        message = self.complaint(file)
        assert str(file) in message
        assert f"the key {key!r} twice" in message

    def test_a_line_break_in_the_path(self, tmp_path: Path) -> None:
        self.complaint(tmp_path / "a\nb.json")


class TestOurs:
    @pytest.fixture(autouse=True)
    def open_to_all(self) -> Iterator[None]:
        before = os.umask(0)
        yield
        os.umask(before)

    def test_what_is_appended_stands_after_what_is_there(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        for line in ("one\n", "two\n"):
            append_to_file(path, line)
        assert path.read_text() == "one\ntwo\n"
        assert path.stat().st_mode & 0o777 == 0o644

    def test_a_file_that_is_replaced_is_for_this_user_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "settings.json"
        path.write_text("of an earlier run, and longer")
        path.with_suffix(".tmp").write_text("left behind")
        replace_file(path, "new")
        assert path.read_text() == "new"
        assert path.stat().st_mode & 0o777 == 0o600
        assert list(tmp_path.iterdir()) == [path]

    def test_nothing_is_written_through_a_link(self, tmp_path: Path) -> None:
        mine, link = tmp_path / "mine", tmp_path / "link"
        mine.write_text("precious")
        for path in (link, link.with_suffix(".tmp")):
            path.symlink_to(mine)
        with pytest.raises(OSError, match="link"):
            append_to_file(link, "ours")
        replace_file(link, "ours")
        assert (mine.read_text(), link.read_text()) == ("precious", "ours")
        assert not link.is_symlink()
