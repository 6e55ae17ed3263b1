"""The benchmark of the effect measures what it says; what it finds is in its results, and no test judges that."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.effect import running, training
from benchmarks.effect.arms import ARMS, FULL, PAPER, QUICK, Arm, Job, Scale, plan
from benchmarks.effect.measures import Exam, frechet_distance, linear_cka
from benchmarks.effect.paired import estimate, estimate_ratio, speed_up, speed_up_half_way, steps_to
from benchmarks.effect.report import table, write_report
from benchmarks.effect.results import FILE, Mark, Real, Record, Results, machine
from benchmarks.effect.tasks import TASKS
from layersync_core import ConfigError, LayerSyncWarning
from layersync_plugin_trainer.claiming import claimed

ROOT = Path(__file__).parents[1]
TINY = dataclasses.replace(QUICK, short=1, every=1)
MANY = dataclasses.replace(QUICK, seeds=8, short_seeds=8)

# Paired differences.

losses = st.lists(st.floats(0.1, 10), min_size=2, max_size=12)


def curve(values: Sequence[float]) -> list[tuple[int, float]]:
    return [(10 * (place + 1), value) for place, value in enumerate(values)]


def test_an_interval_is_that_of_a_paired_t_test() -> None:
    from scipy.stats import ttest_1samp

    values = [0.31, 0.12, 0.25, -0.04, 0.2]
    found = estimate(values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(np.mean(values))


def test_one_seed_says_nothing_of_the_spread() -> None:
    assert -1e9 in estimate([3.0])
    assert 1e-9 in estimate_ratio([3.0])
    assert estimate_ratio([3.0]).mean == pytest.approx(3)


def test_ratios_average_geometrically() -> None:
    found = estimate_ratio([0.5, 2.0])
    assert found.mean == pytest.approx(1)
    assert found.low == pytest.approx(1 / found.high)


def test_steps_lie_on_the_line_between_two_points() -> None:
    points = curve([4, 2, 3, 1])
    assert steps_to(points, 5) == 10
    assert steps_to(points, 3) == 15
    assert steps_to(points, 2) == 20
    assert steps_to(points, 1.5) == 37.5
    assert steps_to(points, 0.5) == float("inf")


def test_an_arm_that_learns_twice_as_fast() -> None:
    slow = curve([1 / step for step in range(1, 9)])
    fast = [(step / 2, loss) for step, loss in slow] + [(50, 0.1)]
    assert speed_up(slow, fast) == pytest.approx(2)
    assert speed_up(fast, slow) == pytest.approx(0.5)


def test_a_loss_that_rises_again_is_judged_by_its_best() -> None:
    assert speed_up(curve([3, 1, 2, 2.5]), curve([1, 2, 3, 4])) == 2


def test_the_pace_to_vanillas_loss_at_half_of_its_steps() -> None:
    vanilla = curve([8, 6, 4, 2])  # 6 at step 20 of 40
    assert speed_up_half_way(vanilla, curve([6, 5, 5, 5])) == 2
    assert speed_up_half_way(vanilla, curve([9, 8, 7, 5])) == pytest.approx(20 / 35)
    assert speed_up_half_way(vanilla, curve([9, 8, 8, 7])) == 0.5, "never there counts as there at the end"
    assert speed_up_half_way(vanilla, vanilla) == 1


@given(losses, losses)
def test_a_ratio_turns_round_with_its_sides(one: list[float], other: list[float]) -> None:
    there, back = speed_up(curve(one), curve(other)), speed_up(curve(other), curve(one))
    assert there == pytest.approx(1 / back)
    assert speed_up(curve(one), curve(one)) == 1


# Measures.


def test_the_frechet_distance_is_the_formula_with_a_matrix_root() -> None:
    from scipy.linalg import sqrtm

    draw = np.random.default_rng(0)
    one, two = draw.normal(size=(200, 5)) @ draw.normal(size=(5, 5)), draw.normal(1, 2, size=(300, 5))
    covs = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    expected = np.square(one.mean(0) - two.mean(0)).sum() + np.trace(covs[0] + covs[1] - 2 * sqrtm(covs[0] @ covs[1]))
    assert frechet_distance(one, two) == pytest.approx(expected.real)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(np.pad(one, ((0, 0), (0, 2))), np.pad(two, ((0, 0), (0, 2)))) == pytest.approx(
        expected.real
    ), "features that are always 0 change nothing"


def test_cka_sees_neither_rotation_nor_scale_and_is_the_kernel_formula() -> None:
    one, two = torch.randn(50, 6), torch.randn(50, 9)
    rotation = torch.linalg.qr(torch.randn(6, 6))[0]
    assert linear_cka(one, 3 * one @ rotation + 5) == pytest.approx(1, abs=1e-6)
    centre = torch.eye(50) - 1 / 50
    kernels = [(centre @ value @ value.T @ centre).double() for value in (one, two)]
    expected = (kernels[0] * kernels[1]).sum() / (kernels[0].norm() * kernels[1].norm())
    assert linear_cka(one, two) == pytest.approx(float(expected), rel=1e-4)


@pytest.fixture(name="exam")
def _exam() -> Exam:
    training.exam_of.cache_clear()
    return training.exam_of("digits", TINY, torch.device("cpu"))


def test_the_model_is_not_told_the_class_that_a_probe_looks_for(exam: Exam) -> None:
    model = exam.task.tiny_model()
    samples, labels = exam.data.samples[:8], exam.data.labels[:8]
    one = exam._states(model, samples, labels, 0.2, "probe")
    other = exam._states(model, samples, labels.roll(1), 0.2, "probe")
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_the_judge_knows_digits(exam: Exam) -> None:
    whole = Exam(exam.task, exam.task.data(), exam.adapter, exam.feed, FULL, exam.device)
    judge = whole.judge
    assert judge.accuracy_on_real > 0.9
    assert judge.distance(torch.randn_like(whole.data.held_out)) > 10 * judge.distance_of_real


def test_held_out_digits_are_397_of_1797() -> None:
    data = TASKS["digits"].data()
    assert (len(data.samples), len(data.held_out)) == (1400, 397)


# Trainings.


@pytest.fixture
def curves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of a short training: probes and samples."""
    mark = Mark.model_construct()
    monkeypatch.setattr(Exam, "examine", lambda *_: mark)


