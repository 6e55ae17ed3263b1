"""Pages of the public face, one for each part of it; mkdocstrings fills them from the docstrings."""

from __future__ import annotations

from layersync_core import FACE

# Page -> its title and the modules of the table of names that it has, by the beginning of their names.
_PARTS = {
    "attaching": (
        "Attaching to a model",
        ("session", "attachment", "suggest", "metrics", "losses.alignment", "losses.pairing"),
    ),
    "settings": ("Settings", ("config", "spelling", "schedule", "files", "run.settings", "entrypoints")),
    "adapters": ("Adapters and families", ("families", "capture", "protocol", "cli", "inputs")),
    "plugins": ("Regularizers, objectives and plugins", ("losses", "objective", "distributed", "replacing", "state")),
    "runs": ("Runs and reports", ("report", "process_record", "signalling", "markup")),
    "errors": ("Errors", ("errors",)),
}
_REST = ("rest", "The rest")


def pages() -> dict[str, str]:
    """Return the pages by their paths below ``docs``."""
    found: dict[str, list[str]] = {}
    for module, names in sorted(FACE.items(), key=lambda item: _place_of(item[0])):
        found.setdefault(_part_of(module), []).extend(f"layersync_core.{module}.{name}" for name in names)
    titles = {part: title for part, (title, _) in _PARTS.items()} | dict([_REST])
    texts = {f"api/{part}.md": _page(titles[part], found[part]) for part in titles if part in found}
    texts["api/index.md"] = _index(found, titles)
    texts["api/testing.md"] = "# The conformance kit\n\n::: layersync_core.testing\n"
    return texts


def _part_of(module: str) -> str:
    fitting = [
        (len(prefix), part)
        for part, (_, prefixes) in _PARTS.items()
        for prefix in prefixes
        if module == prefix or module.startswith(f"{prefix}.")
    ]
    return max(fitting)[1] if fitting else _REST[0]


def _place_of(module: str) -> int:
    """Return where a module's names stand on their page: as the table above has it."""
    prefixes = [prefix for _, modules in _PARTS.values() for prefix in modules]
    return min((prefixes.index(it) for it in prefixes if module == it or module.startswith(f"{it}.")), default=99)


def _page(title: str, names: list[str]) -> str:
    return (
        "\n\n".join(
            [
                f"# {title}",
                "From `layersync_core`, as `from layersync_core import NAME`.",
                *(f"::: {name}" for name in names),
            ]
        )
        + "\n"
    )


def _index(found: dict[str, list[str]], titles: dict[str, str]) -> str:
    lines = [
        "# API",
        "`from layersync_core import NAME` gives every name below, and `layersync_core.testing` the conformance kit of "
        "adapters ([kit](testing.md)). What is not here may change without notice.",
    ]
    for part, title in titles.items():
        if part in found:
            names = sorted(found[part], key=lambda name: name.rpartition(".")[2].lower())
            links = ", ".join(f"[`{name.rpartition('.')[2]}`]({part}.md#{name})" for name in names)
            lines.append(f"**[{title}]({part}.md)**: {links}")
    return "\n\n".join(lines) + "\n"
