"""Listen, print the address, and serve until Ctrl-C."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layersync_core import ConfigError, validate
from layersync_plugin_webui.config import WebuiConfig

PORT = 8765


def serve(mapping: Mapping[str, Any]) -> None:
    """Serve the page.

    Args:
        mapping: Settings by name.

    Raises:
        ConfigError: A setting is wrong, there is no such folder, or the server cannot listen on the address.
    """
    config = validate(WebuiConfig, mapping)
    folder = Path(config.runs).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"runs {config.runs} is not a folder; give the folder that contains the folders of runs")
    listening = _listen(config)
    port = listening.getsockname()[1]

    # Everything above answers at once.
    import uvicorn

    from layersync_plugin_webui.app import make_app
    from layersync_plugin_webui.guard import Gate

    gate = Gate(config.host, port, is_loopback(config.host))
    settings = uvicorn.Config(
        make_app(folder, gate, config.allow_commands),
        access_log=False,  # it would contain the token
        log_level="warning",
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    shown = f"[{config.host}]" if ":" in config.host else config.host
    server = uvicorn.Server(settings)
    # The server handles Ctrl-C itself once its loop runs, which is after the address was printed.
    signal.signal(signal.SIGINT, server.handle_exit)
    print(f"runs below {folder}")
    print(f"http://{shown}:{port}/?token={gate.token}")
    if not gate.loopback:
        print(
            f"warning: {config.host} can be reached from other machines, without encryption; keep the token to yourself"
            f"{', since anyone who has it may run anything as you' if config.allow_commands else ''}"
        )
    print("Ctrl-C stops the page; runs go on", flush=True)
    server.run(sockets=[listening])


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached only from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(config: WebuiConfig) -> socket.socket:
    ports = [PORT, 0] if config.port is None else [config.port]
    for port in ports:
        try:
            family, _, _, _, address = socket.getaddrinfo(config.host, port, type=socket.SOCK_STREAM)[0]
            return socket.create_server(address[:2], family=family)
        except socket.gaierror as error:
            raise ConfigError(f"host {config.host}: {error.strerror}; give an address of this machine") from None
        except OSError as error:
            why = error.strerror or error
            if port == ports[-1]:
                raise ConfigError(f"cannot listen on {config.host}, port {port}: {why}; give another --port") from None
    raise AssertionError