def run(arm: str, steps: int = 1, seed: int = 0, task: str = "digits") -> Record:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerSyncWarning)  # of pairs that the paper advises against
        return training.train(Job(task, arm, seed, steps), TINY)


def losses_of(record: Record) -> list[float]:
    return [loss for _, loss in record.curve]


def test_a_training_is_repeatable_and_seeds_differ() -> None:
    one, again, other = run("vanilla"), run("vanilla"), run("vanilla", seed=1)
    assert one.model_copy(update={"seconds": again.seconds}) == again
    assert losses_of(one) != losses_of(other)


@pytest.mark.usefixtures("curves_alone")
def test_arms_share_weights_data_and_noise_and_differ_by_the_term() -> None:
    vanilla, itself, pair, other = run("vanilla"), run("self"), run("pair"), run("swapped")
    assert losses_of(itself) == pytest.approx(losses_of(vanilla), abs=1e-6), "a block with itself gives no gradient"
    assert abs(losses_of(pair)[0] - losses_of(vanilla)[0]) > 1e-6
    assert abs(losses_of(pair)[0] - losses_of(other)[0]) > 1e-6


@pytest.mark.usefixtures("curves_alone")
def test_the_cut_off_is_at_a_third() -> None:
    pair, cut = losses_of(run("pair", 6)), losses_of(run("cut-off", 6))
    assert pair[:2] == cut[:2]
    assert pair[2] != cut[2]


def test_without_stop_gradient_both_blocks_are_pulled(exam: Exam) -> None:
    model = exam.task.tiny_model()
    sync = training.BothWays(model, exam.adapter, PAPER, 0.3)
    batch = training.Batches(exam.data, 0, 4).whole(0)
    kept = {}
    blocks = [model.get_submodule(f"transformer_blocks.{block - 1}") for block in PAPER]
    hooks = [
        block.register_forward_hook(lambda m, a, out, n=n: kept.__setitem__(n, out)) for n, block in enumerate(blocks)
    ]
    exam.feed(model, batch.noisy, batch.time, batch.labels)
    main = model.proj_out_2.weight.square().sum()
    total = sync.apply(main, step=0)
    expected = main - 0.3 * torch.cosine_similarity(kept[0], kept[1], dim=-1).mean()
    assert torch.allclose(total, expected)
    weights = [block.ff.net[2].weight for block in blocks]
    ours = torch.autograd.grad(total, weights, retain_graph=True)
    theirs = torch.autograd.grad(expected, weights)
    for mine, plain in zip(ours, theirs, strict=True):
        assert plain.abs().max() > 0
        assert torch.allclose(mine, plain)
    sync.remove()
    for hook in hooks:
        hook.remove()


