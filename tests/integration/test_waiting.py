"""What the service waits for at its start, and what it says meanwhile."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

import pytest
from conftest import Topics
from kafka_server import JvmKafka, create_topics, find_kafka, free_port
from service_process import API_KEY, ServiceProcess, Trial, chat, until

from service.emulator.server import EmulatorServer

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import MakeTrial
    from kafka_server import KafkaServer


async def test_a_broker_that_comes_up_after_the_service_is_waited_for(kafka: KafkaServer, tmp_path: Path) -> None:
    late = find_kafka(free_port())
    if not late.restartable:
        pytest.skip(f"{late.origin} is not ours to start")
    if isinstance(late, JvmKafka):
        late._heap_megabytes = 256
    try:
        async with EmulatorServer(key=API_KEY, create_on_write=True) as api:
            run = Trial(late.bootstrap_servers, Topics(2), api, tmp_path)
            async with run.process() as service:
                await until("its HTTP", service.answers)
                waiting = await until("a word of the broker", lambda: _waiting_for(service, "broker"))
                assert waiting.startswith(f"waiting for a broker: {late.bootstrap_servers} cannot be reached")
                assert (await service.get("/livez")).status_code == 200
                assert await service.metric("assigned_partitions") == 0
                assert await service.metric("build_info") == 1
                assert (await service.status())["ready"]["status"].startswith("waiting for a broker")

                await asyncio.to_thread(late.start)
                await until("a word of the topic", lambda: _waiting_for(service, f"topic {run.topics.replies}"))
                await create_topics(late.bootstrap_servers, dict.fromkeys(run.topics.names, 2))
                await service.ready()
                count = await run.publish(chat(conversations=10, turns=10))
                await run.finished()
                assert await service.stop() == 0
            report = await run.audit()
            assert report.content, report.lines()
            assert report.delivered == count
    finally:
        await asyncio.to_thread(late.close)


async def test_a_process_told_to_stop_while_it_waits_for_a_broker_stops_at_once(tmp_path: Path) -> None:
    settings = {"KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}", "API__KEY": API_KEY}
    async with ServiceProcess(settings, tmp_path) as service:
        await until("its HTTP", service.answers)
        await until("a word of the broker", lambda: _waiting_for(service, "broker"))
        assert await service.stop(within_seconds=10) == 0
        assert [line["message"] for line in service.lines() if line["level"] == "warning"][:1] == ["waiting"]
        assert "Traceback" not in service.log()
        assert "ResourceWarning" not in service.log()


async def test_missing_topics_are_named_until_they_are_there(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    names = Topics(1)
    settings = {
        "KAFKA__EVENTS_TOPIC": names.events,
        "KAFKA__REPLY_TOPIC": names.replies,
        "KAFKA__DEAD_LETTER_TOPIC": names.dead_letters,
        "KAFKA__GROUP_ID": names.group,
    }
    async with run.process(**settings) as service:
        await until("its HTTP", service.answers)
        order = [names.replies, names.dead_letters, names.events]
        for number, topic in enumerate(order):
            missing = "; ".join(f"topic {name} (create it: convoy topics)" for name in order[number:])
            await until(missing, functools.partial(_waiting_for, service, f"waiting for {missing}"))
            if topic is names.events:
                # By the very command it names; those that exist are left as they are.
                async with run.process(command=("convoy", "topics"), **settings) as command:
                    assert await command.ended() == 0
                    assert f"{names.events}: created" in command.log()
                    assert f"{names.replies}: exists" in command.log()
            else:
                await create_topics(run.bootstrap_servers, {topic: 1})
        await service.ready()
        assert await service.stop() == 0


async def _waiting_for(service: ServiceProcess, what: str) -> str:
    code, words = await service.readiness()
    return words.split(" (K")[0] if code == 503 and what in words else ""
