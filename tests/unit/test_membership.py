"""Until when a process may act as the owner of its partitions, and what counts as a consumer that hangs."""

from __future__ import annotations

import math
from typing import Any

import pytest
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    IllegalGenerationError,
    KafkaError,
    UnknownMemberIdError,
)
from aiokafka.protocol.group import HeartbeatRequest, SyncGroupRequest

from service.kafka.membership import Membership
from service.settings import KafkaSettings

SESSION_SECONDS = 10.0
LEASE_SECONDS = 8.0
OK = 0
REBALANCING = 27


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Answer:
    def __init__(self, error_code: int) -> None:
        self.error_code = error_code


class Client:
    """Answers each request with the code that stands here, and takes its time."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.code = OK
        self.takes_seconds = 0.0

    async def send(self, node_id: int, request: Any, *, group: int = 0) -> Answer:
        self.clock.now += self.takes_seconds
        return Answer(self.code)


class Consumer:
    def __init__(self, clock: Clock) -> None:
        self._client = Client(clock)
        self.error: Exception | None = None

    async def getmany(self, *places: Any, timeout_ms: int = 0) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return {}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def membership(clock: Clock) -> Membership:
    settings = KafkaSettings(session_timeout_seconds=SESSION_SECONDS, rebalance_timeout_seconds=60)
    return Membership(settings, clock, clock, broken=lambda error: pytest.fail(repr(error)))


@pytest.fixture
def consumer(clock: Clock, membership: Membership) -> Consumer:
    made = Consumer(clock)
    membership.watch(made)
    return made


HEARTBEAT = HeartbeatRequest("group", 1, "member")


def test_nobody_owns_anything_before_the_group_says_so(membership: Membership) -> None:
    assert not membership.lease_valid()


async def test_a_sync_and_every_heartbeat_begin_the_lease_anew(
    membership: Membership, consumer: Consumer, clock: Clock
) -> None:
    await consumer._client.send(1, SyncGroupRequest("group", 1, "member", None, []))
    clock.now += LEASE_SECONDS
    assert membership.lease_valid()
    await consumer._client.send(1, HEARTBEAT)
    clock.now += LEASE_SECONDS
    assert membership.lease_valid()
    clock.now += 0.1
    assert not membership.lease_valid()


async def test_the_lease_counts_from_when_the_heartbeat_left_not_from_when_its_answer_was_read(
    membership: Membership, consumer: Consumer, clock: Clock
) -> None:
    consumer._client.takes_seconds = LEASE_SECONDS + 0.1
    await consumer._client.send(1, HEARTBEAT)
    assert not membership.lease_valid()


async def test_a_member_that_drains_while_others_join_keeps_its_lease(
    membership: Membership, consumer: Consumer
) -> None:
    consumer._client.code = REBALANCING
    await consumer._client.send(1, HEARTBEAT)
    assert membership.lease_valid()


@pytest.mark.parametrize("code", [UnknownMemberIdError.errno, IllegalGenerationError.errno, 82])
async def test_who_is_told_that_it_is_no_member_owns_nothing_from_then_on(
    membership: Membership, consumer: Consumer, code: int
) -> None:
    await consumer._client.send(1, HEARTBEAT)
    consumer._client.code = code
    await consumer._client.send(1, HEARTBEAT)
    assert not membership.lease_valid()


async def test_a_coordinator_that_is_away_neither_ends_the_lease_nor_makes_it_longer(
    membership: Membership, consumer: Consumer, clock: Clock
) -> None:
    await consumer._client.send(1, HEARTBEAT)
    clock.now += LEASE_SECONDS - 1
    consumer._client.code = GroupCoordinatorNotAvailableError.errno
    await consumer._client.send(1, HEARTBEAT)
    assert membership.lease_valid()
    clock.now += 1.1
    assert not membership.lease_valid()


async def test_other_requests_say_nothing_of_the_membership(membership: Membership, consumer: Consumer) -> None:
    await consumer._client.send(1, object())
    assert not membership.lease_valid()


def test_a_consumer_that_was_never_polled_does_not_hang(membership: Membership, clock: Clock) -> None:
    assert membership.idle_seconds(clock.now + 1000) == 0


async def test_a_consumer_hangs_for_as_long_as_nobody_polls_it(
    membership: Membership, consumer: Consumer, clock: Clock
) -> None:
    await consumer.getmany(timeout_ms=10)
    clock.now += 30
    assert membership.idle_seconds(clock.now) == 30
    await consumer.getmany(timeout_ms=10)
    assert membership.idle_seconds(clock.now) == 0


async def test_a_poll_that_fails_again_and_again_is_none(
    membership: Membership, consumer: Consumer, clock: Clock
) -> None:
    consumer.error = RuntimeError("the coordinator is gone for good")
    for _ in range(5):
        with pytest.raises(RuntimeError):
            await consumer.getmany()
        clock.now += 5
    assert membership.idle_seconds(clock.now) == 25


def test_a_poll_may_last_as_long_as_a_rebalance_and_no_longer_while_the_group_answers(
    membership: Membership, clock: Clock
) -> None:
    membership.poll_begins()
    for _ in range(20):
        membership.answered(OK, clock.now)
        clock.now += 5
    assert membership.idle_seconds(clock.now) == 100 - 60


def test_a_poll_may_last_for_ever_while_no_broker_answers_and_is_not_held_against_it_afterwards(
    membership: Membership, clock: Clock
) -> None:
    membership.answered(OK, clock.now)
    membership.poll_begins()
    clock.now += 10_000
    assert membership.idle_seconds(clock.now) == 0
    membership.answered(OK, clock.now)
    assert membership.idle_seconds(clock.now) == 0
    assert membership.idle_seconds(math.nextafter(clock.now + 60, math.inf)) < 1


async def test_a_consumer_whose_coordination_is_over_is_told_to_be_broken_and_one_in_trouble_is_not(
    clock: Clock,
) -> None:
    told: list[BaseException] = []
    membership = Membership(KafkaSettings(), clock, clock, broken=told.append)
    for error in (GroupCoordinatorNotAvailableError(), KafkaError("Unexpected error during coordination")):
        failing: Any = Consumer(clock)
        failing.error = error
        membership.watch(failing)
        with pytest.raises(type(error)):
            await failing.getmany()
    assert [type(error) for error in told] == [KafkaError]
