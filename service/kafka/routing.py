"""Where a reply goes: to the topic its requester asked for, if it may, else to the default one.

Requesters name a topic in a header: FastStream's ``reply_to``, Spring's ``kafka_replyTopic`` with, at will,
``kafka_replyPartition`` (a 32-bit big-endian integer). Only topics on the allow-list are written to: whoever may
publish an event could otherwise write anywhere that we may.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.kafka.outlet import Outlet
    from service.ops.metrics import Metrics

TOPIC_HEADERS = ("reply_to", "kafka_replyTopic")
PARTITION_HEADER = "kafka_replyPartition"
PARTITION_BYTES = 4


class Destination(NamedTuple):
    """A topic, and the partition of it that was asked for."""

    topic: str
    partition: int | None = None


class Router:
    """Chooses for each event."""

    def __init__(self, default_topic: str, allowed: frozenset[str], outlet: Outlet, metrics: Metrics) -> None:
        self.default = Destination(default_topic)
        self._allowed = allowed
        self._outlet = outlet
        self._metrics = metrics

    def destination(self, headers: Sequence[tuple[str, bytes | None]]) -> Destination:
        """Where the reply to an event with these headers goes."""
        asked = partition = None
        for name, value in headers:
            if name in TOPIC_HEADERS:
                asked = value
            elif name == PARTITION_HEADER and value is not None and len(value) == PARTITION_BYTES:
                partition = int.from_bytes(value, "big", signed=True)
        if not asked:
            return self.default
        topic = asked.decode("utf-8", "replace")
        if topic == self.default.topic:
            self._metrics.counter("replies_redirected_total", "default").inc()
            # One who waits on the default topic may wait on one partition of it.
            return Destination(topic, partition) if partition in self._outlet.partitions_of(topic) else self.default
        if topic not in self._allowed:
            result = "not_allowed"
        elif not (known := self._outlet.partitions_of(topic)):
            result = "unknown_topic"
        else:
            self._metrics.counter("replies_redirected_total", "redirected").inc()
            return Destination(topic, partition if partition in known else None)
        self._metrics.counter("replies_redirected_total", result).inc()
        return self.default
