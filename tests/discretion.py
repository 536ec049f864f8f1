"""What no output may hold: keys, passwords, tokens, and what people say to each other.

Every process of the service that the tests start is searched when it ends (`ServiceProcess`), and every text the
emulated API holds at the end of a trial is looked for in all that the trial's processes wrote.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from service.commands.settings_schema import secrets

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from service.emulator.server import EmulatorServer

SPOKEN = re.compile(r"conv_\w* says \d|text \d+ [0-9a-f]{16}")
"""The texts of `service_process.chat`, of `fault_run` and of `strange_records`."""
SHORTEST_TEXT = 8
"""A shorter one may stand in a log by chance."""


def betrayed(output: str, settings: Mapping[str, str]) -> list[str]:
    """What stands in `output` that a process with these settings (names without prefix) has to keep to itself."""
    hidden = {f"{group}__{name}".upper() for group, name in secrets()}
    values = [value for name, value in settings.items() if name.upper() in hidden and len(value) >= SHORTEST_TEXT]
    found = [f"the value of a secret: {value[:3]}…" for value in values if value in output]
    if "Bearer " in output:
        found.append("an Authorization header")
    if (spoken := SPOKEN.search(output)) is not None:
        found.append(f"message text: {spoken[0]}")
    return found


def overheard(folder: Path, apis: Iterable[EmulatorServer]) -> list[str]:
    """Texts of the messages that these APIs hold and that stand in a log of the folder."""
    texts = {text for api in apis for conversation in api.store.conversations.values() for text in conversation.texts()}
    logs = [file.read_text(errors="replace") for file in folder.rglob("*.log")]
    return [text for text in texts if len(text) >= SHORTEST_TEXT and any(text in log for log in logs)]
