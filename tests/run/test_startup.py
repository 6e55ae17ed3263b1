"""The start-up hook of every Python below the command: it reaches them all and is otherwise not seen."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from tests.run.processes import IN_PROCESS, RUN, SUMMARY, Script, python, run, without_ours
from tests.scripts import tiny_dit

pytestmark = pytest.mark.slow


def test_a_python_that_trains_nothing_imports_nothing_for_us() -> None:
    words = [sys.executable, "-c", "import sys; print(*sorted(sys.modules)); sys.exit(3)"]
    plain, ours = (set(run([*start, *words], 3).stdout.split()) for start in ([], RUN))
    assert ours - plain <= {"sitecustomize", "__future__"}
    assert not plain - ours


SITE = "import sys, os; sys.of_the_user = [__name__, __file__, os.environ.get('A_VARIABLE')]\n"
PROBE = """
import sys
print(getattr(sys, "of_the_user", None), getattr(sys.modules.get("sitecustomize"), "__file__", None), sys.path)
sys.exit(3)
"""


@pytest.mark.parametrize(
    "more",
    [
        "",
        "import a_module_that_is_missing",
        "raise ImportError('of something else')",
        "raise ValueError('of the user')",
    ],
)
def test_the_users_sitecustomize_runs_as_without_us(script: Script, tmp_path: Path, more: str) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE + more)
    variables = {"PYTHONPATH": f"{tmp_path / 'site'}:/elsewhere", "A_VARIABLE": "x"}
    words = python(script(PROBE))
    plain, ours = run(words, 3, env=variables), run([*RUN, *words], 3, env=variables)
    assert ours.stdout == plain.stdout
    assert ours.stderr == 2 * plain.stderr  # the command layersync is a Python as well
    assert f"['sitecustomize', '{tmp_path / 'site' / 'sitecustomize.py'}', 'x']" in ours.stdout


@pytest.mark.parametrize("path", ["", ":", "relative:", "/elsewhere::relative"])
def test_the_path_is_as_without_us(path: str, tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import sys; print(sys.path); sys.exit(3)"]
    plain, ours = (run([*start, *words], 3, env={"PYTHONPATH": path}, cwd=tmp_path) for start in ([], RUN))
    assert ours.stdout == plain.stdout


def test_processes_of_processes_are_reached(script: Script) -> None:
    # A shell, and in it a Python that starts another one with an environment of its own making.
    text = "import os, subprocess, sys; subprocess.run([sys.executable, 'inner.py'], env=dict(os.environ), check=True)"
    inner = script("import tiny_dit; tiny_dit.train(tiny_dit.build())", "inner.py")
    outer = script(text)
    command = f"cd {shlex.quote(str(Path(inner).parent))} && {sys.executable} {shlex.quote(outer)}"
    assert f"3 steps {SUMMARY}" in run([*RUN, "sh", "-c", command]).stderr


@pytest.mark.parametrize(
    "first",
    ["from layersync_core import attach", "import layersync_core.capture.hooks", "import layersync_core.testing"],
)
@pytest.mark.parametrize("start", [RUN, IN_PROCESS], ids=["run", "in process"])
def test_a_program_may_import_layersync_before_torch(script: Script, start: list[str], first: str) -> None:
    words = python(script(f"{first}\nimport tiny_dit\ntiny_dit.train(tiny_dit.build())"))
    assert SUMMARY in run([*start, *(words if start is RUN else words[1:])]).stderr


WORKERS = """
import torch, tiny_dit

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, index):
        x, t = tiny_dit.batch(1, seed=index)
        return x[0], t[0]

if __name__ == "__main__":
    loader = torch.utils.data.DataLoader(Images(), 2, num_workers=2, multiprocessing_context="spawn")
    model = tiny_dit.build()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    for x, t in loader:
        optimiser.zero_grad()
        tiny_dit.loss_of(model, x, t).backward()
        optimiser.step()
        print(x.double().sum().item())
"""


def test_spawned_workers_of_a_data_loader_are_undisturbed(script: Script) -> None:
    done = run([*RUN, *python(script(WORKERS))])
    batches = [tiny_dit.batch(1, seed=index)[0].double().sum().item() for index in range(6)]
    assert [float(line) for line in done.stdout.split()] == pytest.approx(
        [sum(batches[:2]), sum(batches[2:4]), sum(batches[4:])]
    )
    assert f"3 steps {SUMMARY}" in done.stderr
    assert without_ours(done.stderr) == ""
