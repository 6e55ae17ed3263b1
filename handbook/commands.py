"""The reference of commands, from what Typer makes their help of."""

from __future__ import annotations

from typing import Any

from layersync_core.cli import application


def commands() -> dict[str, Any]:
    """Return every command that is installed, by name, as click knows it."""
    import typer

    group: Any = typer.main.get_command(application())
    return dict(group.commands)


def page() -> str:
    """Return a section for each command that is installed."""
    lines = [
        "# Commands",
        "`layersync COMMAND --help` prints the same. Exit codes: 0 good, 2 a mistake that one line on standard error "
        "explains, 1 a fault of LayerSync's own, with its traceback.",
    ]
    for name, command in commands().items():
        context = command.context_class(command, info_name=f"layersync {name}")
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        lines += [f"## layersync {name}", " ".join((command.help or "").split()), f"```text\n{usage}\n```"]
        rows = [row for parameter in command.get_params(context) if (row := _row(parameter, context))]
        lines.append("\n".join(["| argument or flag | meaning |", "| --- | --- |", *rows]))
    return "\n\n".join(lines) + "\n"


def _row(parameter: Any, context: Any) -> str:
    if getattr(parameter, "hidden", False):
        return ""
    record = parameter.get_help_record(context)
    words, meaning = record if record else (parameter.make_metavar(context), "")
    return f"| `{words}` | {' '.join(meaning.split()).replace('|', '/')} |".replace("[[", "&#91;[")
