"""``layersync inspect MODEL``: the blocks of a model, in both numberings, and a pair to start with."""

from __future__ import annotations

import json
from dataclasses import asdict
from inspect import Parameter
from typing import Annotated, Any, Optional

import typer

from layersync_core.cli.meta import model_of
from layersync_core.families.asking import blocks_of
from layersync_core.families.registry import provider
from layersync_core.losses.pairing import suggest_pair
from layersync_core.protocol import Block

Model = Annotated[
    str,
    typer.Argument(
        help="local model folder, pipeline folder or config.json; a family, for its tiny model; or owner/name on the "
        "hub, of which only the config is fetched"
    ),
]
Family = Annotated[Optional[str], typer.Option("--family", help="family, where the config cannot tell it")]  # noqa: UP045


def model_parameters() -> list[Parameter]:
    """Return the parameters of a command that takes a model, for ``add_command``."""
    return [
        Parameter("model", Parameter.KEYWORD_ONLY, annotation=Model),
        Parameter("family", Parameter.KEYWORD_ONLY, annotation=Family, default=None),
    ]


def register(app: Any) -> None:
    """Register the command."""

    @app.command("inspect")  # type: ignore[untyped-decorator]
    def inspect(
        model: Model,
        family: Family = None,
        as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    ) -> None:
        """Show the blocks of a model, with both numberings and a suggested pair; no weights are needed."""
        named = model_of(model, family)
        blocks = blocks_of(named.adapter, named.model)
        student, teacher = suggest_pair(blocks)
        settings = {
            "layersync_enabled": True,
            "layersync_student_block": student.index + 1,
            "layersync_teacher_block": teacher.index + 1,
        }
        if as_json:
            content = {
                "family": named.adapter.family,
                "blocks": [asdict(block) for block in blocks],
                "suggested": settings,
            }
            print(json.dumps(content, indent=2))
            return
        family = named.adapter.family
        print(f"{named.title}: family {family} ({provider(family)}), {len(blocks)} blocks\n")
        print(_table(blocks))
        print(f"\nsuggested student: {student}\nsuggested teacher: {teacher}\n{json.dumps(settings)}")


def _table(blocks: list[Block]) -> str:
    lines = ["block  index  width  name"]
    for block in blocks:
        stage = f"  (stage {block.stage})" if block.stage else ""
        lines.append(f"{block.index + 1:5}  {block.index:5}  {block.width or '?':>5}  {block.path}{stage}")
    return "\n".join(lines)
