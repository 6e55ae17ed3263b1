"""Configurations of models on the Hugging Face Hub: a config.json is fetched, never weights. Imports no torch."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from layersync_core.entrypoints import describe_failure
from layersync_core.errors import ConfigError

CONFIG_FILES = ("config.json", "transformer/config.json", "unet/config.json", "prior/config.json")
"""Where a model has its configuration, or a pipeline its denoiser's; the first that exists counts."""

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(?<!\.json)", re.ASCII)
_INSTEAD = "give a local model folder or its config.json"
_REMEDIES = {401: "run hf auth login", 403: "run hf auth login", 404: "check the name"}


def is_hub_name(name: str) -> bool:
    """Return whether a text has the form ``owner/name`` of a model on the hub, and does not look like a file."""
    return _HUB_NAME.fullmatch(name) is not None


def fetch_config(name: str) -> Path:
    """Return the config.json of a model on the hub, from the local cache or else over the network.

    Args:
        name: ``owner/name``.

    Raises:
        ConfigError: There is none, or it cannot be fetched.
    """
    try:
        # Imported by name: core works without it, and diffusers, which builds a model from its config, requires it.
        hub, constants, errors = map(
            import_module, ("huggingface_hub", "huggingface_hub.constants", "huggingface_hub.utils")
        )
    except ImportError:
        raise ConfigError(
            f"{name} isn't a local path, and asking the hub for it needs huggingface_hub; pip install huggingface_hub"
        ) from None
    try:
        return Path(_cached(hub, name) or _downloaded(hub, constants, errors, name))
    except ConfigError:
        raise
    except errors.HFValidationError as error:
        raise ConfigError(
            f"{name} is neither a local path nor a possible name of a model on the hub; check it, or {_INSTEAD}"
        ) from error
    except Exception as error:  # the HTTP library, and so the type of its errors, depends on the version
        why = _why(error, constants.ENDPOINT, name, errors)
        raise ConfigError(
            f"{name} isn't a local path, its config is not in the cache {constants.HF_HUB_CACHE}, and {why}"
        ) from error


def _cached(hub: Any, name: str) -> str | None:
    found = (hub.try_to_load_from_cache(name, file) for file in CONFIG_FILES)
    return next((path for path in found if isinstance(path, str)), None)


def _downloaded(hub: Any, constants: Any, errors: Any, name: str) -> str:
    for file in CONFIG_FILES:
        try:
            # A single request without retries: a download would keep asking a silent server for minutes.
            hub.get_hf_file_metadata(hub.hf_hub_url(name, file), timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except errors.EntryNotFoundError:
            continue
        return str(hub.hf_hub_download(name, file))
    raise ConfigError(f"{name} on {constants.ENDPOINT} has none of {', '.join(CONFIG_FILES)}; {_INSTEAD}")


def _why(error: Exception, endpoint: str, name: str, errors: Any) -> str:
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids fetching it; unset it, or {_INSTEAD}"
    if isinstance(error, errors.GatedRepoError):
        return f"the model is gated: accept its terms on {endpoint}/{name} and run hf auth login, or {_INSTEAD}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{endpoint} has no such model or does not show it; check the name, and run hf auth login for a private "
            "or gated one"
        )
    if getattr(error, "filename", None):
        return f"the cache cannot be written ({describe_failure(error)}); set HF_HOME to another folder, or {_INSTEAD}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None:
        return f"{endpoint} cannot be reached ({describe_failure(error)}); check the network, or {_INSTEAD}"
    return f"{endpoint} answers {status}; {_REMEDIES.get(status, 'try again later')}, or {_INSTEAD}"
