"""Commands that plugins bring, each plugin's registered apart from the others'."""

from __future__ import annotations

import logging
from typing import Any

from layersync_core.entrypoints import describe_failure, foreign
from layersync_core.losses.plugins import Plugins

log = logging.getLogger(__name__)


def register_commands(app: Any, plugins: Plugins, distribution: str = "") -> None:
    """Add every plugin's commands to a ``typer.Typer`` application; a command that is there stays.

    Args:
        app: The application.
        plugins: Those that are installed.
        distribution: Ask the plugins of this one alone.
    """
    from typer.main import get_command

    for implementation in plugins.working("layersync_commands"):
        name, own = implementation.plugin_name, type(app)()
        if distribution and not name.startswith(f"{distribution} "):
            continue
        try:
            with foreign():
                implementation.function(*(own for _ in implementation.argnames))
                if own.registered_commands:
                    get_command(own)  # fails where a parameter is of a type that no flag can have
        except Exception as error:
            plugins.broken[name] = describe_failure(error)
            continue
        for command in own.registered_commands:
            if (called := command_name(command)) in registered(app):
                log.warning("plugin %s: there is a command %s already, so its own is left out", name, called)
            else:
                app.registered_commands.append(command)


def registered(app: Any) -> set[str]:
    """Return the names of an application's commands."""
    return set(map(command_name, app.registered_commands))


def command_name(command: Any) -> str:
    """Return the name of a command, as Typer derives it where none is given."""
    return str(command.name or command.callback.__name__.lower().replace("_", "-"))
