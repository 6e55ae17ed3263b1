"""Errors of the program are shown as without us, and ours in one line."""

from __future__ import annotations

import sys
import traceback
import warnings
from types import SimpleNamespace

import pytest

from layersync_core import replacing
from layersync_core.errors import LayerSyncError, LayerSyncWarning
from layersync_core.run.showing import one_line_warnings, show_as_without_us
from tests.run.inside import Launch
from tests.run.processes import RUN, Script, python, run, without_ours


def test_an_error_of_ours_is_one_line(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    launch()
    sys.excepthook(LayerSyncError, LayerSyncError("told in\none line"), None)
    assert capsys.readouterr().err == "layersync: error: told in one line\n"


@pytest.mark.parametrize(("rank", "said"), [("0", "layersync: warning: of ours\n"), ("1", "")])
def test_a_warning_of_ours_is_said_on_one_rank_and_others_are_shown(
    rank: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn_twice() -> None:
        warnings.warn("of a library", FutureWarning, stacklevel=1)
        warnings.warn("of ours", LayerSyncWarning, stacklevel=1)

    monkeypatch.setenv("RANK", rank)
    with pytest.warns(FutureWarning, match="of a library") as shown, one_line_warnings():
        warn_twice()
    assert [warning.category for warning in shown] == [FutureWarning]
    assert capsys.readouterr().err == said


def through_us(error: Exception) -> Exception:
    """Return an error that was raised through one of LayerSync's frames."""

    def fail() -> None:
        raise error

    owner = SimpleNamespace(fail=fail)
    replacing.wrap_once(owner, "fail", lambda original: original())
    try:
        owner.fail()
    except Exception as caught:
        return caught
    raise AssertionError


def files_of(error: BaseException | None) -> list[str]:
    assert error is not None
    return [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
def test_frames_of_ours_are_left_out_of_an_error_and_of_what_it_came_from(link: str) -> None:
    error, origin = through_us(ValueError("shown")), through_us(KeyError("origin"))
    setattr(error, link, origin)
    origin.__context__ = error  # which must not be an endless chain
    ours = replacing.__file__
    assert all(ours in files_of(it) for it in (error, origin))
    show_as_without_us(error)
    for it in (error, origin):
        # The program's own frames, and none of LayerSync's between them.
        assert files_of(it) == [__file__] * 3


RAISE = """
import torch, tiny_dit

def outer():
    try:
        tiny_dit.train(tiny_dit.build())
        1 / 0
    except ZeroDivisionError as error:
        raise ValueError("in the script: été") from error

outer()
"""


@pytest.mark.slow
def test_an_error_of_the_script_is_shown_as_without_us(script: Script) -> None:
    words = python(script(RAISE))
    plain, ours = run(words, 1), run([*RUN, *words], 1)
    assert without_ours(ours.stderr) == plain.stderr
    assert plain.stderr.startswith("Traceback")
    assert plain.stderr.endswith("ValueError: in the script: été\n")


RAISE_INSIDE = """
import traceback, torch, tiny_dit

def fail(*_):
    raise RuntimeError("of the program")

model = tiny_dit.build()
tiny_dit.train(model)
optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
for call in (
    lambda: model(torch.ones(1, 2, 8, 8), torch.ones(1)),
    lambda: tiny_dit.DiT(depth=None),
):
    try:
        call()
    except Exception:
        print(traceback.format_exc())
"""


@pytest.mark.slow
def test_errors_inside_torch_show_nothing_of_ours(script: Script) -> None:
    done = run([*RUN, *python(script(RAISE_INSIDE))])
    assert done.stdout.count("Traceback") == 2
    assert "layersync_core" not in done.stdout


# When the program calls through LayerSync, its errors pass through one of LayerSync's frames, which isn't shown.
RAISE_IN_CALL = """
import torch, tiny_dit

def fail(*_):
    raise RuntimeError("of the program")

tiny_dit.train(tiny_dit.build())
parameter = torch.ones(1, requires_grad=True)
"""
CALLS = {
    "backward": "parameter.register_hook(fail); parameter.sum().backward()",
    "closure": "torch.optim.SGD([parameter], lr=0.1).step(fail)",
}


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_error_in_a_call_of_ours_is_shown_as_without_us(script: Script, call: str) -> None:
    words = python(script(RAISE_IN_CALL + call))
    plain, ours = run(words, 1), run([*RUN, *words], 1)
    assert without_ours(ours.stderr) == plain.stderr
