"""The ledger in an operator's hands: its topic, switching it on and off, and a gap that has to be accepted."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError
from conftest import LEDGER_CONFIG, Topics
from kafka_server import create_topics, delete_topics
from service_process import chat, until

from service.kafka.reading import read_topic

if TYPE_CHECKING:
    from conftest import MakeTrial
    from service_process import ServiceProcess, Trial


async def test_the_topics_command_gives_each_events_partition_its_twin(trial: MakeTrial) -> None:
    run = await trial(partitions=3)
    ledger = Topics(3).ledger
    command = ("convoy", "topics", "--partitions", "7")
    async with run.process(command=command, KAFKA__LEDGER_TOPIC=ledger) as created:
        assert await created.ended() == 0
        assert f"{ledger}: created" in created.log()
    admin = AIOKafkaAdminClient(bootstrap_servers=run.bootstrap_servers)
    await admin.start()
    try:
        (described,) = await admin.describe_topics([ledger])
        (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, ledger)])
    finally:
        await admin.close()
    configs = {entry[0]: entry[1] for *_, entries in answer.resources for entry in entries}
    assert len(described["partitions"]) == 3
    assert LEDGER_CONFIG.items() <= configs.items()


async def _through(run: Trial, first: int, **settings: str) -> None:
    """Publish some turns more, and have a process of its own deliver them and stop."""
    await run.publish(chat(conversations=6, turns=5, first=first))
    async with run.process(**settings) as service:
        await service.ready()
        await run.finished()
        assert await service.stop() == 0


async def test_a_ledger_is_switched_on_off_and_on_again_and_nothing_is_sent_twice(trial: MakeTrial) -> None:
    run = await trial(partitions=2)
    ledger = {"KAFKA__LEDGER_TOPIC": run.topics.ledger}
    for turn, settings in enumerate(({}, ledger, {}, ledger)):
        await _through(run, first=5 * turn, **settings)
    kinds = [
        record.value.split(b'"', 4)[3]
        async for records in read_topic(run.kafka, run.topics.ledger)
        for record in records
        if record.value is not None
    ]
    assert kinds.count(b"intent") == kinds.count(b"outcome") > 0
    report = await run.audit()
    assert report.content, report.lines()
    assert (report.delivered, report.duplicate_replies.count, report.uncommitted) == (120, 0, 0)


async def _made_anew(run: Trial) -> None:
    await delete_topics(run.bootstrap_servers, [run.topics.ledger])

    async def created() -> bool:
        with contextlib.suppress(TopicAlreadyExistsError):
            await create_topics(run.bootstrap_servers, {run.topics.ledger: 1}, {run.topics.ledger: LEDGER_CONFIG})
            return True
        return False

    await until("the deletion of the old topic", created)


async def _refuses(service: ServiceProcess) -> bool:
    code, words = await service.readiness()
    return code == 503 and "partition 0: ledger_gap" in words


async def test_a_ledger_made_anew_stops_the_partition_until_it_is_accepted_once(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    ledger = {"KAFKA__LEDGER_TOPIC": run.topics.ledger}
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    await _through(run, first=0, **ledger)
    await _made_anew(run)
    await run.publish(chat(conversations=6, turns=5, first=5))
    async with run.process(**ledger) as service:
        await until("the gap in the readiness", lambda: _refuses(service))
        assert await service.metric("delivered_items_total") == 0
        assert await service.stop() == 0
    await _through(run, first=10, **ledger, KAFKA__LEDGER_ACCEPT_GAP=soon)
    await _through(run, first=15, **ledger)
    report = await run.audit()
    assert report.content, report.lines()
    assert (report.delivered, report.duplicate_replies.count) == (120, 0)
