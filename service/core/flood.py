"""Whether the dead letters are being flooded: a limit that stops the service rather than drain a topic into them.

Decides, before events are given up, whether too large a share of what ended lately, or too many in a row, would
be dead letters, over several conversations. One bad producer or one broken conversation is no flood; a changed
model, a wrong tenant or a new content filter is, and a person should look before a million events have moved.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

CONVERSATIONS = 5
"""So many different ones at the least: less is their own trouble."""
SLICES = 10
"""The window moves by a tenth of its length."""


@dataclass(slots=True)
class _Slice:
    start: float
    delivered: int = 0
    dead: int = 0
    conversations: set[str] = field(default_factory=set)


class FloodGuard:
    """Counts how events end, over a moving window and in a row.

    ``share`` is the greatest share of dead letters within ``window_seconds``, ``run`` the greatest number of them
    with no delivery between; ``None`` switches either off.
    """

    __slots__ = ("_conversations", "_flooded", "_in_a_row", "_run", "_share", "_slices", "_width")

    def __init__(self, *, share: float | None, run: int | None, window_seconds: float) -> None:
        self._share = share
        self._run = run
        self._width = window_seconds / SLICES
        self._slices: deque[_Slice] = deque(maxlen=SLICES)
        self._in_a_row = 0
        self._conversations: set[str] = set()
        """Of the row."""
        self._flooded = False
        """Until something is delivered: while nothing moves the window empties, and would let some through."""

    @property
    def on(self) -> bool:
        """Whether there is anything to watch."""
        return self._share is not None or self._run is not None

    @property
    def flooded(self) -> bool:
        """Whether there were too many, and nothing was delivered since."""
        return self._flooded

    def delivered(self, events: int, now: float) -> None:
        """Note events that were stored."""
        if self._share is not None:
            self._slice(now).delivered += events
        self._in_a_row = 0
        self._conversations.clear()
        self._flooded = False

    def forget(self) -> None:
        """Count from nothing: a person has looked, and says that it may go on."""
        self._slices.clear()
        self._in_a_row = 0
        self._conversations.clear()
        self._flooded = False

    def would_flood(self, conversation_id: str, events: int, now: float) -> bool:
        """Judge events about to be given up, and count them unless they are too many."""
        if not self._flooded:
            in_a_row = self._too_many_in_a_row(conversation_id, events)
            self._flooded = self._too_large_a_share(conversation_id, events, now) or in_a_row
        if self._flooded:
            return True
        self._in_a_row += events
        if self._share is not None:
            self._slice(now).dead += events
        return False

    def _too_many_in_a_row(self, conversation_id: str, events: int) -> bool:
        if self._run is None:
            return False
        if len(self._conversations) < CONVERSATIONS:
            self._conversations.add(conversation_id)
        return self._in_a_row + events > self._run and len(self._conversations) >= CONVERSATIONS

    def _too_large_a_share(self, conversation_id: str, events: int, now: float) -> bool:
        if self._share is None:
            return False
        current = self._slice(now)
        if len(current.conversations) < CONVERSATIONS:
            current.conversations.add(conversation_id)
        recent = [piece for piece in self._slices if piece.start > now - self._width * SLICES]
        dead = events + sum(piece.dead for piece in recent)
        ended = dead + sum(piece.delivered for piece in recent)
        conversations = set().union(*(piece.conversations for piece in recent))
        return dead > self._share * ended and len(conversations) >= CONVERSATIONS

    def _slice(self, now: float) -> _Slice:
        if not self._slices or now - self._slices[-1].start >= self._width:
            self._slices.append(_Slice(now))
        return self._slices[-1]
