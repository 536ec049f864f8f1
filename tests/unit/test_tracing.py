"""A batch is a trace; an event whose producer traces has a span in that trace too."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service.core.delivery import Action, DeadLettered, Delivered
from service.core.grouper import Grouper
from service.core.model import Batch, Dead, Event, FlushReason, Reason
from service.core.verdict import Kind, Verdict
from service.ops.tracing import Tracing
from service.settings import SettingsError, load, traces_wanted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-1af7651916cd43dd8448eb211c80319c-c7ad6b7169203331-01"
UNSAMPLED = "00-2af7651916cd43dd8448eb211c80319c-d7ad6b7169203331-00"
TRACEPARENT = "traceparent"


class World:
    """Tracing into memory, and batches to trace."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracing(
            self.exporter, version="1", events_topic="events", group_id="group", base_url="https://api.example/v1"
        )

    def batch(self, *traceparents: str | None) -> Batch:
        grouper = Grouper(max_items=20, max_bytes=1 << 20, window_seconds=0)
        partition = grouper.assign(3)
        for offset, given in enumerate(traceparents):
            headers: list[tuple[str, bytes | None]] = [("other", None)]
            if given is not None:
                headers.append((TRACEPARENT, given.encode()))
            event = Event(3, offset, "conv_1", f"e{offset}", b"{}", 10, headers=headers)
            grouper.add(partition, event, 50.0)
        batch = grouper.take(51.5)
        assert batch is not None
        batch.trace = self.tracing.begin(batch, 51.5)
        return batch

    def spans(self) -> dict[str, list[ReadableSpan]]:
        asyncio.run(self.tracing.stop(5))
        found: dict[str, list[ReadableSpan]] = {}
        for span in self.exporter.get_finished_spans():
            found.setdefault(span.name, []).append(span)
        return found


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    for name in ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    return World()


def delivered(events: Sequence[Event]) -> Delivered:
    return Delivered(events, [b"{}"] * len(events), len(events), 0, 1, read_back=False)


def verdict(kind: Kind = Kind.DELIVERED, status: int | None = 200, code: str = "") -> Verdict:
    return Verdict(kind, status=status, code=code)


def settle(batch: Batch) -> list[dict[str, str]]:
    """Deliver a batch whole; returns the headers of its replies."""
    sending = batch.trace.outcome(delivered(batch.events), batch.events, "replies")
    replies = []
    for event in batch.events:
        carried = [header for header in event.headers if header[0] == TRACEPARENT]
        headers: list[tuple[str, bytes | None]] = [
            ("correlation_id", b"1"),
            *carried,
            ("content-type", b"application/json"),
        ]
        sending.carry(event, headers)
        assert headers[-1][0] == "content-type"
        replies.append({name: (value or b"").decode() for name, value in headers})
    sending.stored()
    return replies


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def own_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def test_a_batch_is_a_trace_from_reading_its_first_event_to_its_stored_outcome(world: World) -> None:
    batch = world.batch(None, None)
    batch.trace.attempt(Action.SEND).answered(verdict())
    settle(batch)
    spans = world.spans()
    [root], [received], [attempt], [sent] = (
        spans[name]
        for name in ("batch events", "receive events", "POST /conversations/{conversation_id}/items", "send replies")
    )
    assert root.parent is None
    assert {parent_of(span) for span in (received, attempt, sent)} == {own_id(root)}
    assert received.start_time == root.start_time
    assert received.end_time is not None
    assert received.start_time is not None
    assert received.end_time - received.start_time == pytest.approx(1.5e9, rel=0.1)
    assert [span.kind for span in (root, attempt, sent)] == [SpanKind.CONSUMER, SpanKind.CLIENT, SpanKind.PRODUCER]
    assert root.attributes is not None
    assert root.attributes["messaging.system"] == "kafka"
    assert root.attributes["messaging.destination.name"] == "events"
    assert root.attributes["messaging.consumer.group.name"] == "group"
    assert root.attributes["messaging.destination.partition.id"] == "3"
    assert root.attributes["messaging.batch.message_count"] == 2
    assert root.attributes["messaging.operation.type"] == "process"
    assert root.attributes["convoy.flush_reason"] == FlushReason.WINDOW
    assert root.resource.attributes["service.name"] == "convoy"


def test_no_span_names_a_conversation_or_says_a_word_of_a_message(world: World) -> None:
    batch = world.batch(SAMPLED)
    batch.trace.attempt(Action.SEND).answered(verdict())
    settle(batch)
    told = "".join(span.to_json() for spans in world.spans().values() for span in spans)
    assert "conv_1" not in told


def test_a_batch_is_linked_to_the_spans_that_sent_its_events(world: World) -> None:
    settle(world.batch(SAMPLED, None, OTHER, UNSAMPLED))
    [root] = world.spans()["batch events"]
    assert [f"{link.context.span_id:016x}" for link in root.links] == [
        given.split("-")[2] for given in (SAMPLED, OTHER, UNSAMPLED)
    ]


def test_an_event_of_a_sampled_trace_has_a_span_there_which_its_reply_carries_on(world: World) -> None:
    followed, untraced, unsampled = settle(world.batch(SAMPLED, None, UNSAMPLED))
    spans = world.spans()
    [root], [own] = spans["batch events"], spans["process events"]
    assert trace_of(own) == SAMPLED.split("-")[1]
    assert own.parent is not None
    assert f"{own.parent.span_id:016x}" == SAMPLED.split("-")[2]
    assert [link.context.span_id for link in own.links] == [own_id(root)]
    assert own.start_time == root.start_time
    assert own.attributes is not None
    assert own.attributes["convoy.outcome"] == "delivered"
    assert own.attributes["messaging.kafka.offset"] == 0
    assert followed[TRACEPARENT].split("-")[1:3] == [trace_of(own), f"{own_id(own):016x}"]
    [sent] = spans["send replies"]
    assert untraced[TRACEPARENT].split("-")[1:3] == [trace_of(root), f"{own_id(sent):016x}"]
    assert unsampled[TRACEPARENT] == UNSAMPLED


