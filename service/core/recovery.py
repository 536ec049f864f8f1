"""What is done with events that an earlier owner of the partition may have begun.

Decides, for each event fetched after a take-over, whether the ledger knows its outcome already, whether it
belongs to an attempt that was left open, or whether it is simply new. Pure; the grouper gets what is to be sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.core.model import Unsettled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.core.grouper import Grouper, Partition
    from service.core.ledger import Intent, Past, Settled
    from service.core.model import Event


class Recovery:
    """The past of one partition, used up event by event.

    ``started`` gives, in the clock of this process, when the attempt of an open intent began at the latest.
    """

    __slots__ = ("_ends", "_grouper", "_held", "_open", "_partition", "_settled", "_started", "_until", "over")

    def __init__(self, grouper: Grouper, partition: Partition, past: Past, started: Mapping[str, float]) -> None:
        self._grouper = grouper
        self._partition = partition
        # An intent about events below the position is of a topic that has been made anew.
        self._open: dict[str, Intent] = {
            conversation_id: intent
            for conversation_id, intent in past.open.items()
            if intent.events[0][0] >= past.position
        }
        self._ends = sorted(
            ((intent.events[-1][0], conversation_id) for conversation_id, intent in self._open.items()), reverse=True
        )
        """By falling offset, where the open intents end: behind it, nothing of theirs can come any more."""
        self._settled: Mapping[int, Settled] = past.settled
        self._started = started
        self._held: dict[str, list[Event]] = {}
        """First events of conversations with an open intent, until it is known whether they are the intent's."""
        self._until = max([end for end, _ in self._ends[:1]] + list(self._settled), default=-1)
        self.over = self._until < 0
        """Whether nothing of the past is left to be matched."""

    def admit(self, event: Event, now: float) -> Settled | None:
        """Take in an event: returns its outcome if it has one, else hands it to the grouper in its turn."""
        settled = self._settled.get(event.offset)
        conversation_id = event.conversation_id
        if settled is not None and settled.digest == event.digest:
            self._partition.receive(event)
        elif conversation_id in self._open:
            settled = None
            self._partition.receive(event)
            event.read_at = now
            self._held.setdefault(conversation_id, []).append(event)
            if not _names(self._open[conversation_id], event):
                self._release(conversation_id)
        else:
            settled = None
            self._grouper.add(self._partition, event, now)
        self.passed(event.offset)
        return settled

    def passed(self, offset: int) -> None:
        """Note that every record up to ``offset`` was read: of an intent that ends there, no more events will come."""
        while self._ends and self._ends[-1][0] <= offset:
            _, conversation_id = self._ends.pop()
            if conversation_id in self._open:
                self._release(conversation_id)
        self.over = offset >= self._until

    def _release(self, conversation_id: str) -> None:
        """Let go on what waits: the events that are the intent's are settled, before the others are sent."""
        intent = self._open.pop(conversation_id)
        held = self._held.pop(conversation_id, [])
        attempted = [event for event in held if _names(intent, event)]
        if attempted:
            unsettled = Unsettled(self._started[conversation_id], intent.after, last_word=False)
            self._grouper.resume(self._partition, attempted, unsettled)
        for event in held[len(attempted) :]:
            self._grouper.enqueue(self._partition, event, event.read_at)


def _names(intent: Intent, event: Event) -> bool:
    return (event.offset, event.digest) in intent.events
