"""Logs: one line an event that matters, as JSON or for people; never message text, never a key.

What repeats is told a few times and then counted: trouble that lasts must not fill a disk, nor hide what else is said.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

from service.ops.times import timestamp

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.settings import LogSettings

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
QUIET = {
    "aiokafka": logging.WARNING,
    "asyncio": logging.WARNING,
    # Its one line above INFO is a stack for each poll that failed; intake says why, once.
    "convoy.faststream": logging.CRITICAL,
    "httpx": logging.WARNING,
    "uvicorn": logging.WARNING,
}
"""Libraries whose lines below this level say less than ours."""


REPEATS = 5
REPEATS_SECONDS = 60.0
"""So many lines of a kind within so many seconds; those left out are counted on the next one."""
KINDS = 1000
"""A library that writes its values into its messages makes a kind of each; more are not remembered."""


class Repetition(logging.Filter):
    """Leaves out warnings and errors of a kind that come too often: logger, level, message before its values, ``for``.

    Lines at INFO tell of changes, each of which counts.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._told: dict[tuple[str, int, str], tuple[float, int]] = {}
        """By kind, when its count began, and how many there were since."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written; the first after others were left out says how many in ``left_out``."""
        if not logging.WARNING <= record.levelno < logging.CRITICAL:
            return True
        kind = (record.name, record.levelno, f"{record.msg} {record.__dict__.get('for', '')}")
        now = self._clock()
        began, count = self._told.get(kind, (now, 0))
        left_out = 0
        if now - began >= REPEATS_SECONDS:
            began, count, left_out = now, 0, max(0, count - REPEATS)
        if len(self._told) >= KINDS and kind not in self._told:
            self._told.clear()
        self._told[kind] = (began, count + 1)
        if left_out:
            record.left_out = left_out
        return count < REPEATS


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the fields given by ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        line: dict[str, Any] = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(line, enc_hook=str).decode()
        except UnicodeEncodeError:
            # Half a surrogate pair, as in the name of a file that is no UTF-8.
            return json.dumps(line, default=str)


class ConsoleFormatter(logging.Formatter):
    """Text for people: time, level, message, fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        fields = "".join(f"  {name}={value}" for name, value in _fields(record).items())
        line = f"{timestamp(record.created)[11:23]} {record.levelname.lower():7} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up(settings: LogSettings) -> None:
    """Send all logs to standard error in the form chosen."""
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(JsonFormatter() if settings.format == "json" else ConsoleFormatter())
    output.addFilter(Repetition())
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(settings.level.upper())
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(max(level, root.level))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
