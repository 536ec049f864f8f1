"""The broker goes away and comes back, and replicas fall asleep: everything waits, and nothing is said twice."""

from __future__ import annotations

import datetime as dt
import signal
import time
from typing import TYPE_CHECKING

import pytest
from replicas import Fleet, Tap
from service_process import until

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import MakeTopics
    from kafka_server import KafkaServer
    from replicas import Replica

SESSION_SECONDS = 3.0
ITEMS_BEFORE = 300


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
    fleet = Fleet(kafka.bootstrap_servers, names, tmp_path, replicas=2, ledger=ledger, settings=settings)
    async with fleet, Tap(fleet.api.port) as tap:
        sleeper, other = fleet.replicas
        fleet.ports[sleeper.number] = tap.port
        await fleet.start()
        async with fleet.load():
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
        assert [at for at in tap.writes if woke_at <= at < back_at] == []
        assert any(at > back_at for at in tap.writes)
    ended.assert_sound(duplicates=not ledger)
