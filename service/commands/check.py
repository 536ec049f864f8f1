"""`convoy check`: whether the service could start and work with these settings, one line a fact.

It asks and changes nothing, but for the one record that `--round-trip` writes. Exit codes: 0 nothing stands in the way
(warnings may), 1 something does, 2 the settings cannot be used.
"""

from __future__ import annotations

import asyncio
import enum
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from service import __version__
from service.conversations.client import Conversations
from service.core.model import Answered, Unanswered
from service.core.verdict import Kind, judge
from service.kafka.access import Access, Missing, Right, Topic, needed, opened, refusal
from service.kafka.connection import KafkaError
from service.kafka.diagnosis import Step, address, diagnose
from service.kafka.outlet import TopicMissingError
from service.kafka.publishing import round_trip
from service.settings import SettingsError, load, unsafe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from service.core.model import Answer
    from service.settings import KafkaSettings, Settings

SAFE_COPIES = 3
SAFE_IN_SYNC = 2
ASK_SECONDS = 30.0
NO_CONVERSATION = "conv_convoy_check"
"""An id that no API gives: asking for it shows the key at work and reads nobody's messages."""


class State(enum.StrEnum):
    """What came of a check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


MARKS = {State.OK: "✓", State.WARNING: "!", State.FAILED: "✗", State.SKIPPED: "-"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact: which check, what came of it, and what to do about it."""

    check: str
    state: State
    message: str
    advice: str = ""

    def line(self) -> str:
        """For people."""
        advice = f" → {self.advice}" if self.advice else ""
        return f"{MARKS[self.state]} {self.check}: {self.message}{advice}"