def test_a_loss_that_is_no_number_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LEARNING_RATE", 1e30)
    found = run("vanilla", 3)
    assert found.diverged is not None
    assert len(found.curve) == found.diverged - 1
    assert np.isfinite(losses_of(found)).all()
    assert max(found.marks, default=0) < found.diverged


@pytest.mark.parametrize("task", ["faces", "shapes"])
def test_the_other_tasks(task: str) -> None:
    record = run("pair", task=task)
    mark = record.marks[1]
    assert [len(accuracies) for accuracies in mark.probe.values()] == [12, 12]
    assert len(mark.cka) == 12
    assert (mark.accuracy is None) == (task == "shapes")


# The plan and the report.


def test_the_plan() -> None:
    jobs = plan(FULL)
    main = [job for job in jobs if job.steps == 3000]
    assert {(job.arm, job.seed) for job in main} == {(arm, seed) for arm in ("vanilla", "pair") for seed in range(5)}
    others = {(job.task, job.arm) for job in jobs if job.steps == 1000}
    assert others == {("digits", arm) for arm in set(ARMS) - {"vanilla", "pair"}} | {
        (task, arm) for task in ("faces", "shapes") for arm in ("vanilla", "pair")
    }
    assert all(sum(job.task == task and job.arm == arm for job in jobs) == 3 for task, arm in others)
    assert len({job.key for job in jobs}) == len(jobs)


def test_random_pairs_are_others_for_each_seed() -> None:
    arm = ARMS["random"]
    pairs = [arm.pair_of(seed) for seed in range(3)]
    assert pairs == [arm.pair_of(seed) for seed in range(3)]
    assert len(set(pairs)) == 3
    assert all(1 <= student < teacher <= 12 for student, teacher in pairs)
    assert PAPER not in pairs
    assert Arm("x").pair_of(0) == PAPER


def record(arm: str, seed: int, probe: float, steps: int = 4, diverged: int | None = None) -> Record:
    mark = Mark(
        held_out=1.0 - probe,
        probe={"0.2": [probe] * 12, "0.5": [probe / 2] * 12},
        cka=np.full((12, 12), probe).tolist(),
        frechet=2.0,
        accuracy=None,
    )
    seen = [step for step in (2, 4) if step <= steps and step < (diverged or steps + 1)]
    return Record(
        task="digits",
        arm=arm,
        seed=seed,
        steps=steps,
        pair=ARMS[arm].pair_of(seed),
        weight=ARMS[arm].weight,
        curve=[(step, (1.0 - probe) / step) for step in seen],
        marks=dict.fromkeys(seen, mark),
        diverged=diverged,
        real=Real(accuracy=0.97, frechet=0.5),
        seconds=1.0,
        machine={},
    )


def cells(shown: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in shown.splitlines() if line and "---" not in line]


def test_the_table_pairs_seeds_and_marks_what_its_interval_supports(tmp_path: Path) -> None:
    results = Results(tmp_path, MANY)
    for seed, (vanilla, pair) in enumerate([(0.5, 0.61), (0.3, 0.4), (0.4, 0.52)]):
        results.add(record("vanilla", seed, vanilla))
        results.add(record("pair", seed, pair))
    results.add(record("weight-0.5", 1, 0.25, steps=2))
    results.add(record("self", 7, 0.9, steps=2))  # no vanilla arm to compare with
    first, second = (cells(part) for part in table(results).split("\n\n"))
    assert [line[0] for line in first[1:]] == ["digits, 4", "digits", "digits, 4", *["digits, 2"] * 3]
    assert first[1][2:7] == ["3", "0.400", "0.400", "0.200", "0.6000"]
    assert first[2][1:9] == ["held-out samples", *["–"] * 5, "0.50", "0.970"]
    assert first[3][3] == "**+0.110 (+0.085 to +0.135)**"
    assert first[3][7:9] == ["+0.00 (+0.00 to +0.00)", "–"]
    assert first[3][9] == "+0.110 (+0.085 to +0.135)", "the term pulls at the similarity itself"
    assert first[6][3] == "−0.050 (one seed)"
    assert second[1][:4] == ["digits, 2", "weight 0.5", "1", "−0.150 (one seed)"]
    assert len(second) == 2
    assert Results(tmp_path, MANY).records == results.records


def test_differences_that_are_alike_by_chance_support_nothing(tmp_path: Path) -> None:
    results = Results(tmp_path, MANY)
    for seed, vanilla in enumerate((0.9, 0.8, 0.7)):  # differences alike but for rounding
        results.add(record("vanilla", seed, vanilla))
        results.add(record("pair", seed, vanilla + 0.01))
    assert cells(table(results))[3][3] == "+0.010 (+0.010 to +0.010)"


