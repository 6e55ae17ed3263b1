"""Time of ``layersync list-supported`` against ``python -c "import typer"``, and of the hook of ``layersync run``.

Run with ``python -m benchmarks.startup``.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from layersync_core.run.settings import read, variables
from layersync_core.run.startup.sitecustomize import REACHED

ROUNDS = 15
HEAVY = ("torch", "diffusers", "transformers", "accelerate")

LISTING = [sys.executable, "-m", "layersync_core", "list-supported"]
BASELINE = [sys.executable, "-c", "import typer"]
NOTHING = [sys.executable, "-c", "pass"]

# The same command inside a program that then prints what it imported.
PROBE = f"""
import sys
from layersync_core.cli import main
main(["list-supported"])
print(*sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""


def seconds(command: list[str], environment: dict[str, str] | None = None) -> float:
    """Run a command to its end and return its wall time."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start


def hook() -> float:
    """Return how much later a Python below ``layersync run`` starts, in seconds: the median of alternating pairs."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings = read({"layersync_enabled": True, "layersync_student_block": 8, "layersync_teacher_block": 16})
    with tempfile.TemporaryDirectory() as folder:
        hooked = {
            **plain,
            **variables(settings, plain, lambda: Path(folder, "settings.json")),
            REACHED: os.path.join(folder, "hook"),
        }
        seconds(NOTHING, plain), seconds(NOTHING, hooked)
        return statistics.median(seconds(NOTHING, hooked) - seconds(NOTHING, plain) for _ in range(ROUNDS))


def main() -> None:
    seconds(LISTING), seconds(BASELINE)  # compiles files that have no bytecode yet
    # Alternating, so that other load on the machine affects both.
    rounds = [(seconds(LISTING), seconds(BASELINE)) for _ in range(ROUNDS)]
    listing, baseline = (statistics.median(times) for times in zip(*rounds, strict=True))
    ratio = statistics.median(one / other for one, other in rounds)
    probe = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True)
    print(f"median of {ROUNDS} alternating rounds")
    print(f'python -c "import typer"    {baseline * 1000:6.0f} ms')
    print(f"layersync list-supported    {listing * 1000:6.0f} ms")
    print(f"ratio                       {ratio:6.2f}  (goal: at most 3)")
    print(f"hook of layersync run       {hook() * 1000:6.1f} ms  (goal: at most 5)")
    print(f"imported of {', '.join(HEAVY)}: {probe.stderr.strip() or 'none'}")


if __name__ == "__main__":
    main()
