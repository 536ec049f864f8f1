"""What this process may believe of its place in the group, and whether its consumer is polled.

Decides one thing: until when it may act as the owner of its partitions. Without a heartbeat for a session, the
group hands them on; a process that was stopped, or cut off, and wakes does not learn of it before its next
heartbeat is answered, and must not send anything until then.

aiokafka tells neither. So its consumer is watched from outside: what it asks of the coordinator, and each poll.
The lease counts from when the request *left* that the coordinator accepted: it counts the session from when it
came in, and what happens to the answer on its way does not matter. Should a later aiokafka go another way, there is
never a lease and nothing is ever sent: every test notices.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from aiokafka import errors
from aiokafka.protocol.group import HeartbeatRequest, SyncGroupRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiokafka import AIOKafkaConsumer

    from service.settings import KafkaSettings

MARGIN = 0.2
"""Of the session time-out: what may pass between the last look at the lease and the first byte of a request."""
A_MEMBER = frozenset({errors.NoError.errno, errors.RebalanceInProgressError.errno})
"""While others join, a member that drains is still one."""
FENCED_INSTANCE_ID = 82
"""Kafka's; aiokafka has no name for it."""
NO_MEMBER = frozenset({errors.UnknownMemberIdError.errno, errors.IllegalGenerationError.errno, FENCED_INSTANCE_ID})
"""The group went on without us; others may own what was ours. All other errors say nothing about it."""


class Membership:
    """What is known of one consumer's membership and polls.

    ``boot_clock`` goes on while the machine sleeps, as the broker's does. ``broken`` is told when the consumer can
    do nothing any more.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        clock: Callable[[], float],
        boot_clock: Callable[[], float],
        *,
        broken: Callable[[BaseException], None],
    ) -> None:
        self._lease_seconds = settings.session_timeout_seconds * (1 - MARGIN)
        self._rebalance_seconds = settings.rebalance_timeout_seconds
        self._clock = clock
        self._boot_clock = boot_clock
        self._broken = broken
        self._accepted_at = -math.inf
        self._member_since = -math.inf
        self._poll_began: float | None = None
        self._polled_at: float | None = None

    def watch(self, consumer: AIOKafkaConsumer) -> None:
        """Note what this consumer, not started yet, asks of its coordinator, and when it is polled."""
        client = consumer._client  # noqa: SLF001 - nothing public sees a heartbeat
        send, getmany = client.send, consumer.getmany

        async def watched_send(node_id: int, request: Any, **options: Any) -> Any:
            asked_at = self._boot_clock()
            answer = await send(node_id, request, **options)
            if isinstance(request, HeartbeatRequest | SyncGroupRequest):
                self.answered(answer.error_code, asked_at)
            return answer

        async def watched_getmany(*places: Any, **options: Any) -> Any:
            self.poll_begins()
            try:
                records = await getmany(*places, **options)
            except errors.KafkaError as error:
                # No kind of its own: what aiokafka did not expect. Its coordination is over, and no poll will succeed.
                if type(error) is errors.KafkaError:
                    self._broken(error)
                raise
            finally:
                self._poll_began = None
            self._polled_at = self._clock()
            return records

        client.send, consumer.getmany = watched_send, watched_getmany

    def answered(self, error_code: int, asked_at: float) -> None:
        """Note what the coordinator said to a heartbeat or a sync that left at ``asked_at`` by the boot clock."""
        if error_code in NO_MEMBER:
            self._accepted_at = -math.inf
        elif error_code in A_MEMBER:
            if not self.lease_valid():
                self._member_since = self._clock()
            self._accepted_at = max(self._accepted_at, asked_at)

    def lease_valid(self) -> bool:
        """Whether nobody else can have been given our partitions yet."""
        return self._boot_clock() - self._accepted_at <= self._lease_seconds

    # Polls

    def poll_begins(self) -> None:
        """Note that the consumer is asked for records."""
        self._poll_began = self._clock()
        if self._polled_at is None:
            self._polled_at = self._poll_began

    def idle_seconds(self, now: float) -> float:
        """How long there was no poll although nothing stood in its way; 0 before the first.

        A poll lasts as long as a rebalance does, and there is none to be made while no broker answers.
        """
        if self._poll_began is not None:
            if not self.lease_valid():
                return 0.0
            return max(0.0, now - max(self._poll_began, self._member_since) - self._rebalance_seconds)
        return 0.0 if self._polled_at is None else now - self._polled_at
