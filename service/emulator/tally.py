"""Counts what the emulator was asked and how much of it at a time.

Keeps numbers only. A request is in flight from its arrival until the emulator is through with its answer, whether
or not its client still waits; one that is refused at the door never is. A write is at work until it is stored.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.emulator.contract import Operation


class Tally:
    """The numbers of one run. `now` is in seconds, of any clock."""

    def __init__(self, *, now: float) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        """Finished requests by operation and by what went out: a status, `cut` or `silence`."""
        self.in_flight = 0
        self.max_in_flight = 0
        self.max_writes_of_one_conversation = 0
        self._began = now
        self._changed_at = now
        self._in_flight_seconds = 0.0
        self._writes: Counter[str] = Counter()

    def writing(self, conversation_id: str) -> bool:
        """Say whether a write to this conversation is at work."""
        return conversation_id in self._writes

    def begin(self, *, now: float) -> None:
        """Count a request as in flight."""
        self._advance(now)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def end(self, *, now: float) -> None:
        """Count it no longer."""
        self._advance(now)
        self.in_flight -= 1

    def begin_write(self, conversation_id: str) -> None:
        """Count a write to a conversation as at work."""
        self._writes[conversation_id] += 1
        self.max_writes_of_one_conversation = max(self.max_writes_of_one_conversation, self._writes[conversation_id])

    def end_write(self, conversation_id: str) -> None:
        """Count it no longer; an idle conversation leaves nothing behind."""
        self._writes[conversation_id] -= 1
        if not self._writes[conversation_id]:
            del self._writes[conversation_id]

    def snapshot(self, *, now: float) -> dict[str, Any]:
        """Return the numbers as the statistics show them.

        `in_flight_seconds` grows by the number in flight each second: its slope is the mean concurrency.
        """
        self._advance(now)
        requests: dict[str, dict[str, int]] = {}
        for (operation, outcome), count in sorted(self.requests.items()):
            requests.setdefault(operation, {})[outcome] = count
        return {
            "uptime_seconds": now - self._began,
            "requests": requests,
            "in_flight": self.in_flight,
            "in_flight_seconds": self._in_flight_seconds,
            "max_in_flight": self.max_in_flight,
            "max_writes_of_one_conversation": self.max_writes_of_one_conversation,
        }

    def count(self, operation: Operation | str, outcome: str) -> None:
        """Count a request with its end."""
        self.requests[operation, outcome] += 1

    def _advance(self, now: float) -> None:
        self._in_flight_seconds += self.in_flight * (now - self._changed_at)
        self._changed_at = now
