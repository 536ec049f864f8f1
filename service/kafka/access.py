"""What the brokers say of topics, groups and our rights to them: questions that change nothing.

Kafka tells a client what it may do to a topic or group (KIP-430), so rights need not be tried out. aiokafka has no
name for those versions of its requests; they are written down here.
"""

from __future__ import annotations

import contextlib
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IncompatibleBrokerVersion,
    KafkaError,
    NoError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.admin import DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

from service.kafka.connection import connection_arguments

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from service.settings import KafkaSettings

CLIENT_ID = "convoy-check"
ASK_MILLISECONDS = 10_000
NOT_SAID = -(1 << 31)
"""Of a broker that was not asked for rights, or keeps them to itself."""


UNKNOWN_REQUEST = (NotImplementedError, IncompatibleBrokerVersion)
"""What aiokafka raises for a request, or a version of it, that a broker does not know."""


class Right(enum.IntEnum):
    """An operation on a topic or group; the values are Kafka's."""

    READ = 3
    WRITE = 4
    DESCRIBE = 8


@dataclass(frozen=True, slots=True)
class Topic:
    """What is known of a topic that may be described.

    ``rights`` is ``None`` where the broker does not say.
    """

    partitions: int
    leaderless: tuple[int, ...]
    least_copies: int
    rights: frozenset[Right] | None

    def may(self, right: Right) -> bool:
        """Whether we may, or nobody says that we may not."""
        return self.rights is None or right in self.rights


@dataclass(frozen=True, slots=True)
class Missing:
    """A right that was not granted, or a topic that is not there (``right`` is ``None``)."""

    kind: str
    """``topic`` or ``group``."""
    name: str
    right: Right | None

    def __str__(self) -> str:
        """One line that says what is missing and what to do."""
        if self.right is None:
            return f"topic {self.name} (create it: convoy topics)"
        right = self.right.name.replace("_", " ").lower()
        return f"the right to {right} {self.kind} {self.name} (grant {self.right.name} on {self.kind} {self.name})"


class Access:
    """A connection to ask by; use `opened`."""

    def __init__(self, admin: AIOKafkaAdminClient) -> None:
        self._admin = admin
        self._client = admin._client  # noqa: SLF001 - the public client sends no requests of ours

    async def topics(self, names: Iterable[str]) -> dict[str, Topic | Missing]:
        """What there is of these topics.

        Raises:
            KafkaError: a broker does not answer, or in no way that is known.
        """
        wanted = sorted(set(names))
        node = self._client.get_random_node()
        try:
            answer = await self._client.send(node, _Metadata(wanted))
            found = answer.topics
        except UNKNOWN_REQUEST:
            # A broker too old to tell rights.
            answer = await self._client.send(node, MetadataRequest(wanted, allow_auto_topic_creation=False))
            found = [
                (topic["error_code"], topic["topic"], False, _partitions(topic["partitions"]), NOT_SAID)
                for topic in answer.to_object()["topics"]
            ]
        result: dict[str, Topic | Missing] = {}
        for code, name, _, partitions, operations in found:
            error = for_code(code)
            if error is TopicAuthorizationFailedError:
                result[name] = Missing("topic", name, Right.DESCRIBE)
            elif error is UnknownTopicOrPartitionError:
                result[name] = Missing("topic", name, None)
            elif error is NoError:
                leaderless = tuple(part[1] for part in partitions if part[2] < 0)
                copies = min((len(part[4]) for part in partitions), default=0)
                result[name] = Topic(len(partitions), leaderless, copies, _rights(operations))
            else:
                raise error(name)
        return result

    async def group_rights(self, group: str) -> frozenset[Right] | None:
        """Our rights to a consumer group; ``None`` where the broker does not say.

        Raises:
            KafkaError: no coordinator answers.
        """
        try:
            node = await self._admin.find_coordinator(group)
            answer = await self._client.send(node, _DescribeGroups(group))
        except GroupAuthorizationFailedError:
            return frozenset()
        except UNKNOWN_REQUEST:
            return None
        ((code, *_, operations),) = answer.groups
        error = for_code(code)
        if error is GroupAuthorizationFailedError:
            return frozenset()
        if error is not NoError:
            raise error(group)
        return _rights(operations)

    async def missing(self, topics: Mapping[str, Iterable[Right]], group: str) -> list[Missing]:
        """What keeps this client from its work: topics that are not there, rights that were not granted.

        Raises:
            KafkaError: a broker does not answer.
        """
        found = await self.topics(topics)
        gaps: list[Missing] = []
        for name, wanted in topics.items():
            topic = found[name]
            if isinstance(topic, Missing) and topic.right is None:
                gaps.append(topic)
            else:
                # Who may read or write a topic may describe it; who may not is not told whether it is there.
                rights = frozenset[Right]() if isinstance(topic, Missing) else topic.rights
                gaps += [
                    Missing("topic", name, right) for right in wanted if rights is not None and right not in rights
                ]
        rights = await self.group_rights(group)
        if rights is not None and Right.READ not in rights:
            gaps.append(Missing("group", group, Right.READ))
        return gaps

    async def topic_settings(self, name: str) -> dict[str, str] | None:
        """A topic's settings; ``None`` where we may not see them.

        Raises:
            KafkaError: a broker does not answer.
        """
        (answer,) = await self._admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
        ((code, _, _, _, entries),) = answer.resources
        error = for_code(code)
        if error is TopicAuthorizationFailedError:
            return None
        if error is not NoError:
            raise error(name)
        return {entry[0]: entry[1] for entry in entries}

    def brokers(self) -> list[tuple[int, str, int]]:
        """Id, host and port of each broker, as the cluster gives them to its clients."""
        return sorted((broker.nodeId, broker.host, broker.port) for broker in self._client.cluster.brokers())


