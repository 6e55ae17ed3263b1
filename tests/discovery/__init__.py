"""Discovery beside every adapter: ``python -m tests.discovery`` prints the table, ``--write`` puts it on the page."""
