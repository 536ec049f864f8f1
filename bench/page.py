"""Put the figures of `bench/run.py --json` into a page, between its two marks: `python bench/page.py FIGURES PAGE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
WHOLE = 100
"""From here on a figure has no decimals."""


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= WHOLE else f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([shown(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> int:
    source, page = map(Path, sys.argv[1:])
    figures: dict[str, list[dict[str, Any]]] = json.loads(source.read_text())
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = "\n\n".join(
        f"### {name.replace('_', ' ').capitalize()}\n\n{table(rows)}" for name, rows in figures.items()
    )
    page.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
