"""Builds every distribution as sdist and wheel, and checks what was built as an index and a reader would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from release.distributions import ROOT, distributions
from release.errors import ReleaseError
from release.refusals import git


def build(out: Path, root: Path = ROOT) -> list[Path]:
    """Build every distribution into an empty folder and check the files; return them.

    The wheel is built from the sdist, as a user's is where no wheel fits, and from the tools of this environment.

    Raises:
        ReleaseError: The folder has files, or a build or a check failed.
    """
    if out.exists() and any(out.iterdir()):
        raise ReleaseError(f"{out} is not empty; name a new folder, or remove it")
    every = distributions(root)
    # Two builds of one commit are the same to the byte.
    variables = {**os.environ, "SOURCE_DATE_EPOCH": git(root, "log", "-1", "--format=%ct")}
    for number, distribution in enumerate(every, 1):
        print(f"build {number}/{len(every)}: {distribution.name}", flush=True)
        words = ["-m", "build", "--no-isolation", "--outdir", str(out), str(distribution.folder)]
        python(words, variables=variables)
    files = sorted(out.iterdir())
    if len(files) != 2 * len(every):
        raise ReleaseError(f"{out} has {len(files)} files instead of a wheel and an sdist for {len(every)}")
    check(files)
    return files


def check(files: Sequence[Path]) -> None:
    """Check metadata and contents of built files.

    Raises:
        ReleaseError: What the check printed.
    """
    print("twine check --strict", flush=True)
    python(["-m", "twine", "check", "--strict", *map(str, files)])
    print("check-wheel-contents", flush=True)
    python(["-m", "check_wheel_contents", *(str(file) for file in files if file.suffix == ".whl")])


def python(words: Sequence[str], interpreter: str = sys.executable, variables: dict[str, str] | None = None) -> str:
    """Run Python and return what it printed.

    Raises:
        ReleaseError: It failed; the message has what it printed last.
    """
    done = subprocess.run(
        [interpreter, *words], capture_output=True, text=True, env=variables, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        printed = (done.stdout + done.stderr).strip().splitlines()
        raise ReleaseError(f"{' '.join(words)[:200]} failed:\n" + "\n".join(printed[-15:]))
    return done.stdout
