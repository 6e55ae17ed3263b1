"""What mkdocs calls: pages that are made of the code and of the repository's other Markdown, and links between all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # mkdocs reads this file by its path
    sys.path.insert(0, str(ROOT))

from handbook import api, commands, links, settings, troubleshooting  # noqa: E402
from layersync_core.cli import list_supported  # noqa: E402
from layersync_core.documentation import DOCUMENTATION  # noqa: E402

_FAMILIES = "<!-- families -->"


def on_config(config: Any) -> None:
    """Give the site the address that messages name."""
    config.site_url = DOCUMENTATION


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are in no file of ``docs``."""
    made = {**others(), **api.pages(), **troubleshooting.pages(ROOT)}
    made |= {"reference/settings.md": settings.page(ROOT), "reference/commands.md": commands.page()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def others() -> dict[str, str]:
    """Return the Markdown and the code of the repository that pages link to, by paths below ``docs``."""
    patterns = ("plugins/*/README.md", "adapters/*/README.md", "examples/README.md", "examples/*/README.md")
    readmes = [readme for pattern in patterns for readme in sorted(ROOT.glob(pattern))]
    found = {}
    for readme in readmes:
        folder = readme.parent.relative_to(ROOT).as_posix()
        text = links.local(readme.read_text(encoding="utf-8"), f"{folder}/README.md", f"{folder}.md", ROOT)
        found[f"{folder}.md"] = text + _sources(readme.parent)
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found["contributing.md"] = links.local(text, "CONTRIBUTING.md", "contributing.md", ROOT)
    return found


def _sources(folder: Path) -> str:
    """Return the code of what is there to be copied: adapters, the example plugin, examples."""
    if folder.parent.name == "plugins" and not folder.name.startswith("example"):
        return ""
    files = sorted([*folder.glob("*.py"), *folder.glob("layersync_*/*.py")])
    texts = [
        f"### `{file.name}` {{ #{file.name} }}\n\n```python\n{file.read_text(encoding='utf-8')}```" for file in files
    ]
    return "\n\n## The code\n\n" + "\n\n".join(texts) + "\n" if texts else ""


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Fill in the table of families, and lead links to pages of this site."""
    source = page.file.src_uri
    text = markdown.replace(_FAMILIES, list_supported.markdown(list_supported.families()))
    return links.local(text, f"docs/{source}", source, ROOT)
