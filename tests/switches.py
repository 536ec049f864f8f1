"""What the environment asks of the tests."""

from __future__ import annotations

import os


def switched_on(name: str) -> bool:
    """Whether a variable is set to something that means yes."""
    return os.environ.get(name, "").lower() not in {"", "0", "false"}


SOAK = switched_on("CONVOY_SOAK")
"""Whether the long forms are wanted: outages of minutes instead of seconds."""