def refusal(error: BaseException) -> str | None:
    """What right an error says is missing, in one line; ``None`` where it says something else."""
    subject = ", ".join(sorted(error.args[0])) if error.args and isinstance(error.args[0], set) else ""
    subject = subject or (str(error.args[0]) if error.args else "")
    match error:
        case TopicAuthorizationFailedError():
            return f"no right to topic {subject} (convoy check tells which)"
        case GroupAuthorizationFailedError():
            return f"no right to read group {subject} (grant READ on group {subject})"
        case ClusterAuthorizationFailedError():
            return "no right to write idempotently (grant IDEMPOTENT_WRITE on the cluster)"
        case _:
            return None


def needed(settings: KafkaSettings, reply_topics: Iterable[str] = ()) -> dict[str, list[Right]]:
    """The rights the service needs to each topic, beside READ on its group."""
    rights = {
        settings.reply_topic: [Right.WRITE],
        settings.dead_letter_topic: [Right.WRITE],
        settings.events_topic: [Right.READ],
    }
    if settings.ledger_topic:
        rights[settings.ledger_topic] = [Right.READ, Right.WRITE]
    for topic in reply_topics:
        rights.setdefault(topic, [Right.WRITE])
    return rights


@contextlib.asynccontextmanager
async def opened(settings: KafkaSettings) -> AsyncIterator[Access]:
    """Connect to ask.

    Raises:
        KafkaError, OSError: no broker answers.
    """
    admin = AIOKafkaAdminClient(
        **connection_arguments(settings), client_id=CLIENT_ID, request_timeout_ms=ASK_MILLISECONDS
    )
    try:
        await admin.start()
        if admin._client.get_random_node() is None:  # noqa: SLF001 - as above
            raise KafkaError("the cluster names no brokers")
        yield Access(admin)
    finally:
        await admin.close()


def _partitions(described: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (part["error_code"], part["partition"], part["leader"], 0, part["replicas"], part["isr"]) for part in described
    ]


def _rights(operations: int) -> frozenset[Right] | None:
    if operations == NOT_SAID:
        return None
    return frozenset(right for right in Right if operations >> right & 1)


class _MetadataResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", Array(("node_id", Int32), ("host", String()), ("port", Int32), ("rack", String()))),
        ("cluster_id", String()),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String()),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
        ("authorized_operations", Int32),
    )


class _MetadataRequest(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", Array(String())),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class _Metadata(Request[_MetadataRequest]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_MetadataRequest]) -> _MetadataRequest:
        create, of_cluster, of_topics = False, False, True
        return request_struct_class(self._topics, create, of_cluster, of_topics)


class _DescribeGroupsRequest(RequestStruct):  # type: ignore[misc]
    API_KEY = 15
    API_VERSION = 3
    RESPONSE_TYPE = DescribeGroupsResponse_v3
    SCHEMA = Schema(("groups", Array(String())), ("include_authorized_operations", Boolean))


class _DescribeGroups(Request[_DescribeGroupsRequest]):  # type: ignore[misc]
    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: type[_DescribeGroupsRequest]) -> _DescribeGroupsRequest:
        return request_struct_class([self._group], True)
