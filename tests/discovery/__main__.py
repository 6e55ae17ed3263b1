"""Print the table; ``--write`` puts it on the page."""

from __future__ import annotations

import sys

from tests.discovery.table import BEGIN, END, PAGE, markdown, rows

if __name__ == "__main__":
    table = markdown(rows())
    if "--write" in sys.argv:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}")
    else:
        print(table)