def check(*, as_json: bool, round_trip_topic: str = "") -> int:
    """Make all checks, write a line for each as soon as it is made, and return the exit code."""
    findings: list[Finding] = []

    def add(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            sys.stdout.write(finding.line() + "\n")
            sys.stdout.flush()

    code = 0
    try:
        settings = load()
    except SettingsError as error:
        add(Finding("settings", State.FAILED, str(error), "docs/configuration.md names them all"))
        code = 2
    else:
        add(Finding("settings", State.OK, "complete, within bounds, no contradictions"))
        asyncio.run(_check_all(settings, round_trip_topic, add))
        code = int(any(finding.state is State.FAILED for finding in findings))
    if as_json:
        sys.stdout.write(json.dumps({"ok": code == 0, "findings": [asdict(one) for one in findings]}, indent=2) + "\n")
    return code


async def _check_all(settings: Settings, round_trip_topic: str, add: Callable[[Finding], None]) -> None:
    for line in unsafe(settings):
        name, _, words = line.partition(": ")
        add(Finding("settings", State.WARNING, name, words))
    async for finding in _check_kafka(settings, round_trip_topic):
        add(finding)
    add(await _check_api(settings))


# Kafka


async def _check_kafka(settings: Settings, round_trip_topic: str) -> AsyncIterator[Finding]:
    kafka = settings.kafka
    reached = False
    for server in kafka.bootstrap_servers.split(","):
        host, port = address(server)
        finding = await _check_broker(kafka, server, host, port)
        reached = reached or finding.state is State.OK
        yield finding
    if not reached:
        yield Finding("topics", State.SKIPPED, "not looked at: no broker can be spoken to")
        return
    named = {address(server) for server in kafka.bootstrap_servers.split(",")}
    try:
        async with asyncio.timeout(ASK_SECONDS), opened(kafka) as access:
            for number, host, port in access.brokers():
                if (host, port) not in named:
                    yield await _check_broker(kafka, f"{number} at {host}:{port}, as the cluster says", host, port)
            async for finding in _check_topics(settings, access):
                yield finding
    except (KafkaError, OSError, TimeoutError) as error:
        yield Finding(
            "topics", State.FAILED, f"the cluster does not answer ({_words(error)})",
            "check that brokers are reached by the addresses they advertise",
        )  # fmt: skip
        return
    if round_trip_topic:
        yield await _check_round_trip(kafka, round_trip_topic)


async def _check_broker(kafka: KafkaSettings, name: str, host: str, port: int) -> Finding:
    trouble = await diagnose(kafka, host, port)
    if trouble is not None:
        return Finding(f"broker.{trouble.step}", State.FAILED, f"{name}: {trouble.what}", trouble.advice)
    steps = [Step.DNS.upper(), Step.TCP.upper()]
    if kafka.uses_tls:
        steps.append(f"TLS{' with our certificate' if kafka.ssl_cert_file else ''}")
    if kafka.uses_sasl:
        who = f" as {kafka.sasl_username}" if kafka.sasl_username else ""
        steps.append(f"SASL {kafka.sasl_mechanism}{who}")
    return Finding("broker", State.OK, f"{name}: {', '.join(steps)}")


async def _check_topics(settings: Settings, access: Access) -> AsyncIterator[Finding]:
    kafka = settings.kafka
    wanted = needed(kafka, sorted(settings.allowed_reply_topics))
    found = await access.topics(wanted)
    for name, rights in wanted.items():
        for finding in _check_topic(name, found[name], rights, default=name in needed(kafka)):
            yield finding
    ledger, events = found.get(kafka.ledger_topic), found[kafka.events_topic]
    if isinstance(ledger, Topic) and isinstance(events, Topic):
        yield _check_twins(kafka, ledger, events)
    given = {name: await access.topic_settings(name) for name, topic in found.items() if isinstance(topic, Topic)}
    for name in wanted:
        if isinstance(topic := found[name], Topic):
            for finding in _check_topic_settings(kafka, name, topic, given):
                yield finding
    yield _check_group(kafka.group_id, await access.group_rights(kafka.group_id))


def _check_topic(name: str, topic: Topic | Missing, rights: list[Right], *, default: bool) -> Iterator[Finding]:
    words = " and ".join(right.name.lower() for right in rights)
    grant = f"grant {' and '.join(right.name for right in rights)} on topic {name}"
    state = State.FAILED if default else State.WARNING
    if isinstance(topic, Missing):
        if topic.right is None:
            yield Finding("topic", state, f"{name} does not exist", "create it: convoy topics")
        else:
            yield Finding("rights", state, f"topic {name}: no right to {words}, or it does not exist", grant)
        return
    if topic.leaderless:
        yield Finding(
            "topic", State.FAILED, f"{name}: partitions {', '.join(map(str, topic.leaderless))} have no leader",
            "look at the brokers that hold them",
        )  # fmt: skip
    else:
        yield Finding("topic", State.OK, f"{name}: {topic.partitions} partitions")
    missing = [right for right in rights if topic.rights is not None and right not in topic.rights]
    if missing:
        words = " and ".join(right.name.lower() for right in missing)
        yield Finding("rights", state, f"topic {name}: no right to {words}", grant)
    elif topic.rights is None:
        yield Finding("rights", State.WARNING, f"topic {name}: the broker does not say what we may do", grant)
    else:
        yield Finding("rights", State.OK, f"topic {name}: {words}")


def _check_group(group: str, rights: frozenset[Right] | None) -> Finding:
    grant = f"grant READ on group {group}"
    if rights is None:
        return Finding("rights", State.WARNING, f"group {group}: the broker does not say what we may do", grant)
    if Right.READ not in rights:
        return Finding("rights", State.FAILED, f"group {group}: no right to join it and commit", grant)
    return Finding("rights", State.OK, f"group {group}: join and commit")


def _check_twins(kafka: KafkaSettings, ledger: Topic, events: Topic) -> Finding:
    message = f"{kafka.ledger_topic} has {ledger.partitions} partitions, {kafka.events_topic} has {events.partitions}"
    if ledger.partitions == events.partitions:
        return Finding("ledger", State.OK, message)
    return Finding("ledger", State.FAILED, message, "they must be as many: those without a twin are not read")


def _check_topic_settings(
    kafka: KafkaSettings, name: str, topic: Topic, by_topic: Mapping[str, dict[str, str] | None]
) -> Iterator[Finding]:
    if topic.least_copies < SAFE_COPIES:
        yield Finding(
            "topic", State.WARNING, f"{name}: {topic.least_copies} copies of each partition",
            f"{SAFE_COPIES} survive the loss of a broker while another is being restarted",
        )  # fmt: skip
    given = by_topic[name]
    if given is None:
        yield Finding(
            "topic", State.WARNING, f"{name}: its settings are hidden from us and were not checked",
            f"grant DESCRIBE_CONFIGS on topic {name} to see them; only this check needs it",
        )  # fmt: skip
        return
    in_sync = int(given["min.insync.replicas"])
    if in_sync > topic.least_copies:
        yield Finding(
            "topic", State.FAILED, f"{name}: min.insync.replicas is {in_sync} with {topic.least_copies} copies",
            "nothing can be written: lower it or add copies",
        )  # fmt: skip
    elif in_sync < SAFE_IN_SYNC and name != kafka.events_topic:
        yield Finding(
            "topic", State.WARNING, f"{name}: min.insync.replicas is {in_sync}",
            f"with less than {SAFE_IN_SYNC} what was acknowledged may be lost with one broker",
        )  # fmt: skip
    if name == kafka.events_topic and "compact" in given["cleanup.policy"]:
        yield Finding(
            "topic", State.WARNING, f"{name}: cleanup.policy is {given['cleanup.policy']}",
            "compaction removes all but the newest event of a conversation: use delete",
        )  # fmt: skip
    if name == kafka.ledger_topic:
        yield from _check_ledger(name, given, by_topic.get(kafka.events_topic))


def _check_ledger(name: str, given: dict[str, str], events: dict[str, str] | None) -> Iterator[Finding]:
    wrong = []
    if given["cleanup.policy"] != "delete":
        wrong.append(("cleanup.policy", given["cleanup.policy"], "must be delete: every record of it is needed"))
    if given["message.timestamp.type"] != "LogAppendTime":
        wrong.append(
            ("message.timestamp.type", given["message.timestamp.type"], "must be LogAppendTime: ages are counted by it")
        )
    retention = int(given["retention.ms"])
    if retention >= 0 and events is not None:
        of_events = int(events["retention.ms"])
        least = of_events + int(events["segment.ms"])
        if of_events < 0 or retention < least:
            wanted = "-1" if of_events < 0 else f"{least} or more, or -1"
            wrong.append(("retention.ms", given["retention.ms"], f"must be {wanted}: it is to outlive the events"))
    if int(given["retention.bytes"]) >= 0:
        wrong.append(("retention.bytes", given["retention.bytes"], "must be -1: it is to outlive the events"))
    for setting, value, advice in wrong:
        yield Finding("ledger", State.FAILED, f"{name}: {setting} is {value}", advice)
    if not wrong:
        yield Finding("ledger", State.OK, f"{name}: kept as long as it is needed, times by the broker")


async def _check_round_trip(kafka: KafkaSettings, topic: str) -> Finding:
    began = time.monotonic()
    try:
        async with asyncio.timeout(ASK_SECONDS):
            partition, offset = await round_trip(kafka, topic)
    except TopicMissingError:
        return Finding("round-trip", State.FAILED, f"topic {topic}: it does not exist, or we may not see it")
    except (KafkaError, OSError, TimeoutError) as error:
        return Finding("round-trip", State.FAILED, f"topic {topic}: {refusal(error) or _words(error)}")
    seconds = time.monotonic() - began
    return Finding("round-trip", State.OK, f"topic {topic}: wrote and read {partition}-{offset} in {seconds:.2f} s")


# The API


async def _check_api(settings: Settings) -> Finding:
    host = urlsplit(settings.api.base_url).netloc
    async with Conversations(settings.api, version=__version__) as api:
        began = time.monotonic()
        answer = await api.list_items(NO_CONVERSATION, limit=1)
    seconds = time.monotonic() - began
    trouble = _trouble(answer)
    if trouble is None:
        return Finding("api", State.OK, f"{host}: reachable, key accepted, answered in {seconds:.2f} s")
    state, message, advice = trouble
    return Finding("api", state, f"{host}: {message}", advice)


def _trouble(answer: Answer) -> tuple[State, str, str] | None:
    """What an answer to a question for a conversation that is not there says against us."""
    if isinstance(answer, Unanswered):
        advice = "check CONVOY_API__BASE_URL and CONVOY_API__PROXY, name resolution, firewall, network policies"
        if answer.code == "tls_error":
            advice = "name the authority in CONVOY_API__CA_FILE, or check the host name in CONVOY_API__BASE_URL"
        return State.FAILED, f"no answer ({answer.code}: {answer.message})", advice
    verdict = judge(answer, 0)
    if answer.items is not None or verdict.kind in {Kind.CONVERSATION_NOT_FOUND, Kind.REJECTED, Kind.BUSY}:
        return None
    said = f"{answer.status} {verdict.code} {verdict.message}".strip()
    if verdict.kind is Kind.OPERATOR:
        return State.FAILED, *_operator_words(answer, said)
    return {
        Kind.THROTTLED: (State.WARNING, f"throttles us already ({said})", "see what else uses this account"),
        Kind.FORBIDDEN: (State.FAILED, f"the key may not do this ({said})", "check the rights of the key"),
    }.get(
        verdict.kind,
        (State.FAILED, f"unexpected answer ({said})", "check CONVOY_API__BASE_URL, and the API's own status"),
    )


def _operator_words(answer: Answered, said: str) -> tuple[str, str]:
    code = answer.error.code.lower() if answer.error else ""
    if answer.status == 401 or "key" in code:
        return f"the key is refused ({said})", "check CONVOY_API__KEY, and that it belongs to this address"
    if answer.status < 400:
        return f"redirects ({said})", "set CONVOY_API__BASE_URL to where it redirects: the key follows no redirect"
    if answer.status in {404, 405}:
        return f"there is no such API there ({said})", "check the path in CONVOY_API__BASE_URL"
    return f"refuses to work for this account ({said})", "look at the account: payment, quota, rights"


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