def test_an_attempt_says_what_was_asked_and_what_came_of_it(world: World) -> None:
    batch = world.batch(None)
    batch.trace.attempt(Action.SEND).answered(verdict(Kind.AMBIGUOUS, 503, "overloaded"))
    batch.trace.attempt(Action.READ_BACK).answered(verdict())
    batch.trace.attempt(Action.SEND).answered(verdict(Kind.TRANSIENT, None, "connect_error"))
    batch.trace.attempt(Action.SEND).failed(ZeroDivisionError())
    settle(batch)
    spans = world.spans()
    first, second, third = spans["POST /conversations/{conversation_id}/items"]
    [read] = spans["GET /conversations/{conversation_id}/items"]
    assert first.attributes is not None
    assert {name: first.attributes[name] for name in first.attributes if not name.startswith("messaging")} == {
        "http.request.method": "POST",
        "url.template": "/conversations/{conversation_id}/items",
        "url.full": "https://api.example/v1/conversations/REDACTED/items",
        "server.address": "api.example",
        "server.port": 443,
        "http.response.status_code": 503,
        "error.type": "503",
        "convoy.verdict": "ambiguous",
    }
    for span, error, resent in ((second, "connect_error", 1), (third, "ZeroDivisionError", 2)):
        assert span.attributes is not None
        assert (span.attributes["error.type"], span.attributes["http.request.resend_count"]) == (error, resent)
    assert [span.status.status_code for span in (first, read, second, third)] == [
        StatusCode.ERROR,
        StatusCode.UNSET,
        StatusCode.ERROR,
        StatusCode.ERROR,
    ]


def test_what_a_batch_is_split_into_is_one_trace_that_ends_with_its_last_outcome(world: World) -> None:
    batch = world.batch(None, None, None)
    trace = batch.trace
    for event in batch.events[:2]:
        trace.outcome(delivered([event]), [event], "replies").stored()
    world.tracing._provider.force_flush()
    assert "batch events" not in {span.name for span in world.exporter.get_finished_spans()}
    dead = DeadLettered(batch.events[2:], Dead(Reason.REJECTED))
    trace.outcome(dead, batch.events[2:], "dead").stored()
    spans = world.spans()
    assert len(spans["batch events"]) == 1
    [given_up] = spans["send dead"]
    assert given_up.attributes is not None
    assert given_up.attributes["convoy.outcome"] == given_up.attributes["error.type"] == "rejected"
    assert given_up.status.status_code is StatusCode.ERROR


def test_a_batch_whose_partition_was_lost_ends_as_an_error(world: World) -> None:
    world.batch(None).trace.lost()
    [root] = world.spans()["batch events"]
    assert root.status.status_code is StatusCode.ERROR


def test_only_a_sampled_attempt_is_sent_to_the_api(world: World) -> None:
    batch = world.batch(None)
    headers: dict[str, str] = {}

    async def outside() -> None:
        world.tracing.propagate(headers)

    async def within() -> None:
        batch.trace.attempt(Action.SEND)
        world.tracing.propagate(headers)

    asyncio.run(outside())
    assert headers == {}
    asyncio.run(within())
    assert int(headers[TRACEPARENT].split("-")[3], 16) & 1


def test_sampling_is_what_the_standard_variables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.0")
    world = World()
    assert world.batch(None).trace is None
    assert world.batch(UNSAMPLED).trace is None
    assert world.batch(None, SAMPLED).trace is not None, "what a producer chose to sample is sampled here"
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    assert World().batch(SAMPLED).trace is None


@pytest.mark.parametrize("given", ["", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "\udce9"])
def test_a_traceparent_that_is_none_is_none(world: World, given: str) -> None:
    batch = world.batch(None)
    batch.events[0].headers = [(TRACEPARENT, given.encode("utf-8", "surrogateescape"))]
    trace = world.tracing.begin(batch, 51.5)
    assert trace is not None
    trace.lost()
    assert world.spans()["batch events"][0].links == ()


def test_a_receiver_that_is_away_does_not_keep_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    world, answers = World(), threading.Event()
    monkeypatch.setattr(world.exporter, "shutdown", answers.wait)

    async def stop() -> bool:
        await world.tracing.stop(0.05)
        return answers.is_set()

    async def stop_twice() -> None:
        assert await stop() is False
        answers.set()

    asyncio.run(stop_twice())


# --- Whether, and by which variables ---


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "convoy"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, False),
    ],
)
def test_traces_are_off_until_the_standard_variables_ask_for_them(environment: dict[str, str], wanted: bool) -> None:
    assert traces_wanted(environment) is wanted


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: otlp, console or none, not zipkin"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL: only http/protobuf is spoken, not grpc",
        ),
    ],
)
def test_what_cannot_be_exported_ends_the_start_in_one_line(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], words: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=words):
        load(need_key=False)


def test_without_the_extra_the_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"convoy\[otel\]"):
        load(need_key=False)


def test_a_service_that_is_not_asked_for_traces_does_not_even_load_what_makes_them() -> None:
    # FastStream itself looks for the API.
    code = "import sys, service.app; sys.exit(bool({'opentelemetry.sdk', 'service.ops.tracing'} & set(sys.modules)))"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    assert subprocess.run([sys.executable, "-c", code], env=kept, check=False).returncode == 0
