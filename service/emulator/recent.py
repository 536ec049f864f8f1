"""Remembers the newest requests, for whoever watches. Decides nothing and counts nothing."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

KEPT: Final = 100


@dataclass(slots=True, eq=False)
class Seen:
    """One request; without an `outcome` (a status, `cut`, `silence`, `gone`) it is still under way.

    `at_ms` is the time of day, `began` and `ended` are seconds of the emulator's clock. `rule` names the fault that
    decided about it.
    """

    number: int
    at_ms: int
    began: float
    method: str
    operation: str
    conversation_id: str
    items: int
    ended: float = 0.0
    outcome: str = ""
    rule: str = ""

    def end(self, outcome: str, *, now: float) -> None:
        """Note what its client saw in the end."""
        self.outcome = outcome
        self.ended = now


class Recent:
    """The last hundred requests, those under way included."""

    def __init__(self) -> None:
        self._seen: deque[Seen] = deque(maxlen=KEPT)

    def add(self, seen: Seen) -> None:
        """Remember a request that arrived, and forget the oldest."""
        self._seen.append(seen)

    def newest_first(self) -> Iterator[Seen]:
        """Yield them, the newest first."""
        return reversed(self._seen)
