"""Where replies go: to who asked, if it may be asked for, and never anywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from service.kafka.routing import Destination, Router
from service.ops.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.kafka.codec import Headers
    from service.kafka.outlet import Outlet

ONE = (1).to_bytes(4, "big")


class KnownTopics:
    """As much of an outlet as a router asks."""

    def partitions_of(self, topic: str) -> Sequence[int]:
        return {"replies": (0, 1, 2), "mine": (0, 1)}.get(topic, ())


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def router(metrics: Metrics) -> Router:
    return Router("replies", frozenset({"mine", "gone"}), cast("Outlet", KnownTopics()), metrics)


def counted(metrics: Metrics) -> dict[str, float]:
    return {
        sample.labels["result"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "convoy_replies_redirected_total" and sample.value
    }


@pytest.mark.parametrize(
    ("headers", "destination", "result"),
    [
        ([], Destination("replies"), None),
        ([("reply_to", b"mine")], Destination("mine"), "redirected"),
        ([("kafka_replyTopic", b"mine")], Destination("mine"), "redirected"),
        ([("kafka_replyTopic", b"mine"), ("kafka_replyPartition", ONE)], Destination("mine", 1), "redirected"),
        ([("kafka_replyPartition", ONE), ("kafka_replyTopic", b"mine")], Destination("mine", 1), "redirected"),
        ([("kafka_replyTopic", b"replies"), ("kafka_replyPartition", ONE)], Destination("replies", 1), "default"),
        ([("reply_to", b"replies")], Destination("replies"), "default"),
        ([("reply_to", b"not mine")], Destination("replies"), "not_allowed"),
        ([("reply_to", b"\xff\xfe")], Destination("replies"), "not_allowed"),
        ([("reply_to", b"gone")], Destination("replies"), "unknown_topic"),
        ([("reply_to", b"")], Destination("replies"), None),
        ([("reply_to", None)], Destination("replies"), None),
        ([("kafka_replyPartition", ONE)], Destination("replies"), None),
    ],
)
def test_a_reply_goes_to_the_topic_asked_for_if_it_may(
    router: Router, metrics: Metrics, headers: Headers, destination: Destination, result: str | None
) -> None:
    assert router.destination(headers) == destination
    assert counted(metrics) == ({result: 1} if result else {})


@pytest.mark.parametrize(
    "partition", [b"", b"\x01", b"1", b"\x00\x00\x00\x07", b"\xff\xff\xff\xff", b"\x00" * 8, None], ids=repr
)
def test_a_partition_that_is_none_of_the_topics_leaves_the_choice_to_the_key(
    router: Router, partition: bytes | None
) -> None:
    assert router.destination([("reply_to", b"mine"), ("kafka_replyPartition", partition)]) == Destination("mine")
    assert router.destination([("reply_to", b"replies"), ("kafka_replyPartition", partition)]) == Destination("replies")
