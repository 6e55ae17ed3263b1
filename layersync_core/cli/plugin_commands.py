"""Commands that plugins bring, each plugin's registered separately."""

from __future__ import annotations

import logging
from typing import Any

from layersync_core.entrypoints import describe_failure, foreign
from layersync_core.losses.plugins import Plugins

log = logging.getLogger(__name__)


def register_commands(app: Any, plugins: Plugins, distribution: str = "") -> None:
    """Add every plugin's commands to a ``typer.Typer`` application; existing commands are kept.

    Args:
        app: The application.
        plugins: The installed plugins.
        distribution: If given, only ask this distribution's plugins.
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
                    get_command(own)  # fails if a parameter has a type that a flag can't have
        except Exception as error:
            plugins.broken[name] = describe_failure(error)
            continue
        for command in own.registered_commands:
            if (called := command_name(command)) in registered(app):
                log.warning("plugin %s: a command %s already exists, so the plugin's is left out", name, called)
            else:
                app.registered_commands.append(command)


def registered(app: Any) -> set[str]:
    """Return the names of an application's commands."""
    return set(map(command_name, app.registered_commands))


def command_name(command: Any) -> str:
    """Return the name of a command, derived as Typer does it where none is given."""
    return str(command.name or command.callback.__name__.lower().replace("_", "-"))