def test_trainings_that_diverged_are_counted(tmp_path: Path) -> None:
    results = Results(tmp_path, MANY)
    results.add(record("vanilla", 0, 0.5))
    results.add(record("pair", 0, 0.6, diverged=4))
    results.add(record("weight-0.5", 0, 0.6, steps=2, diverged=2))
    shown = {(line[0], line[1]): line[2:] for line in cells(table(results).split("\n\n")[0])}
    pair, heavy = ARMS["pair"].title, ARMS["weight-0.5"].title
    assert shown["digits, 4", pair] == ["0 (1 diverged)", *["–"] * 9]
    assert shown["digits, 2", pair][:2] == ["1", "+0.100 (one seed)"], "it came so far"
    assert shown["digits, 2", heavy][0] == "0 (1 diverged)"
    write_report(tmp_path, results)
    again = Results(tmp_path, MANY)
    assert not {"digits/pair/0", "digits/weight-0.5/0"} & {job.key for job in again.missing(plan(MANY))}


@pytest.mark.parametrize("diverged", [2, 4])
def test_a_vanilla_training_that_diverged_leaves_the_seed_out(tmp_path: Path, diverged: int) -> None:
    results = Results(tmp_path, MANY)
    results.add(record("vanilla", 0, 0.5, diverged=diverged))
    results.add(record("pair", 0, 0.6))
    shown = {(line[0], line[1]): line[2] for line in cells(table(results).split("\n\n")[0])}
    pair = ARMS["pair"].title
    assert shown["digits, 4", "vanilla"] == shown["digits, 4", pair] == "0 (1 diverged)"
    assert shown["digits, 2", pair] == ("1" if diverged == 4 else "0 (1 diverged)")
    write_report(tmp_path, results)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": 0.3}, "not this version's 'pair' arm"),
        ({"arm": "other"}, "no task 'digits' with an arm 'other'"),
        ({"seed": 1}, "not what this version trains"),  # no longer the one of its key
        ({"steps": 2}, "not what this version trains"),
        ({"marks": {}}, "not what this version trains"),
        ({"curve": [[4, 0.1]]}, "not what this version trains"),
        ({"diverged": -5}, "not what this version trains"),
        ({"curve": "steep"}, "curve Input should be a valid list"),
        ({"curve": [[2, float("nan")], [4, 0.1]]}, "curve.0.1 Input should be a finite number"),
        ({"mood": "good"}, "mood Extra inputs are not permitted"),
    ],
)
def test_a_training_that_this_version_would_not_make_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    Results(tmp_path, MANY).add(record("pair", 0, 0.6))
    found = json.loads((tmp_path / FILE).read_text())
    found["records"]["digits/pair/0"].update(change)
    (tmp_path / FILE).write_text(json.dumps(found))
    with pytest.raises(ConfigError, match="take that training out of the file") as caught:
        Results(tmp_path, MANY)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_run_writes_to_a_folder_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(ConfigError, match="is in use by process"):
        claimed(tmp_path).__enter__()
    with claimed(tmp_path):
        pass


def test_trainings_of_other_versions_are_named(tmp_path: Path) -> None:
    results = Results(tmp_path, MANY)
    here = machine(torch.device("cpu"))
    results.add(record("vanilla", 0, 0.5).model_copy(update={"machine": here}))
    results.add(record("pair", 0, 0.5).model_copy(update={"machine": {**here, "torch": "1.0"}}))
    assert results.from_elsewhere() == ["digits/pair/0"]


def test_a_training_that_fails_does_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(job: Job, scale: Scale) -> Record:
        if job.arm == "pair":
            raise ZeroDivisionError("a bug")
        return record(job.arm, job.seed, 0.5, job.steps)

    # In threads of this process, where the replacement is seen.
    monkeypatch.setattr(running, "ProcessPoolExecutor", lambda count, **_: ThreadPoolExecutor(count))
    monkeypatch.setattr(running, "train", train)
    monkeypatch.setattr(running, "write_report", lambda *_: 1 / 0)  # a report that fails ends them no more
    results = Results(tmp_path, MANY)
    jobs = [Job("digits", "pair", 0, 4), Job("digits", "vanilla", 0, 4), Job("digits", "self", 0, 2)]
    (failure,) = running.train_all(jobs, results, 1, tmp_path)
    assert "ZeroDivisionError: a bug" in failure
    assert failure.endswith("digits/pair/0 failed")
    assert set(Results(tmp_path, MANY).records) == {"digits/vanilla/0", "digits/self/0"}


