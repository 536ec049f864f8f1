"""How times are written, in records and in logs."""

from __future__ import annotations

import datetime as dt


def timestamp(wall_clock: float) -> str:
    """RFC 3339, UTC, milliseconds; ``wall_clock`` in seconds since the epoch."""
    moment = dt.datetime.fromtimestamp(wall_clock, dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
