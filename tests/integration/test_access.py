"""What brokers are asked about topics and rights, and that asking changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from service.kafka import access
from service.kafka.access import Missing, Right, Topic, opened
from service.settings import KafkaSettings

if TYPE_CHECKING:
    from conftest import MakeTopics
    from kafka_server import KafkaServer


@pytest.mark.parametrize("old", [False, True], ids=["a broker of today", "a broker that tells no rights"])
async def test_a_topic_is_described_and_one_that_is_not_there_is_not_made(
    kafka: KafkaServer, topics: MakeTopics, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    if old:
        for request in (access._MetadataRequest, access._DescribeGroupsRequest):
            monkeypatch.setattr(request, "API_VERSION", 99)
    made = await topics(3)
    absent = f"{made.prefix}.absent"
    async with opened(KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)) as asking:
        for _ in range(2):
            found = await asking.topics([made.events, absent])
            topic = found[made.events]
            assert isinstance(topic, Topic)
            assert (topic.partitions, topic.leaderless, topic.least_copies) == (3, (), 1)
            assert topic.rights == (None if old else frozenset(Right))
            assert topic.may(Right.WRITE)
            assert found[absent] == Missing("topic", absent, None)
        assert await asking.group_rights(made.group) == (None if old else {Right.READ, Right.DESCRIBE})
        wanted = {made.events: [Right.READ], absent: [Right.WRITE]}
        assert [str(gap) for gap in await asking.missing(wanted, made.group)] == [
            f"topic {absent} (create it: convoy topics)"
        ]
