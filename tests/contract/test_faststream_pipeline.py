"""What the intake relies on in FastStream: from a poll to the handler nothing suspends, and no header is looked at.

A rebalance runs in another task. If the pipeline ever suspended between aiokafka's `getmany` and the place of an
event in a lane, a partition could be given up, committed and handed on in between, its records still on their way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import ConsumerStoppedError
from pydantic import SecretStr

from service.app import Service
from service.settings import ApiSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from service.core.grouper import Partition
    from service.core.model import Refusal

TOPIC = "conversation.events"
HEADERS = (
    ("kafka_correlationId", b"\x00\xff\xfe"),
    ("nothing", None),
    ("reply_to", b"\xff"),
    ("content-type", b"\x80"),
)


def record(offset: int, value: bytes | None, headers: Any = HEADERS, partition: int = 0) -> ConsumerRecord[Any, Any]:
    size = len(value or b"")
    return ConsumerRecord(TOPIC, partition, offset, 1_700_000_000_000, 0, b"conv_1", value, None, 6, size, headers)


def event(text: str) -> bytes:
    return b'{"conversation_id":"conv_1","role":"user","content":"%b"}' % text.encode()


class Parts:
    """The parts of a service that is not connected to anything, and what its intake did."""

    def __init__(self) -> None:
        self.refused: list[Refusal] = []
        self.errors: list[BaseException] = []
        self.arrivals = 0
        service = Service(Settings(api=ApiSettings(key=SecretStr("k"))))
        self.grouper = service.grouper
        self.intake = service.intake
        self.intake._refuse = self._refuse
        self.intake._arrived = self._arrived
        self.intake._fatal = self.errors.append
        self.subscriber = self.intake._subscriber
        # What the broker does at its start, but for the connection.
        self.intake.broker._setup_logger()
        self.subscriber._build_fastdepends_model()
        self.subscriber._post_start()
        self.partition = self.grouper.assign(0)

    def _refuse(self, partition: Partition, refusal: Refusal) -> None:
        self.refused.append(refusal)

    def _arrived(self) -> None:
        self.arrivals += 1

    @property
    def waiting(self) -> list[Any]:
        lane = self.partition.lanes.get("conv_1")
        return [] if lane is None else lane.waiting


def run_without_suspending(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in one step; one that wants to wait fails."""
    try:
        suspended_for = work.send(None)
    except StopIteration as end:
        return end.value
    work.close()
    pytest.fail(f"suspended for {suspended_for!r}")


async def test_consuming_a_batch_never_suspends_and_reaches_the_lane() -> None:
    parts = Parts()
    records = tuple(record(offset, event(str(offset))) for offset in range(100))
    run_without_suspending(parts.subscriber.consume(records))
    assert [waiting.offset for waiting in parts.waiting] == list(range(100))
    assert (parts.arrivals, parts.errors, parts.refused) == (1, [], [])


async def test_headers_that_are_binary_or_null_reach_the_event_as_they_are() -> None:
    parts = Parts()
    run_without_suspending(parts.subscriber.consume((record(0, event("one")), record(1, event("two"), ()))))
    assert [waiting.headers for waiting in parts.waiting] == [HEADERS, ()]


async def test_whatever_a_record_holds_the_pipeline_neither_suspends_nor_swallows_it() -> None:
    parts = Parts()
    values = [b"", b"\xff", b"{", None, b"[]", event("ok"), b"null", b"[" * 100_000, event("also ok")]
    run_without_suspending(parts.subscriber.consume(tuple(map(record, range(len(values)), values))))
    assert [refusal.offset for refusal in parts.refused] == [0, 1, 2, 4, 6, 7]
    assert [waiting.offset for waiting in parts.waiting] == [5, 8]
    assert parts.errors == []


async def test_an_error_in_the_handler_ends_the_process_and_is_not_swallowed() -> None:
    parts = Parts()
    broken = RuntimeError("broken")

    def refuse(partition: Partition, refusal: Refusal) -> None:
        raise broken

    parts.intake._refuse = refuse
    run_without_suspending(parts.subscriber.consume((record(0, b"no event"),)))
    assert parts.errors == [broken]


async def test_from_the_poll_to_the_handler_the_consume_loop_never_suspends() -> None:
    parts = Parts()

    class Polled:
        """A consumer with two polls' worth of records at hand, then stopped."""

        def __init__(self) -> None:
            self.polls = [[record(0, event("one")), record(1, event("two"))], [record(2, event("three"))]]

        async def getmany(self, **_: Any) -> dict[TopicPartition, list[ConsumerRecord[Any, Any]]]:
            if not self.polls:
                raise ConsumerStoppedError
            return {TopicPartition(TOPIC, 0): self.polls.pop(0)}

    run_without_suspending(parts.subscriber._run_consume_loop(Polled()))
    assert [waiting.offset for waiting in parts.waiting] == [0, 1, 2]
    assert parts.arrivals == 2


async def test_records_of_a_partition_that_is_not_ours_or_is_drained_are_left_to_its_next_owner() -> None:
    parts = Parts()
    run_without_suspending(parts.subscriber.consume((record(0, event("one")), record(0, event("theirs"), partition=1))))
    parts.grouper.drain(0)
    run_without_suspending(parts.subscriber.consume((record(1, event("late")),)))
    assert [waiting.offset for waiting in parts.waiting] == [0]
    assert parts.partition.watermark.position == 0


async def test_what_an_earlier_owner_settled_above_the_position_is_not_taken_again() -> None:
    parts = Parts()
    parts.intake._recalled[0] = (10, {11, 13})
    run_without_suspending(parts.subscriber.consume(tuple(record(offset, event("x")) for offset in range(10, 15))))
    assert [waiting.offset for waiting in parts.waiting] == [10, 12, 14]
    parts.partition.settle([parts.waiting[0]])
    assert parts.partition.watermark.position == 12


async def test_a_log_that_begins_below_the_position_is_another_one_and_is_taken_whole() -> None:
    parts = Parts()
    parts.intake._recalled[0] = (10, {11, 13})
    run_without_suspending(parts.subscriber.consume(tuple(record(offset, event("x")) for offset in range(9, 15))))
    assert [waiting.offset for waiting in parts.waiting] == list(range(9, 15))
