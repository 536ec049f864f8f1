"""How times are written, in records and in logs."""

from __future__ import annotations

import datetime as dt
from functools import lru_cache


def timestamp(wall_clock: float) -> str:
    """RFC 3339, UTC, milliseconds; ``wall_clock`` in seconds since the epoch."""
    second, microseconds = divmod(round(wall_clock * 1_000_000), 1_000_000)
    return f"{_whole(second)}.{microseconds // 1000:03}Z"


@lru_cache(maxsize=4)
def _whole(second: int) -> str:
    """Without its fraction: asked for thousands of times a second."""
    return dt.datetime.fromtimestamp(second, dt.UTC).isoformat().removesuffix("+00:00")
