"""Signals that arrive when a run is already exiting."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from layersync_plugin_trainer.stopping import SIGNALS, Stop


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("later", SIGNALS)
def test_a_signal_that_a_launcher_passes_on_late_interrupts_no_process_that_is_leaving(later):
    with Stop() as stop:
        stop._ranks = 2  # as in a run of two processes
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested()
    os.kill(os.getpid(), later)  # neither KeyboardInterrupt nor death


def test_a_signal_that_comes_while_processes_agree_is_obeyed_after_the_next_step(monkeypatch):
    came = []

    def interrupted(*_, **__):
        if not came:
            came.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(torch.distributed, "all_reduce", interrupted)
    with Stop() as stop:
        stop._ranks, stop._group = 2, object()
        assert [stop.requested(), stop.requested()] == [False, True]
        assert stop.exit_code == 130


def test_a_lone_process_has_its_own_handlers_again():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests in a shell's background lack
    with Stop():
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_processes_that_were_not_stopped_have_theirs_again():
    before = signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        stop._ranks = 2
    assert signal.getsignal(signal.SIGINT) is before
