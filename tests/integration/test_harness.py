"""The harness itself: a Kafka that is real, and jars that are the locked ones."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from kafka_server import Jar, JvmKafka, KafkaUnavailableError, TamperedJarError, fetch_jars, kafka_version, read_lock

if TYPE_CHECKING:
    from conftest import MakeTopics, Topics
    from kafka_server import KafkaServer


async def produce(kafka: KafkaServer, topic: str, values: list[bytes]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, enable_idempotence=True) as producer:
        for value in values:
            await producer.send_and_wait(topic, value, key=value)


def member(kafka: KafkaServer, topics: Topics) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        topics.events,
        bootstrap_servers=kafka.bootstrap_servers,
        group_id=topics.group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        heartbeat_interval_ms=200,
    )


async def read(consumer: AIOKafkaConsumer, count: int, within_seconds: float = 30) -> set[bytes]:
    seen: list[bytes] = []
    deadline = time.monotonic() + within_seconds
    while len(seen) < count and time.monotonic() < deadline:
        for records in (await consumer.getmany(timeout_ms=200)).values():
            seen += [record.value for record in records]
    return set(seen)


async def until_shared(*members: AIOKafkaConsumer) -> None:
    async with asyncio.timeout(30):
        while not all(each.assignment() for each in members):
            await asyncio.gather(*(each.getmany(timeout_ms=50) for each in members))


async def test_two_members_of_a_group_share_the_partitions_and_read_each_record_once(
    kafka: KafkaServer, topics: MakeTopics
) -> None:
    names = await topics(partitions=4)
    async with member(kafka, names) as one, member(kafka, names) as two:
        await until_shared(one, two)
        values = [b"%d" % number for number in range(100)]
        await produce(kafka, names.events, values)
        partitions = [sorted(each.assignment()) for each in (one, two)]
        assert sorted(partitions[0] + partitions[1]) == [TopicPartition(names.events, n) for n in range(4)]

        seen: list[bytes] = []
        async with asyncio.timeout(30):
            while len(seen) < 100:
                for each in (one, two):
                    for records in (await each.getmany(timeout_ms=50)).values():
                        seen += [record.value for record in records]
        assert sorted(seen) == sorted(values)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_restarted_broker_has_its_address_and_its_data_again(
    kafka: KafkaServer, topics: MakeTopics, end: str
) -> None:
    if not kafka.restartable:
        pytest.skip(f"{kafka.origin} is not ours to restart")
    names = await topics(partitions=1)
    await produce(kafka, names.events, [b"before"])
    address = kafka.bootstrap_servers

    await asyncio.to_thread(getattr(kafka, end))
    assert not kafka.running()
    await asyncio.to_thread(kafka.start)

    assert kafka.bootstrap_servers == address
    await produce(kafka, names.events, [b"after"])
    async with member(kafka, names) as consumer:
        assert await read(consumer, 2) == {b"before", b"after"}


async def test_a_paused_broker_answers_when_it_is_resumed(kafka: KafkaServer, topics: MakeTopics) -> None:
    if not kafka.restartable:
        pytest.skip(f"{kafka.origin} is not ours to pause")
    names = await topics(partitions=1)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        await producer.send_and_wait(names.events, b"before")
        kafka.pause()
        try:
            under_way = await producer.send(names.events, b"meanwhile")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(under_way), 0.5)
        finally:
            kafka.resume()
        assert (await under_way).offset == 1


class Repository:
    """A repository of one jar, on disk."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jar = Jar("org.example", "small", "1.0", hashlib.sha256(b"as locked").hexdigest())
        self.published = folder / "repository" / self.jar.path
        self.published.parent.mkdir(parents=True)
        self.published.write_bytes(b"as locked")
        self.cache = folder / "cache" / "libs"
        monkeypatch.setenv("CONVOY_MAVEN_REPOSITORY", (folder / "repository").as_uri())


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    return Repository(tmp_path, monkeypatch)


def test_a_jar_is_fetched_once_and_verified(repository: Repository) -> None:
    (file,) = fetch_jars([repository.jar], repository.cache)
    repository.published.unlink()
    assert fetch_jars([repository.jar], repository.cache) == [file]
    assert file.read_bytes() == b"as locked"


def test_a_tampered_jar_is_refused_and_leaves_nothing_behind(repository: Repository) -> None:
    repository.published.write_bytes(b"something else")
    with pytest.raises(TamperedJarError, match=r"small-1\.0\.jar"):
        fetch_jars([repository.jar], repository.cache)
    assert [path for path in repository.cache.parent.rglob("*") if path.is_file()] == []


def test_a_jar_damaged_in_the_cache_is_fetched_again(repository: Repository) -> None:
    (file,) = fetch_jars([repository.jar], repository.cache)
    file.write_bytes(b"half a j")
    fetch_jars([repository.jar], repository.cache)
    assert file.read_bytes() == b"as locked"


def test_a_jar_that_cannot_be_fetched_names_its_address(repository: Repository) -> None:
    absent = replace(repository.jar, version="2.0")
    with pytest.raises(KafkaUnavailableError, match=r"small-2\.0\.jar"):
        fetch_jars([absent], repository.cache)


def test_the_lock_names_each_jar_once_and_one_version_of_kafka() -> None:
    jars = read_lock()
    assert len({(jar.group, jar.artifact) for jar in jars}) == len({jar.file for jar in jars}) == len(jars)
    assert {jar.version for jar in jars if jar.group == "org.apache.kafka"} == {kafka_version()}
    assert all(len(jar.sha256) == 64 for jar in jars)


@pytest.mark.parametrize(("required", "outcome"), [(False, "1 skipped"), (True, "1 error")])
def test_no_kafka_is_a_loud_skip_and_a_failure_in_ci(tmp_path: Path, *, required: bool, outcome: str) -> None:
    elsewhere = {
        "DOCKER_HOST": "unix:///nonexistent",
        "CONVOY_CACHE": str(tmp_path),
        "CONVOY_MAVEN_REPOSITORY": tmp_path.as_uri(),
    }
    environment = {name: value for name, value in os.environ.items() if name not in {"CI", "CONVOY_TEST_KAFKA"}}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "-k", "paused"],
        cwd=Path(__file__).parents[2],
        env=environment | elsewhere | ({"CI": "true"} if required else {"CONVOY_REQUIRE_KAFKA": "0"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "NOT TESTED AGAINST A REAL KAFKA" in done.stdout
    assert f"cannot fetch {tmp_path.as_uri()}" in done.stdout
    assert outcome in done.stdout
    assert done.returncode == (1 if required else 0)


def test_the_broker_does_not_outlive_a_process_that_was_killed(kafka: KafkaServer) -> None:
    if not isinstance(kafka, JvmKafka):
        pytest.skip("a container is reaped by testcontainers")
    script = (
        "import os, signal, kafka_server\n"
        "kafka = kafka_server.find_kafka()\n"
        "kafka.start()\n"
        "print(kafka.pid, kafka.folder, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=False
    )
    pid, folder = done.stdout.split()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() or Path(folder).exists():
        assert time.monotonic() < deadline, f"broker {pid} or {folder} is still there"
        time.sleep(0.05)
