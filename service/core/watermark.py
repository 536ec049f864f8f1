"""The next position one partition may commit.

Decides nothing but this: the first offset that was received and has no stored outcome yet, or,
when none is open, the offset after the last one received. Only offsets really received are tracked,
so gaps in the log (compaction, transaction markers, aborted records) need no care.
"""

from __future__ import annotations

from collections import deque


class Watermark:
    """Offsets of one partition: received in rising order, settled in any order."""

    __slots__ = ("_open", "_settled", "position")

    def __init__(self) -> None:
        self._open: deque[int] = deque()
        self._settled: set[int] = set()
        self.position: int | None = None
        """What may be committed: everything below has a stored outcome. ``None`` before the first record."""

    def __len__(self) -> int:
        """Offsets received and not yet below the position: the uncommitted ones."""
        return len(self._open)

    @property
    def above(self) -> set[int]:
        """Offsets above the position that are settled; not to be changed."""
        return self._settled

    def received(self, offset: int) -> None:
        """Note a record; ``offset`` must be above all offsets received before."""
        if not self._open:
            self.position = offset
        self._open.append(offset)

    def settle(self, *offsets: int) -> None:
        """Note that the outcome of each of these is stored."""
        settled = self._settled
        settled.update(offsets)
        waiting = self._open
        if waiting[0] not in settled:
            return
        while waiting and waiting[0] in settled:
            offset = waiting.popleft()
            settled.remove(offset)
        self.position = waiting[0] if waiting else offset + 1
