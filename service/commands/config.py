"""`convoy config`: the effective settings, secrets masked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.settings import Settings


def show(settings: Settings, *, as_json: bool) -> str:
    """Write the settings as variables, one a line, or as one JSON object; secrets are masked by their type."""
    values = settings.model_dump(mode="json")
    if as_json:
        return json.dumps(values, indent=2)
    lines = []
    for group, members in values.items():
        for name, value in members.items():
            text = json.dumps(value) if isinstance(value, dict | list) else "" if value is None else str(value)
            lines.append(f"CONVOY_{group}__{name}".upper() + f"={text}")
    return "\n".join(lines)
