"""``layersync inspect MODEL``: the blocks of a model, in both numberings, and a pair to start with."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import import_module
from inspect import Parameter
from typing import Annotated, Any, Optional

import typer

from layersync_core.cli import completing
from layersync_core.cli.meta import model_of
from layersync_core.errors import ConfigError
from layersync_core.families.asking import blocks_of
from layersync_core.families.discovered import is_adapter_file, save_adapter
from layersync_core.families.registry import provider
from layersync_core.losses.pairing import suggest_pair
from layersync_core.protocol import Block

Model = Annotated[
    str,
    typer.Argument(
        autocompletion=completing.families,
        help="local model folder, pipeline folder or config.json; a family, for its tiny model; or owner/name on the "
        "hub, from which only the config is fetched",
    ),
]
_FAMILY_OPTION = typer.Option(
    "--family",
    metavar="<family>",
    autocompletion=completing.families,
    help="family, if the config doesn't determine it",
)
Family = Annotated[Optional[str], _FAMILY_OPTION]  # noqa: UP045


_INPUTS = (
    "safetensors file with a forward's tensors by name; finds the blocks and tokens of a class that no adapter knows, "
    "using a model with random weights"
)
_SAVE = "adapter file (.json) to write with what --inputs showed; give it as the family"


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
        inputs: Annotated[Optional[str], typer.Option("--inputs", metavar="<file>", help=_INPUTS)] = None,  # noqa: UP045
        save: Annotated[Optional[str], typer.Option("--save", metavar="<file>", help=_SAVE)] = None,  # noqa: UP045
    ) -> None:
        """Show the blocks of a model, with both numberings and a suggested pair; no weights are needed."""
        if inputs is not None:
            if family is not None:
                raise ConfigError("--inputs finds blocks without a family; leave out either --family or --inputs")
            _show_measured(model, inputs, save, as_json)
            return
        if save is not None:
            raise ConfigError(
                "--save writes what a forward shows; give the forward's tensors with --inputs FILE.safetensors"
            )
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
        # A file may have the same name as an installed adapter's family.
        found = None if family and is_adapter_file(family) else provider(named.adapter.family)
        print(f"{named.title}: family {named.adapter.family} ({found or 'adapter file'}), {len(blocks)} blocks\n")
        print(_table(blocks))
        print(f"\nsuggested student: {student}\nsuggested teacher: {teacher}\n{json.dumps(settings)}")


def _show_measured(model: str, inputs: str, save: str | None, as_json: bool) -> None:
    # Imported here, so that the help does not import torch.
    found = import_module("layersync_core.cli.measured").measured(model, inputs)
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    else:
        print("\n".join([found.model_class, *found.lines(), *(f"open: {question}" for question in found.questions)]))
    if save is not None:
        save_adapter(found, save)
    found.require_answers()


def _table(blocks: list[Block]) -> str:
    lines = ["block  index  width  name"]
    for block in blocks:
        stage = f"  (stage {block.stage})" if block.stage else ""
        lines.append(f"{block.index + 1:5}  {block.index:5}  {block.width or '?':>5}  {block.path}{stage}")
    return "\n".join(lines)
