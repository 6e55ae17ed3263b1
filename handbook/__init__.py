"""The documentation site: what ``mkdocs build`` makes of the code, beside the pages in ``docs``."""
