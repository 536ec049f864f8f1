"""What is done with events that an earlier owner of the partition may have begun.

Decides, for each event fetched after a take-over, whether the ledger knows its outcome already, whether it
belongs to an attempt that was left open, or whether it is simply new. Pure; the grouper gets what is to be sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.core.ledger import first_waiting_match
from service.core.model import Unsettled

if TYPE_CHECKING:
    from service.core.grouper import Grouper, Partition
    from service.core.ledger import Intent, Past, Settled
    from service.core.model import Event


class Recovery:
    """The past of one partition, used up event by event.

    ``started`` gives, in the clock of this process, when the attempt of an open intent began at the latest.
    """

    __slots__ = ("_grouper", "_held", "_open", "_partition", "_settled", "_started")

    def __init__(self, grouper: Grouper, partition: Partition, past: Past, started: dict[str, float]) -> None:
        self._grouper = grouper
        self._partition = partition
        self._open: dict[str, Intent] = dict(past.open)
        self._settled: dict[int, Settled] = dict(past.settled)
        self._started = started
        self._held: dict[str, list[Event]] = {}
        """First events of conversations with an open intent, until it is known whether they are the intent's."""

    @property
    def over(self) -> bool:
        """Whether nothing of the past is left to be matched."""
        return not self._open and not self._settled

    def admit(self, event: Event, now: float) -> Settled | None:
        """Take in an event: returns its outcome if it has one, else hands it to the grouper in its turn."""
        settled = self._settled.pop(event.offset, None)
        if settled is not None and settled.digest == event.digest:
            self._partition.receive(event)
            return settled
        conversation_id = event.conversation_id
        intent = self._open.get(conversation_id)
        if intent is None:
            self._grouper.add(self._partition, event, now)
            return None
        self._partition.receive(event)
        event.read_at = now
        held = self._held.setdefault(conversation_id, [])
        held.append(event)
        matches = first_waiting_match(intent, [(waiting.offset, waiting.digest) for waiting in held])
        if matches is None:
            return None
        del self._open[conversation_id], self._held[conversation_id]
        if matches:
            unsettled = Unsettled(self._started[conversation_id], intent.after, last_word=False)
            self._grouper.resume(self._partition, held, unsettled)
        else:
            for waiting in held:
                self._grouper.enqueue(self._partition, waiting, waiting.read_at)
        return None
