"""The command: it prints its address, answers quickly, and ends on Ctrl-C."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from layersync_core.cli import main

COMMAND = [sys.executable, "-m", "layersync_core", "webui"]


def start(*flags, **more):
    return subprocess.Popen(
        [*COMMAND, *map(str, flags)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def address_of(process):
    return next(line.strip() for line in process.stdout if line.startswith("http"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--runs", "/no/such/folder"], "is not a folder"),
        (["--port", "x"], "port"),
        (["--port", "70000"], "port"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["--nothing", "1"], "nothing"),
    ],
)
def test_what_cannot_work_is_reported_in_one_line(flags, said, capsys):
    assert main(["webui", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_port_that_is_taken_is_reported(runs, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["webui", "--runs", str(runs), "--port", str(port)]) == 2
    assert f"port {port}" in (error := capsys.readouterr().err)
    assert "--port" in error


@pytest.mark.slow
def test_without_flags_it_shows_this_folder_and_takes_a_free_port(runs):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8765))
            taken.listen()
        except OSError:
            pass  # somebody else's page
        with start(cwd=runs) as process:
            lines = [process.stdout.readline() for _ in range(3)]
            assert lines[0] == f"runs below {runs}\n"
            assert lines[1].startswith("http://127.0.0.1:")
            assert ":8765/" not in lines[1]
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=240)
            assert (process.returncode, error) == (0, "")


@pytest.mark.slow
def test_another_address_is_warned_of(runs):
    with start("--runs", runs, "--port", 0, "--host", "0.0.0.0") as process:
        assert process.stdout.readline().startswith("runs below")
        assert process.stdout.readline().startswith("http://0.0.0.0:")
        assert process.stdout.readline().startswith("warning: 0.0.0.0 can be reached from other machines")
        process.terminate()


class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


@pytest.mark.slow
def test_the_first_request_is_answered_in_one_and_a_half_times_what_the_imports_take(runs):
    def imports():
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import fastapi, uvicorn, jinja2"], check=True)
        return time.perf_counter() - started

    def answer():
        started = time.perf_counter()
        with start("--runs", runs, "--port", 0) as process:
            with pytest.raises(urllib.error.HTTPError, match="303"):
                urllib.request.build_opener(Stay).open(address_of(process), timeout=60)
            took = time.perf_counter() - started
            process.terminate()
            return took

    imports(), answer()  # files that are read for the first time
    # The best time of each, since other load on the machine doesn't count.
    pairs = [(imports(), answer()) for _ in range(5)]
    assert min(took for _, took in pairs) < 1.5 * min(took for took, _ in pairs)


@pytest.mark.slow
def test_serving_imports_nothing_heavy(runs):
    code = (
        "import sys; from layersync_core.cli import main; import layersync_plugin_webui.serve as serve;"
        "import uvicorn; uvicorn.Server.run = lambda *_, **__: None;"
        f"assert main(['webui', '--runs', {str(runs)!r}, '--port', '0']) == 0;"
        "heavy = {'torch', 'numpy', 'tensorboard', 'diffusers', 'accelerate', 'matplotlib'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
