"""The page of all metrics, written from their table; ``make docs`` puts it into the documentation."""

from __future__ import annotations

import sys

from service.ops.metrics import PREFIX, TABLE, Label, Row

HEAD = """# Metrics

Made from the table in `service/ops/metrics.py` by `make docs`. Served on `/metrics` beside those of the process
(`process_*`, `python_*`). No label has a value without bound; those listed are there from the start, as 0.

"""


def metrics_page() -> str:
    """Markdown: one section a metric, in the order of the table."""
    return HEAD + "\n".join(_section(row) for row in TABLE)


def _section(row: Row) -> str:
    lines = [f"## `{PREFIX}{row.name}`", "", f"{row.kind.__name__}. {row.help}", ""]
    lines += [f"- `{label.name}`: {_values(label)}" for label in row.labels]
    if row.buckets:
        lines.append(f"- buckets: {', '.join(f'{bound:g}' for bound in row.buckets)}")
    lines.append(f"- **What to do.** {row.action}")
    return "\n".join(lines) + "\n"


def _values(label: Label) -> str:
    return ", ".join(f"`{value}`" for value in label.values) or label.bound


if __name__ == "__main__":
    sys.stdout.write(metrics_page())
