"""The helper process: it may hang, die and print, and the page goes on."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from layersync_plugin_webui.training.worker import Worker, WorkerError

CHILD = """
import json, os, sys, time
for line in sys.stdin:
    asked = json.loads(line)["ask"]
    if asked == "hang":
        time.sleep(60)
    if asked == "die":
        print("Traceback: boom\\nthe last words", file=sys.stderr)
        os._exit(3)
    if asked == "die silently":
        os.kill(os.getpid(), 9)
    print(json.dumps({"error": "said so"} if asked == "fail" else {"answer": {"pid": os.getpid()}}), flush=True)
"""


@pytest.fixture
def worker():
    found = Worker([sys.executable, "-c", CHILD], patience=3.0)
    yield found
    found.close()


def test_one_process_answers_until_it_breaks(worker):
    first = worker.ask("x")
    assert worker.ask("x") == first
    with pytest.raises(WorkerError, match="said so"):
        worker.ask("fail")
    assert worker.ask("x") == first
    with pytest.raises(WorkerError, match="ended: the last words"):
        worker.ask("die")
    second = worker.ask("x")
    assert second != first
    with pytest.raises(WorkerError, match="exit code -9"):
        worker.ask("die silently")
    assert worker.ask("x") not in (first, second)


def test_one_that_hangs_is_ended(worker):
    first = worker.ask("x")["pid"]
    began = time.monotonic()
    with pytest.raises(WorkerError, match="hangs"):
        worker.ask("hang")
    assert time.monotonic() - began < 30
    assert worker.ask("x")["pid"] != first


def test_a_command_that_cannot_be_started_is_reported():
    with pytest.raises(WorkerError, match="cannot be started"):
        Worker(["/there/is/none"]).ask("fields")


def test_it_ends_with_the_page():
    code = (
        "import sys; from layersync_plugin_webui.training.worker import Worker;"
        "worker = Worker(); worker.fields(); print(worker._process._child.pid, flush=True); import os; os._exit(0)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/stat") if _is_there(pid) else open("/dev/null") as file:
            if file.read().rpartition(")")[2].split()[:1] in ([], ["Z"]):
                return
        time.sleep(0.1)
    raise AssertionError("it is still there")


def _is_there(pid):
    try:
        with open(f"/proc/{pid}/stat"):
            return True
    except OSError:
        return False


@pytest.mark.slow
def test_what_is_asked_of_the_real_one():
    worker = Worker()
    try:
        assert worker.fields()["losses"][0]["name"] == "LayerSyncConfig"
        found = worker.ask("model", way="run", model="", family="flux")
        assert (found["family"], found["blocks"][0]["path"]) == ("flux", "transformer_blocks.0")
        with pytest.raises(WorkerError, match=r"does not support Kolors .* a UNet with a ChatGLM"):
            worker.ask("model", way="run", model="", family="kolors")
        said = worker.ask("check", way="train", settings={"layersync_student_block": "99"}, model="", family="")
        assert "could not find layer 99" in said["error"]
    finally:
        worker.close()


@pytest.mark.slow
def test_the_page_itself_imports_no_torch_while_the_process_does(runs):
    code = f"""
import sys
from pathlib import Path
from starlette.testclient import TestClient
from layersync_plugin_webui.app import make_app
from layersync_plugin_webui.guard import Gate
gate = Gate("127.0.0.1", 8765)
with TestClient(make_app(Path({str(runs)!r}), gate), base_url="http://127.0.0.1:8765") as client:
    client.get("/?token=" + gate.token)
    assert client.get("/training").status_code == 200
    form = {{"Origin": "http://127.0.0.1:8765", "Content-Type": "application/x-www-form-urlencoded"}}
    found = client.post("/training/check", content="layersync_student_block=99", headers=form).json()
    assert "could not find layer 99" in found["errors"][0]["text"], found
    assert found["errors"][0]["key"] == "layersync_student_block"
    assert "8 blocks" in client.post("/training/model", content="", headers=form).text
print(sorted({{"torch", "numpy", "diffusers", "babel"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
