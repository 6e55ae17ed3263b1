"""``python -m release``: everything that happens before a version is published.

Publishing itself is done by .github/workflows/release.yml, which runs ``python -m release all --tagged`` before.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from release.building import build
from release.errors import ReleaseError
from release.floors import requirements
from release.refusals import refuse
from release.trying import try_each
from release.version import read_version, set_version


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; return 2 where it refuses or fails."""
    arguments = _parser().parse_args(words)
    try:
        return _run(arguments)
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    match arguments.command:
        case "version":
            print(set_version(arguments.new) if arguments.new else read_version())
        case "floors":
            arguments.file.write_text(requirements(), encoding="utf-8")
        case "build":
            build(arguments.output)
        case "try":
            try_each(arguments.output)
        case "all":
            version = refuse(tagged=arguments.tagged)
            files = build(arguments.output)
            try_each(arguments.output)
            print(f"{version}: {len(files)} files in {arguments.output} are good")
            if not arguments.tagged:
                print(f"to publish: git tag -a v{version} -m v{version} && git push origin v{version}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m release", description="Tools of a release.")
    commands = parser.add_subparsers(dest="command", required=True)
    version = commands.add_parser("version", help="print the version of all distributions, or set it everywhere")
    version.add_argument("new", nargs="?", help="the new version")
    floors = commands.add_parser("floors", help="write requirements: the oldest versions that the distributions allow")
    floors.add_argument("file", type=Path, help="file to write")
    everything = commands.add_parser("all", help="refuse what is not to be released; build, check and try the rest")
    everything.add_argument("--tagged", action="store_true", help="the version's tag exists, at this commit")
    building = commands.add_parser("build", help="build and check every distribution")
    trying = commands.add_parser("try", help="install each built distribution alone and try it")
    for command in (everything, building, trying):
        command.add_argument("--output", type=Path, default=Path("dist"), help="folder of the files (default: dist)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
