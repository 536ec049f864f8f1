"""The broker goes away and comes back, and replicas fall asleep: everything waits, and nothing is said twice."""

from __future__ import annotations

import asyncio
import datetime as dt
import signal
import time
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from conftest import LEDGER_CONFIG, Topics
from fault_run import soak
from kafka_server import create_topics, find_kafka, free_port
from replicas import Fleet, Tap
from service_process import until
from switches import SOAK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import MakeTopics
    from kafka_server import KafkaServer
    from replicas import Replica

SESSION_SECONDS = 3.0
ITEMS_BEFORE = 300
KILLS = int(soak(5, 1))
DRAIN_SECONDS = 4.0
CLOSING_SECONDS = 15.0
"""To leave the group and close three connections, none of which is answered."""


STOPS = [("killed", False), ("hanging", True), *([("killed", True), ("hanging", False)] if SOAK else [])]


async def delivers(replica: Replica) -> None:
    """Wait until it has delivered something from now on."""
    before = await replica.process.metric("delivered_items_total")

    async def more() -> bool:
        return await replica.process.metric("delivered_items_total") > before

    await until(f"replica {replica.number} delivers", more)


def assigned_after(replica: Replica, moment: float) -> float | None:
    """When it was first given partitions after this moment (seconds since the epoch), by its log."""
    times = (
        dt.datetime.fromisoformat(line["time"]).timestamp()
        for line in replica.process.lines()
        if line["message"] == "partitions assigned"
    )
    return next((found for found in times if found > moment), None)


@pytest.mark.parametrize("ledger", [False, True], ids=["no-ledger", "ledger"])
async def test_a_replica_stopped_for_longer_than_its_session_sends_nothing_when_it_wakes(
    kafka: KafkaServer, topics: MakeTopics, tmp_path: Path, *, ledger: bool
) -> None:
    names = await topics(partitions=4)
    settings = {"KAFKA__SESSION_TIMEOUT_SECONDS": str(SESSION_SECONDS), "KAFKA__HEARTBEAT_SECONDS": "0.5"}
    fleet = Fleet(
        kafka.bootstrap_servers, names, tmp_path, replicas=2, ledger=ledger, latency_seconds=0.3, settings=settings
    )
    async with fleet, Tap(fleet.api.port) as tap:
        sleeper, other = fleet.replicas
        fleet.ports[sleeper.number] = tap.port
        await fleet.start()
        # A process that has time to spare hands its bytes to the kernel as soon as it decided to send them.
        async with fleet.load(per_second=300):
            await fleet.shared()
            sight = await sleeper.at_work(ITEMS_BEFORE)
            sleeper.process.signal(signal.SIGSTOP)

            async def has_all() -> bool:
                seen = await other.look()
                return seen is not None and seen.numbers["assigned_partitions"] == fleet.partitions

            await until("the other one takes over", has_all)
            await other.at_work(ITEMS_BEFORE)
            woke_at = time.time()
            sleeper.process.signal(signal.SIGCONT)
            await until("the sleeper is given partitions again", lambda: assigned_after(sleeper, woke_at))
            await fleet.shared()
            await sleeper.at_work(ITEMS_BEFORE)
        back_at = assigned_after(sleeper, woke_at)
        assert back_at is not None
        ended = await fleet.end(
            f"stopped for longer than its session, ledger {'on' if ledger else 'off'}",
            in_flight_when_stopped=sight.in_flight,
            seconds_until_rejoined=round(back_at - woke_at, 2),
        )
        assert sight.numbers["buffered_events"] > 0
        after_waking = [at for at in tap.writes if woke_at <= at < back_at]
        print(f"{len(after_waking)} writes after waking and before its new assignment")  # noqa: T201
        # Between the last look at the lease and the socket lies a moment in which a stop cannot be seen from inside.
        assert len(after_waking) <= 1, after_waking
        assert any(at > back_at for at in tap.writes)
    ended.assert_sound(duplicates=not ledger)


@pytest.fixture(scope="module")
def own_kafka(kafka: KafkaServer) -> Iterator[KafkaServer]:
    """A broker of these tests alone, to be killed. The other one says whether there is any."""
    server = find_kafka(free_port())
    if not server.restartable:
        pytest.skip(f"{server.origin} is not ours to kill")
    with server:
        yield server


@pytest_asyncio.fixture
async def own_topics(own_kafka: KafkaServer) -> MakeTopics:
    async def make(partitions: int = 4) -> Topics:
        await asyncio.to_thread(own_kafka.start)
        fresh = Topics(partitions)
        names = dict.fromkeys(fresh.names, partitions)
        await create_topics(own_kafka.bootstrap_servers, names, {fresh.ledger: LEDGER_CONFIG})
        return fresh

    return make


@pytest.mark.parametrize("ledger", [False, True], ids=["no-ledger", "ledger"])
async def test_a_broker_that_is_killed_and_restarted_under_load_loses_doubles_and_reorders_nothing(
    own_kafka: KafkaServer, own_topics: MakeTopics, tmp_path: Path, *, ledger: bool
) -> None:
    names = await own_topics(partitions=4)
    async with Fleet(own_kafka.bootstrap_servers, names, tmp_path, replicas=2, ledger=ledger) as fleet:
        await fleet.start()
        async with fleet.load():
            for _ in range(KILLS):
                await fleet.shared()
                for replica in fleet.replicas:
                    await replica.at_work(ITEMS_BEFORE)
                await asyncio.to_thread(own_kafka.kill)
                away_at = time.time()
                assert {(await replica.process.get("/livez")).status_code for replica in fleet.replicas} == {200}
                await asyncio.to_thread(own_kafka.start)
                back_at = time.time()
                for replica in fleet.replicas:
                    await delivers(replica)
        ended = await fleet.end(
            f"{KILLS} broker kill(s), ledger {'on' if ledger else 'off'}",
            last_absence=f"{back_at - away_at:.1f} s",
        )
    ended.assert_sound()


@pytest.mark.parametrize(("trouble", "ledger"), STOPS)
async def test_a_process_told_to_stop_while_the_broker_is_away_ends_in_time_and_says_what_it_left(
    own_kafka: KafkaServer, own_topics: MakeTopics, tmp_path: Path, trouble: str, *, ledger: bool
) -> None:
    names = await own_topics(partitions=2)
    settings = {"SHUTDOWN__DRAIN_SECONDS": str(DRAIN_SECONDS)}
    async with Fleet(
        own_kafka.bootstrap_servers, names, tmp_path, replicas=1, ledger=ledger, settings=settings
    ) as fleet:
        (replica,) = fleet.replicas
        await fleet.start()
        async with fleet.load():
            await replica.at_work(ITEMS_BEFORE)
            await asyncio.to_thread(own_kafka.kill if trouble == "killed" else own_kafka.pause)
            told_at = time.monotonic()
            exit_code = await replica.process.stop()
            seconds = time.monotonic() - told_at
            await asyncio.to_thread(own_kafka.start)
        assert exit_code == 1
        assert seconds < DRAIN_SECONDS + CLOSING_SECONDS
        await fleet.start()
        ended = await fleet.end(
            f"told to stop, broker {trouble}, ledger {'on' if ledger else 'off'}", seconds=round(seconds, 1)
        )
    ended.assert_sound(duplicates=not ledger)
