"""The command ``layersync``. Exit codes: 0 good, 2 a user's mistake told in one line, 1 a bug with its traceback."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from layersync_core.entrypoints import PLUGIN_COMMANDS
from layersync_core.errors import LayerSyncError, LayerSyncWarning, did_you_mean

# Command -> module with ``register(app)``. Only the asked one is imported, so that a listing needs no torch.
_COMMANDS = {
    "list-supported": "list_supported",
    "inspect": "inspect",
    "check": "check",
    "run": "run",
    "env": "env",
    "doctor": "doctor",
    "config": "config_file",
    "new-adapter": "new_adapter",
    "new-regularizer": "new_regularizer",
}
_COMPLETE = "_LAYERSYNC_COMPLETE"
"""Set by a shell that asks what could be typed next; Typer makes it of the program's name."""
_INSTALL = "--install-completion"
_USER_ERROR = 2
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        argv: Arguments without the program's name; default: those of the process.
    """
    if _COMPLETE in os.environ:
        return _complete()
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    with warnings.catch_warnings(), _named_levels(arguments[0] != "run"):
        warnings.simplefilter("always", LayerSyncWarning)
        warnings.showwarning = _one_line_warnings(warnings.showwarning)
        try:
            code = _run(arguments)
            print(end="", flush=True)  # an error that shows only when Python exits could not be reported in one line
            return code
        except LayerSyncError as error:
            return _complain(str(error))
        except KeyboardInterrupt:
            return 130
        except OSError as error:
            if arguments[0] == _INSTALL:
                return _complain(
                    f"cannot write the completion below {os.path.expanduser('~')}: {error.strerror}; set HOME, or put "
                    "what --show-completion prints where your shell reads it"
                )
            if error.errno not in (*_FULL, errno.EPIPE):
                raise
            with suppress(OSError, ValueError, AttributeError):  # else Python tries again when it ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if error.errno == errno.EPIPE:  # `| head`: whoever read has enough; what Typer returns as well
                return 1
            return _complain(f"cannot write: {error.strerror}")
        except Exception as error:
            # Typer carries its own copy of click in newer versions, so its errors are recognised by their methods.
            if not hasattr(error, "format_message"):
                raise
            return _complain(error.format_message())


def _run(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        print(import_module("layersync_core").__version__)
        return 0
    if arguments[0] == "list-supported" and set(arguments[1:]) <= {"--json"}:
        # Answered before Typer is imported, which would take most of the time.
        from layersync_core.cli import list_supported

        return list_supported.run(as_json="--json" in arguments)
    try:
        code: Any = application(arguments[0])(arguments, prog_name="layersync", standalone_mode=False)
    except Exception as error:
        if hasattr(error, "option_name") and hasattr(error, "format_message"):
            _refuse_absent_plugin(error.option_name or "")
        raise
    return code if isinstance(code, int) else 0


def _complete() -> int:
    """Print what could be typed next, and return 0; nothing else is said, since somebody is typing, and nothing is run.

    Raises:
        SystemExit: Typer's, with an exit code for the shell.
    """
    from layersync_core.cli import completing

    with completing.silent(), suppress(Exception):
        application(completing.asked_command())([], prog_name="layersync")
    return 1


def application(command: str = "") -> Any:
    """Return the ``typer.Typer`` application, with no more than one command where that is known.

    Args:
        command: The one that is asked for; another word, such as a flag or nothing, for all of them.

    Raises:
        LayerSyncError: It is neither a flag nor empty, and there is no such command.
    """
    import typer

    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback()(_no_options)
    if command in _COMMANDS:
        import_module(f"layersync_core.cli.{_COMMANDS[command]}").register(app)
        return app
    from layersync_core.cli.plugin_commands import register_commands, registered
    from layersync_core.losses.plugins import third_parties

    if command in PLUGIN_COMMANDS:
        # The others' commands may need torch, which this one may do without.
        register_commands(app, third_parties(), PLUGIN_COMMANDS[command])
        if command in registered(app):
            return app
    for module in _COMMANDS.values():
        import_module(f"layersync_core.cli.{module}").register(app)
    register_commands(app, third_parties())
    if command and not command.startswith("-") and command not in registered(app):
        raise LayerSyncError(_no_command(command, sorted(registered(app)), third_parties().missing()))
    return app


def _no_command(command: str, known: list[str], missing: str) -> str:
    if missing:
        return f"no command {command!r}; {missing}"
    if command in PLUGIN_COMMANDS:
        return f"the command {command} is not installed; pip install {PLUGIN_COMMANDS[command]}"
    return f"no command {command!r}; {did_you_mean(command, known)}"


def _refuse_absent_plugin(option: str) -> None:
    """Say why the plugin whose flag an unknown option would be is not there, if it is one's.

    Raises:
        ConfigError: It is one's.
    """
    from layersync_core.losses.plugins import third_parties

    for prefix in third_parties().absent_prefixes():
        if option.lstrip("-").replace("-", "_").startswith(prefix):
            third_parties().require({f"{prefix}enabled": True})


def _no_options() -> None:
    """LayerSync for any diffusion transformer and any trainer; --version prints the version."""


def _complain(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return _USER_ERROR


@contextmanager
def _named_levels(wanted: bool) -> Iterator[None]:
    """Begin what is logged with its level, as in ``warning: …``, where nobody has set logging up.

    Args:
        wanted: False for ``run``, in whose process the user's own program may log.
    """
    handler = logging.lastResort
    if handler is None or not wanted:
        yield
        return
    before = handler.formatter
    handler.setFormatter(_Levelled())
    try:
        yield
    finally:
        handler.setFormatter(before)


class _Levelled(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        return f"{record.levelname.lower()}: {record.message}"


def _one_line_warnings(others: Any) -> Any:
    def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, LayerSyncWarning):
            print(f"warning: {message}", file=sys.stderr)
        else:
            others(message, category, *place, **more)

    return show
