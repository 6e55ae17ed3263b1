"""The command ``layersync webui``: a page of this machine's runs, in the browser.

Nothing heavy is imported here, since every ``layersync`` command imports this module.
"""

from __future__ import annotations

from typing import Any

from layersync_core import hookimpl

HELP = (
    "Set up trainings in the browser, start them, and show all runs below a folder, including those in progress. "
    "Prints the address to open."
)


@hookimpl
def layersync_commands(app: Any) -> None:
    """Register ``webui``."""
    from layersync_core import add_command
    from layersync_plugin_webui.config import WebuiConfig

    add_command(app, "webui", _webui, [WebuiConfig], HELP)


def _webui(settings: dict[str, Any]) -> None:
    from layersync_plugin_webui.serve import serve

    serve(settings)
