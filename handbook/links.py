"""Links of pages that are also read elsewhere: on GitHub by paths in the repository, on an index by addresses."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from layersync_core.documentation import DOCUMENTATION

REPOSITORY = "https://github.com/layersync/layersync/blob/main/"
"""For what has no page, such as a notebook."""

_LINK = re.compile(r"(\]\()([^)\s#]*)(#[^)\s]*)?(\))")
_FENCE = re.compile(r"^( *```.*?^ *```)", re.DOTALL | re.MULTILINE)


def local(text: str, source: str, page: str, root: Path) -> str:
    """Return the Markdown of a page with links that lead to other pages of this site.

    Args:
        text: Its Markdown.
        source: Where it stands in the repository, such as ``plugins/crepa/README.md``.
        page: Where it stands below ``docs``, such as ``plugins/crepa.md``.
        root: The repository's folder.
    """

    def replaced(link: re.Match[str]) -> str:
        before, target, anchor, after = link[1], link[2], link[3] or "", link[4]
        found = _page_of(target, source, root)
        if not target or found is None:
            return link[0]
        if found.startswith(REPOSITORY):
            return f"{before}{found}{after}"
        return f"{before}{posixpath.relpath(found, posixpath.dirname(page) or '.')}{anchor}{after}"

    return "".join(part if _FENCE.match(part) else _LINK.sub(replaced, part) for part in _FENCE.split(text))


def _page_of(target: str, source: str, root: Path) -> str | None:
    """Return what a link leads to: a path below ``docs`` or an address; None where it leads out of the repository."""
    if target.startswith(DOCUMENTATION):
        path = target.removeprefix(DOCUMENTATION)
        if not path or path.endswith("/"):
            return _markdown_of(path.rstrip("/"), root)
        return path
    if ":" in target or target.startswith("/"):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.endswith(".ipynb"):
        return REPOSITORY + path
    if path.endswith(".py"):
        return f"{posixpath.dirname(path)}.md#{posixpath.basename(path)}"
    if (root / path).is_dir():
        return f"{path}.md"
    if path.endswith("/README.md"):
        return f"{posixpath.dirname(path)}.md"
    return path.lower() if path.endswith(".md") else f"{path}.md"


def _markdown_of(path: str, root: Path) -> str:
    index = [name for name in (f"{path}/index.md", f"{path}/README.md") if (root / "docs" / name).is_file()]
    if path in ("", "api"):
        return f"{path}/index.md".lstrip("/")
    return index[0] if index else f"{path}.md"
