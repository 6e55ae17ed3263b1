"""Programs that a page starts: they live on without it, are stopped and killed, and nothing else is."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from layersync_core import ASKED_FILE, LOG_FILE, PROCESS_FILE, ConfigError, LayerSyncError, ProcessRecord, read_process
from layersync_plugin_webui.app import make_app
from layersync_plugin_webui.config import WebuiConfig
from layersync_plugin_webui.guard import Gate
from layersync_plugin_webui.jobs import Jobs
from layersync_plugin_webui.jobs import launching as launching_module
from plugins.webui.tests.folders import add_rows, id_of
from plugins.webui.tests.test_guard import OTHERS
from plugins.webui.tests.working import FORM, LAYERSYNC, end, lives, log_of, run_of, start_waiting, text_of, wait_for


@pytest.fixture
def jobs(runs):
    yield Jobs(runs)
    end(runs)


def page_of(reader, runs, folder):
    return text_of(reader.get(f"/runs/{id_of(runs, folder)}/live").text)


def test_a_command_runs_where_and_as_requested(jobs, runs, reader, tmp_path):
    (tmp_path / "place").mkdir()
    folder = start_waiting(
        jobs, tmp_path / "place", more="--a 'two words' $HOME ~/x", variables={"MY_TOKEN": "hunter22-long"}
    )
    assert folder == runs / "own"
    first, *_rest = log_of(folder).splitlines()
    assert first.startswith("$ layersync run --layersync_enabled true --layersync_student_block 1 ")
    assert (
        f"--layersync_status_dir {folder} -- {sys.executable} waits.py --a 'two words' '$HOME' {Path.home()}/x" in first
    )
    assert f"cwd {tmp_path / 'place'} words ['--a', 'two words', '$HOME', '{Path.home()}/x']" in log_of(folder)
    assert f"on the path {Path(sys.prefix) / 'bin'}" in log_of(folder)
    assert "stdin ''" in log_of(folder)
    assert (folder / LOG_FILE).stat().st_mode & 0o777 == 0o600
    found = read_process(folder)
    assert (found.state, found.kind) == ("running", "run")
    assert all(os.getsid(pid) == found.pids[0] != os.getsid(0) for pid in found.pids)
    # The value is in the process, and nowhere else.
    assert "secret hunter22-long" in log_of(folder), "the program itself printed it"
    others = [path for path in folder.rglob("*") if path.is_file() and path.name != LOG_FILE]
    assert others
    assert not [path for path in others if b"hunter22-long" in path.read_bytes()]
    for pid in found.pids:
        assert b"hunter22" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert "hunter22" not in repr(jobs)
    masked = jobs.masked(run_of(runs, folder), log_of(folder))
    assert "secret ••••" in masked
    assert "hunter22" not in masked


def test_the_page_masks_values_in_logs_and_facts(reader, runs, tmp_path, monkeypatch):
    jobs = reader.app._app._app.state.jobs
    folder = start_waiting(jobs, tmp_path, variables={"MY_TOKEN": "hunter22-long"})
    try:
        (folder / "run.json").write_text(json.dumps({"family": "hunter22-long"}))
        page = reader.get(f"/runs/{id_of(runs, folder)}").text
        assert "secret ••••" in page
        assert "hunter22" not in page
    finally:
        end(runs)


def test_stop_is_one_interrupt_however_many_ask_and_a_second_click_kills(jobs, runs, reader, tmp_path):
    folder = start_waiting(jobs, tmp_path, more="--stubborn")
    id, another = id_of(runs, folder), Jobs(runs)
    assert "Stop" in page_of(reader, runs, folder)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(reader.post, f"/runs/{id}/stop", headers=FORM) for _ in range(3)]
        asked.append(pool.submit(another.stop, run_of(runs, folder)))
        assert [answer.result().status_code for answer in asked[:3]] == [303] * 3
        asked[3].result()
    assert reader.post(f"/runs/{id}/kill", headers=FORM).status_code == 303, "a double click is one"
    time.sleep(1)
    assert log_of(folder).count("interrupted") == 1
    assert read_process(folder).state == "running"
    # A page that was started anew knows as much.
    for page in (reader.get(f"/runs/{id}").text, page_of(reader, runs, folder)):
        assert "Stopping… kill now" in page
        assert f"/runs/{id}/stop" not in page
    pids = read_process(folder).pids
    assert reader.post(f"/runs/{id}/kill", headers=FORM).status_code == 303
    wait_for(lambda: read_process(folder).state == "killed")
    assert not any(lives(pid) for pid in pids)
    assert not (folder / ASKED_FILE).exists()
    assert "Resume" not in page_of(reader, runs, folder)


def test_stop_where_no_note_can_be_written(jobs, runs, tmp_path, monkeypatch):
    folder = start_waiting(jobs, tmp_path, more="--stubborn")
    real = os.open

    def full(path, flags, *more, **rest):
        if Path(os.fspath(path)).name == ASKED_FILE and flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, flags, *more, **rest)

    monkeypatch.setattr(os, "open", full)
    for _ in range(2):
        jobs.stop(run_of(runs, folder))
    assert jobs.buttons(run_of(runs, folder)).stopping
    time.sleep(1)
    assert log_of(folder).count("interrupted") == 1


def test_a_run_that_obeys_has_stopped(jobs, runs, reader, tmp_path):
    folder = start_waiting(jobs, tmp_path)
    jobs.stop(run_of(runs, folder))
    wait_for(lambda: read_process(folder).state == "stopped")
    assert log_of(folder).count("interrupted") == 1
    with pytest.raises(LayerSyncError, match="is not running any more"):
        jobs.stop(run_of(runs, folder))
    assert reader.post(f"/runs/{id_of(runs, folder)}/stop", headers=FORM).status_code == 409


def test_a_run_killed_with_9_shows_as_ended_within_five_seconds(jobs, runs, reader, tmp_path):
    folder = start_waiting(jobs, tmp_path)
    pids = read_process(folder).pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    while "Ended" not in page_of(reader, runs, folder):
        assert time.monotonic() - killed < 5
    wait_for(lambda: "Ended: killed" in page_of(reader, runs, folder))
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids[:1]), "it was reaped"


def test_a_run_whose_last_process_dies_later_than_its_first_was_killed_all_the_same(jobs, runs, reader, tmp_path):
    folder = start_waiting(jobs, tmp_path)
    first, *others = read_process(folder).pids
    assert others
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not lives(first))
    time.sleep(0.5)
    assert "Running" in page_of(reader, runs, folder)
    for pid in others:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: "Ended: killed" in page_of(reader, runs, folder))


START = """
import sys, time
from pathlib import Path
from layersync_plugin_webui.jobs import Jobs
from plugins.webui.tests.working import start_waiting
start_waiting(Jobs(Path(sys.argv[1])), Path(sys.argv[2]))
print("started", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_runs_live_on_when_the_page_ends_and_another_page_stops_them(runs, reader, tmp_path, how):
    command = [sys.executable, "-c", START, str(runs), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True) as page:
        assert page.stdout.readline() == b"started\n"
        os.killpg(page.pid, how)
        page.wait(10)
    folder = runs / "own"
    try:
        time.sleep(0.5)
        assert read_process(folder).state == "running"
        assert "interrupted" not in log_of(folder)
        assert reader.post(f"/runs/{id_of(runs, folder)}/stop", headers=FORM).status_code == 303
        wait_for(lambda: read_process(folder).state == "stopped")
    finally:
        end(runs)


def test_a_command_that_does_not_start_says_so_on_its_page(jobs, runs, reader, tmp_path):
    folder = jobs.run("none", "nosuchprogram --x", LAYERSYNC, str(tmp_path), "", {})
    wait_for(lambda: read_process(folder).state == "failed")
    page = page_of(reader, runs, folder)
    assert "Failed exit code 2" in page
    assert "error: no command &#39;nosuchprogram&#39;" in page


def test_what_is_refused_before_it_starts_leaves_nothing(jobs, runs, tmp_path):
    for more in (
        {"command": "python 'x"},
        {"directory": str(tmp_path / "nothing")},
        {"environment": str(tmp_path)},
        {"variables": {"A B": "x"}},
        {"settings": {"layersync_pairs": {1}}},
    ):
        given = {"command": "true", "settings": LAYERSYNC, "directory": "", "environment": "", "variables": {}} | more
        with pytest.raises(ConfigError):
            jobs.run("mine", **given)
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize("size", [0, 20])
def test_a_full_disk_is_one_line_and_leaves_nothing(jobs, runs, size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(ConfigError) as told:
            jobs.run("mine", "true", LAYERSYNC, "", "", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(told.value)
    assert list(runs.iterdir()) == []


def test_a_record_that_cannot_be_written_leaves_nothing(jobs, runs, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("layersync_core.process_record.replace_file", full)
    with pytest.raises(ConfigError, match="so nothing was started; make room"):
        jobs.run("mine", "true", LAYERSYNC, "", "", {})
    assert list(runs.iterdir()) == []


def test_a_process_that_cannot_be_started_leaves_nothing(jobs, runs, monkeypatch):
    def fail(*arguments, **more):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(launching_module.subprocess, "Popen", fail)
    with pytest.raises(ConfigError, match="Cannot allocate memory"):
        jobs.run("mine", "true", LAYERSYNC, "", "", {})
    assert list(runs.iterdir()) == []


def test_a_forged_record_moves_nobody(reader, runs, tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    folder = runs / "hostile"
    folder.mkdir()
    add_rows(folder, 1)
    try:
        for pid in (other.pid, 1, os.getpid(), os.getppid()):
            ProcessRecord(folder, "run").begin(beat=False, pid=pid)
            for act in ("stop", "kill"):
                answer = reader.post(f"/runs/{id_of(runs, folder)}/{act}", headers=FORM)
                assert answer.status_code == 409
                assert "was not signalled" in answer.text
            assert not (folder / ASKED_FILE).exists()
        time.sleep(0.2)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_note_of_a_process_before_does_not_count(jobs, runs, tmp_path):
    folder = start_waiting(jobs, tmp_path)
    outside = tmp_path / "outside"
    outside.write_text("mine")
    for make in (lambda path: path.write_text("1 2"), lambda path: path.symlink_to(outside)):
        (folder / ASKED_FILE).unlink(missing_ok=True)
        make(folder / ASKED_FILE)
        assert not jobs.buttons(run_of(runs, folder)).stopping
    jobs.stop(run_of(runs, folder))
    wait_for(lambda: read_process(folder).state == "stopped")
    assert outside.read_text() == "mine"


@pytest.mark.parametrize("act", ["stop", "kill", "resume"])
@pytest.mark.parametrize("headers", [*OTHERS, {}, {"sec-fetch-site": "none"}])
def test_another_site_changes_nothing(reader, runs, make_run, act, headers):
    answer = reader.post(f"/runs/{id_of(runs, make_run())}/{act}", headers=headers)
    assert answer.status_code == 403


@pytest.mark.parametrize("act", ["stop", "kill", "resume"])
def test_changes_need_the_cookie_a_form_and_a_run(stranger, gate, runs, make_run, act):
    id = id_of(runs, make_run())
    assert stranger.post(f"/runs/{id}/{act}", headers=FORM).status_code == 403
    stranger.get(f"/?token={gate.token}")
    assert stranger.get(f"/runs/{id}/{act}").status_code == 405
    assert stranger.post(f"/runs/nothing/{act}", headers=FORM).status_code == 404
    answer = stranger.post(f"/runs/{id}/{act}", headers=FORM)
    assert answer.status_code == 409
    fragment = stranger.post(f"/runs/{id}/{act}", headers={**FORM, "hx-request": "true"})
    assert fragment.status_code == 200
    assert 'id="told"' in fragment.text


def test_where_others_may_reach_the_page_a_second_flag_is_needed(runs, tmp_path):
    gate = Gate("0.0.0.0", 8765, loopback=False)
    folder = start_waiting(Jobs(runs), tmp_path)
    try:
        with TestClient(make_app(runs, gate), base_url="http://127.0.0.1:8765", follow_redirects=False) as client:
            client.get(f"/?token={gate.token}")
            id = id_of(runs, folder)
            assert "--allow_commands" in client.get(f"/runs/{id}").text
            assert "<button>" not in client.get(f"/runs/{id}/live").text
            for act in ("stop", "kill", "resume"):
                answer = client.post(f"/runs/{id}/{act}", headers=FORM)
                assert answer.status_code == 409
                assert "--allow_commands" in answer.text
        jobs = Jobs(runs, may_start=False)
        for start in (lambda: jobs.train("a", {}), lambda: jobs.run("a", "true", LAYERSYNC, "", "", {})):
            with pytest.raises(ConfigError, match="allow_commands"):
                start()
        assert not jobs.may_start
        assert read_process(folder).state == "running"
        with TestClient(make_app(runs, gate, True), base_url="http://127.0.0.1:8765") as client:
            client.get(f"/?token={gate.token}")
            assert "Stop" in client.get(f"/runs/{id}/live").text
    finally:
        end(runs)
    assert WebuiConfig().allow_commands is False


def test_without_the_trainer_it_says_what_to_install(jobs, runs, monkeypatch):
    monkeypatch.setattr("layersync_plugin_webui.jobs.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install layersync-plugin-trainer"):
        jobs.train("mine", {})
    assert list(runs.iterdir()) == []
    assert jobs.why_not() is None
    assert not (runs / PROCESS_FILE).exists()


def test_a_folder_that_is_a_run_gets_none_below_it(jobs, runs):
    add_rows(runs, 1)
    with pytest.raises(ConfigError, match="itself a run"):
        jobs.train("mine", {})


@pytest.mark.parametrize(
    "content", ["pipe", "{}", "[" * 10_000, '{"format": "layersync-checkpoint-1", "step": 1e999, "files": {"": 1}}']
)
def test_whatever_is_in_a_checkpoint_its_page_is_shown(reader, runs, content):
    folder = runs / "hostile"
    (folder / "checkpoint-1").mkdir(parents=True)
    record = ProcessRecord(folder, "train")
    record.begin(beat=False)
    record.end(1)
    for name in ("manifest.json", "trainer_state.json"):
        if content == "pipe":
            os.mkfifo(folder / "checkpoint-1" / name)
        else:
            (folder / "checkpoint-1" / name).write_text(content)
    assert "Resume" not in page_of(reader, runs, folder)
    assert reader.post(f"/runs/{id_of(runs, folder)}/resume", headers=FORM).status_code == 409


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_log_of_somebody_else_is_not_written(runs, tmp_path, kind):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    os.mkfifo(runs / LOG_FILE) if kind == "pipe" else (runs / LOG_FILE).symlink_to(outside)
    program = launching_module.Program("run", sys.executable, ["layersync", "--version"], os.environ)
    with pytest.raises(ConfigError):
        launching_module.launch(program, runs)
    assert outside.read_text() == "mine"
    assert not (runs / PROCESS_FILE).exists()
