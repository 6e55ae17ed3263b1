"""Where the documentation is, as messages name it: an installed package has no docs folder. Imports nothing."""

DOCUMENTATION = "https://layersync.readthedocs.io/en/latest/"
"""The site's address; ``[project.urls]`` of every distribution has it as well."""


def docs_page(page: str, anchor: str = "") -> str:
    """Return the address of a page of the site.

    Args:
        page: Path of its Markdown file below ``docs``, without the ending.
        anchor: Heading in it, in lower case with hyphens; empty for the page's top.

    >>> docs_page("run", "which-tokens-count")
    'https://layersync.readthedocs.io/en/latest/run/#which-tokens-count'
    """
    return f"{DOCUMENTATION}{page}/{'#' if anchor else ''}{anchor}"
