"""How arguments are read."""

from __future__ import annotations

import pytest

from layersync_core.cli.options import normalise


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ("--on", "--on true"),
        ("--on --other", "--on true --other"),
        ("--on false", "--on false"),
        ("--on=false", "--on=false"),
        ("--the-key 3", "--the_key 3"),
        ("--the-key=a-b=c", "--the_key=a-b=c"),
        ("--the-key --on", "--the_key --on true"),
        ("--not-ours x-y", "--not-ours x-y"),
        ("a-b", "a-b"),
        ("", ""),
    ],
)
def test_normalised_arguments(arguments: str, result: str) -> None:
    assert normalise(arguments.split(), {"on"}, {"on", "the_key"}) == result.split()