def test_a_stop_waits_until_what_is_finished_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(job: Job, scale: Scale) -> Record:
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        return record(job.arm, job.seed, 0.5, job.steps)

    monkeypatch.setattr(running, "ProcessPoolExecutor", lambda count, **_: ThreadPoolExecutor(count))
    monkeypatch.setattr(running, "train", train)
    monkeypatch.setattr(running, "write_report", lambda *_: None)
    before, jobs = signal.getsignal(signal.SIGINT), plan(MANY)
    with pytest.raises(KeyboardInterrupt):
        running.train_all(jobs, Results(tmp_path, MANY), 1, tmp_path)
    assert 0 < len(Results(tmp_path, MANY).records) < len(jobs)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_page_shows_the_table_of_its_results() -> None:
    page = (ROOT / "docs" / "effect.md").read_text()
    shown = page.split("<!-- table -->\n")[1].split("<!-- /table -->")[0]
    assert shown == table(Results(ROOT / "docs" / "effect", FULL))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.effect", *arguments]


def is_gone(group: int) -> bool:
    """Return whether a process group ends within ten seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def environment(first_on_path: Path = ROOT) -> dict[str, str]:
    path = [str(first_on_path), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def test_what_it_refuses(tmp_path: Path) -> None:
    def refusal(*arguments: str, first_on_path: Path = ROOT) -> str:
        done = subprocess.run(
            command("--quick", *arguments), capture_output=True, text=True, cwd=tmp_path, env=environment(first_on_path)
        )
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]

    (tmp_path / "full").mkdir()
    Results(tmp_path / "full", FULL).add(record("vanilla", 0, 0.5))
    before = (tmp_path / "full" / FILE).read_bytes()
    assert "of a run with other settings" in refusal("--output_dir", "full")
    assert (tmp_path / "full" / FILE).read_bytes() == before
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / FILE).write_text('{"scale": ')
    assert "not valid JSON" in refusal("--output_dir", "broken")
    (tmp_path / "file").write_text("")
    assert "cannot write to file" in refusal("--output_dir", "file")
    assert "--processes is 0" in refusal("--processes", "0")
    absent = tmp_path / "absent" / "skimage.py"
    absent.parent.mkdir()
    absent.write_text("raise ImportError(\"No module named 'skimage'\")")
    said = refusal(first_on_path=absent.parent)
    assert said.endswith("No module named 'skimage': pip install -r requirements-dev.txt")


def quick_run(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a quick run in a process group of its own, as a terminal does."""
    words = command("--quick", "--output_dir", str(folder), *arguments)
    output: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, start_new_session=True, cwd=ROOT, env=environment(), **output)


@pytest.mark.slow
def test_no_worker_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
    with quick_run(tmp_path, "--processes", "1") as process:
        assert process.stdout is not None
        while ": step " not in process.stdout.readline():
            assert process.poll() is None
        process.kill()
        process.wait()
    assert is_gone(process.pid)


@pytest.mark.slow
def test_a_stop_at_the_terminal_while_workers_start_shows_no_traceback(tmp_path: Path) -> None:
    with quick_run(tmp_path) as process:
        assert process.stdout is not None
        assert "trainings" in process.stdout.readline()
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        said = process.stdout.read()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "stopped; what is finished is kept, and the same command goes on"


@pytest.mark.slow
def test_a_quick_run_is_stopped_and_goes_on(tmp_path: Path) -> None:
    with quick_run(tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "is done" in line:
                process.send_signal(signal.SIGINT)
                break
        said = process.stdout.read()
    assert process.returncode == 130
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert is_gone(process.pid), "no worker goes on alone"
    stopped = json.loads((tmp_path / FILE).read_text())["records"]
    jobs = plan(QUICK)
    assert 0 < len(stopped) < len(jobs)

    with quick_run(tmp_path) as process:
        said = process.communicate()[0]
    assert process.returncode == 0
    assert f"{len(jobs)} trainings, {len(jobs) - len(stopped)} of them to do" in said
    whole = json.loads((tmp_path / FILE).read_text())["records"]
    assert set(whole) == {job.key for job in jobs}
    assert stopped.items() <= whole.items()
    shown = (tmp_path / "table.md").read_text()
    assert all(shown.count(arm.title) >= 1 for arm in ARMS.values())
    assert (tmp_path / "effect.png").read_bytes().startswith(b"\x89PNG")

    with quick_run(tmp_path) as process:
        said = process.communicate()[0]
    assert process.returncode == 0
    assert "0 of them to do" in said
