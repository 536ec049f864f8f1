"""The demo's broker, from a pip package alone: librdkafka's mock cluster, inside this process.

It speaks Kafka's protocol on a socket: produce, fetch, groups with one member, committed offsets. It creates a
topic of four partitions when somebody first asks about it, and knows no request to create one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

ANSWER_SECONDS = 10.0
MOST_EVENTS = 8_000
"""It forgets what exceeds 5 MiB in a partition (``rdkafka_mock.c``); replies to more events might."""


class NoEmbeddedBrokerError(Exception):
    """The package it comes in is not installed."""


class EmbeddedBroker:
    """A broker while entered; ``address`` is its ``host:port``."""

    def __init__(self) -> None:
        self._client: Any = None
        self.address = ""

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            NoEmbeddedBrokerError: it is not installed.
        """
        try:
            from confluent_kafka import Producer  # noqa: PLC0415 - an extra, needed here alone
        except ImportError:
            raise NoEmbeddedBrokerError from None
        # Its complaints would tear the view; what matters of them the service says as well.
        self._client = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0})
        (broker,) = self._client.list_topics(timeout=ANSWER_SECONDS).brokers.values()
        self.address = f"{broker.host}:{broker.port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, and everything in it."""
        self._client = None
