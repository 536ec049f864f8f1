"""Replicas that come, go and are restarted under load: nothing lost, doubled or out of order, and nobody waits long."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fault_run import soak
from replicas import Fleet
from service_process import until

from service.emulator.faults import FaultScript, Rule, Status

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import MakeTopics
    from kafka_server import KafkaServer

OUTAGE = FaultScript(rules=(Rule(Status(status=503, form="html")),))
RESTARTS = int(soak(20, 3))
ITEMS_BETWEEN = 300
"""What a replica delivers between two restarts, at least, so that each of them meets work."""


@pytest.mark.parametrize(
    ("ledger", "static"),
    [(False, True), (False, False), (True, True)],
    ids=["static-members", "dynamic-members", "ledger"],
)
async def test_rolling_restarts_under_load_lose_double_and_reorder_nothing(
    kafka: KafkaServer, topics: MakeTopics, tmp_path: Path, *, ledger: bool, static: bool
) -> None:
    names = await topics(partitions=6)
    async with Fleet(kafka.bootstrap_servers, names, tmp_path, replicas=3, ledger=ledger, static=static) as fleet:
        await fleet.start()
        async with fleet.load():
            for restart in range(RESTARTS):
                await fleet.shared()
                replica = fleet.replicas[restart % 3]
                await replica.at_work(ITEMS_BETWEEN)
                assert await replica.process.stop() == 0
                await replica.start()
                await replica.process.ready()
        how = "static" if static else "dynamic"
        ended = await fleet.end(f"{RESTARTS} rolling restarts, {how} members, ledger {'on' if ledger else 'off'}")
    ended.assert_sound()
    assert ended.report.duplicate_replies.count == 0


async def test_one_replica_joins_and_one_leaves_under_load_and_nothing_is_lost_doubled_or_out_of_order(
    kafka: KafkaServer, topics: MakeTopics, tmp_path: Path
) -> None:
    names = await topics(partitions=6)
    async with Fleet(kafka.bootstrap_servers, names, tmp_path, replicas=3, static=False) as fleet:
        leaving, staying, joining = fleet.replicas
        await fleet.start(0, 1)
        async with fleet.load():
            await fleet.shared()
            await leaving.at_work(ITEMS_BETWEEN)
            await staying.at_work(ITEMS_BETWEEN)
            await joining.start()
            await fleet.shared()
            await joining.at_work(ITEMS_BETWEEN)
            assert await leaving.process.stop() == 0
            await fleet.shared()
            await joining.at_work(ITEMS_BETWEEN)
        ended = await fleet.end("one replica joins, one leaves")
    ended.assert_sound()
    assert ended.report.duplicate_replies.count == 0


async def test_a_rebalance_while_the_api_is_away_does_not_make_its_absence_last(
    kafka: KafkaServer, topics: MakeTopics, tmp_path: Path
) -> None:
    names = await topics(partitions=4)
    # What is of unknown fate cannot be settled while the API is away, so that a drain takes all it may.
    drain = {"SHUTDOWN__DRAIN_SECONDS": "3"}
    async with Fleet(kafka.bootstrap_servers, names, tmp_path, replicas=2, static=False, settings=drain) as fleet:
        first, second = fleet.replicas
        await fleet.start(0)
        async with fleet.load(conversations=100, per_second=200):
            await first.at_work(ITEMS_BETWEEN)
            await fleet.api.play(OUTAGE)

            async def open_circuit() -> bool:
                return await first.process.metric("circuit_state") == 1

            await until("an open circuit", open_circuit)
            await second.start()
            await fleet.shared()
            await fleet.api.play(FaultScript())
            await first.at_work(ITEMS_BETWEEN)
            await second.at_work(ITEMS_BETWEEN)
        ended = await fleet.end("a rebalance while the API is away")
    ended.assert_sound()
