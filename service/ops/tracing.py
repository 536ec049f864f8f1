"""Traces: what became of a batch, and of each event whose producer traces, as OpenTelemetry spans.

Off unless the standard ``OTEL_*`` variables ask for it (`service.settings.traces_wanted`); this module, and with it
the SDK (the extra ``otel``), is imported only then. A batch is a trace of its own, linked to its events::

    batch conversation.events                            CONSUMER, linked to the span that sent each event
    ├─ receive conversation.events                       from reading its first event to cutting it
    ├─ POST /conversations/{conversation_id}/items       each attempt; the API is sent its context
    └─ send conversation.replies                         each outcome, until it is stored

An event that came with the context of a sampled trace has a span in that trace as well, from reading to stored outcome;
its reply carries that span on. Names and attributes follow the semantic conventions of messaging and HTTP. No message
text, and of a conversation only the hash that ``/status`` shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry import context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanKind,
    StatusCode,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.core.delivery import Action, Delivered

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.trace.sampling import SamplingResult
    from opentelemetry.trace import Span, SpanContext, TraceState
    from opentelemetry.util.types import Attributes

    from service.core.delivery import Outcome
    from service.core.model import Batch, Event
    from service.core.verdict import Verdict

PATH = "/conversations/{conversation_id}/items"
METHODS = {Action.SEND: "POST", Action.READ_BACK: "GET", Action.READ_CURSOR: "GET"}
PROPAGATOR = TraceContextTextMapPropagator()
TRACE_HEADERS = ("traceparent", "tracestate")
NOWHERE = context.Context()
"""The parent of what begins a trace: whatever else is current has nothing to do with it."""


class _AsItsEvents(Sampler):
    """Asks the sampler given, for a span with links to sampled ones, as if each of them were its parent.

    A trace that a producer chose to sample would otherwise end at our door in all but one of a hundred cases.
    """

    def __init__(self, given: Sampler) -> None:
        self._given = given

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        ask = self._given.should_sample
        for link in links or ():
            if link.context.trace_flags.sampled:
                parent = set_span_in_context(NonRecordingSpan(link.context), NOWHERE)
                # A span has the attributes that its sampler returns.
                result = ask(parent, trace_id, name, kind, attributes, links, trace_state)
                if result.decision is not Decision.DROP:
                    return result
        return ask(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"AsItsEvents({self._given.get_description()})"


class Tracing:
    """Makes the spans of one process."""

    def __init__(
        self, exporter: SpanExporter, *, version: str, events_topic: str, group_id: str, base_url: str
    ) -> None:
        given = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "convoy"}
        resource = Resource.create({**given, "service.version": version})
        # Stopped by `stop`, in time; at exit the SDK would wait for a receiver that is away.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.sampler = _AsItsEvents(self._provider.sampler)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self._provider.get_tracer("convoy", version)
        self.events_topic = events_topic
        self.consumer: dict[str, str | int] = {
            "messaging.system": "kafka",
            "messaging.destination.name": events_topic,
            "messaging.consumer.group.name": group_id,
        }
        url = urlsplit(base_url)
        self.http: dict[str, str | int] = {
            "server.address": url.hostname or "",
            "server.port": url.port or (443 if url.scheme == "https" else 80),
            "url.template": PATH,
            "url.full": f"{base_url.rstrip('/')}{PATH.replace('{conversation_id}', 'REDACTED')}",
        }

    def begin(self, batch: Batch, now: float) -> BatchTrace | None:
        """Begin the trace of a batch just cut; ``None``: it is not sampled. ``now``: the clock of ``read_at``."""
        contexts = {event.offset: found for event in batch.events if (found := _context_of(event)) is not None}
        offset = now - time.time()
        span = self.tracer.start_span(
            f"batch {self.events_topic}",
            NOWHERE,
            SpanKind.CONSUMER,
            links=[Link(found) for found in contexts.values()],
            start_time=_nanoseconds(batch.events[0].read_at - offset),
        )
        if not span.is_recording():
            return None
        return BatchTrace(self, span, batch, contexts, offset)

    @staticmethod
    def propagate(headers: MutableMapping[str, str]) -> None:
        """Give a request about to be sent the context of the attempt under way, if that is sampled."""
        span = get_current_span()
        if span.is_recording():
            PROPAGATOR.inject(headers, set_span_in_context(span))

    async def stop(self, timeout_seconds: float) -> None:
        """Export what is left; a receiver that is away does not keep us."""
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()

        def stop() -> None:
            self._provider.shutdown()
            # Nobody waits any more where the loop is closed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(stopped.set)

        # A daemon: the interpreter does not wait for it.
        threading.Thread(target=stop, name="traces", daemon=True).start()
        await asyncio.wait({asyncio.ensure_future(stopped.wait())}, timeout=timeout_seconds)


class BatchTrace:
    """The trace of one batch and of all that it is split into, until each of its events has a stored outcome."""

    def __init__(
        self, tracing: Tracing, span: Span, batch: Batch, contexts: dict[int, SpanContext], clock_offset: float
    ) -> None:
        self._tracing = tracing
        self._span = span
        self._context = set_span_in_context(span, NOWHERE)
        self._contexts = contexts
        self._clock_offset = clock_offset
        self._left = len(batch.events)
        self._sent = 0
        events = batch.events
        span.set_attributes(
            {
                **tracing.consumer,
                "messaging.operation.name": "batch",
                "messaging.operation.type": "process",
                "messaging.destination.partition.id": str(events[0].partition),
                "messaging.batch.message_count": len(events),
                "convoy.conversation": hashlib.blake2b(batch.conversation_id.encode(), digest_size=8).hexdigest(),
                "convoy.flush_reason": batch.flush_reason.value,
            }
        )
        tracing.tracer.start_span(
            f"receive {tracing.events_topic}",
            self._context,
            SpanKind.CONSUMER,
            {
                **tracing.consumer,
                "messaging.operation.name": "receive",
                "messaging.operation.type": "receive",
                "messaging.batch.message_count": len(events),
            },
            start_time=self._at(events[0].read_at),
        ).end()

    def attempt(self, action: Action) -> AttemptTrace:
        """Begin an attempt; until it ends it is the current span of this task."""
        method = METHODS[action]
        attributes: dict[str, str | int] = {**self._tracing.http, "http.request.method": method}
        if action is Action.SEND:
            if self._sent:
                attributes["http.request.resend_count"] = self._sent
            self._sent += 1
        span = self._tracing.tracer.start_span(f"{method} {PATH}", self._context, SpanKind.CLIENT, attributes)
        context.attach(set_span_in_context(span, NOWHERE))
        return AttemptTrace(span)

    def outcome(self, outcome: Outcome, events: Sequence[Event], topic: str) -> OutcomeTrace:
        """Begin an outcome of ``events``, which is written to ``topic``."""
        word = "delivered" if isinstance(outcome, Delivered) else outcome.dead.reason.value
        tracer = self._tracing.tracer
        span = tracer.start_span(
            f"send {topic}",
            self._context,
            SpanKind.PRODUCER,
            {
                "messaging.system": "kafka",
                "messaging.operation.name": "send",
                "messaging.operation.type": "send",
                "messaging.destination.name": topic,
                "messaging.batch.message_count": len(events),
                "convoy.outcome": word,
            },
        )
        followed = {}
        for event in events:
            parent = self._contexts.get(event.offset)
            if parent is not None and parent.trace_flags.sampled:
                followed[event.offset] = tracer.start_span(
                    f"process {self._tracing.events_topic}",
                    set_span_in_context(NonRecordingSpan(parent), NOWHERE),
                    SpanKind.CONSUMER,
                    {
                        **self._tracing.consumer,
                        "messaging.operation.name": "process",
                        "messaging.operation.type": "process",
                        "messaging.destination.partition.id": str(event.partition),
                        "messaging.kafka.offset": event.offset,
                        "convoy.outcome": word,
                    },
                    links=[Link(self._span.get_span_context())],
                    start_time=self._at(event.read_at),
                )
        return OutcomeTrace(self, span, followed, len(events), "" if isinstance(outcome, Delivered) else word)

    def settled(self, count: int) -> None:
        """Note that so many more events have a stored outcome."""
        self._left -= count
        if not self._left:
            self._span.end()

    def lost(self) -> None:
        """End it without outcomes: its partition is another owner's now."""
        self._span.set_status(StatusCode.ERROR, "the partition was lost")
        self._span.end()

    def _at(self, clock: float) -> int:
        return _nanoseconds(clock - self._clock_offset)


class AttemptTrace:
    """One request."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def answered(self, verdict: Verdict) -> None:
        """End it with what the answer was taken to mean."""
        span = self._span
        span.set_attribute("convoy.verdict", verdict.kind.value)
        if verdict.status is not None:
            span.set_attribute("http.response.status_code", verdict.status)
        if verdict.status is None or verdict.status >= 400:
            span.set_attribute("error.type", verdict.code if verdict.status is None else str(verdict.status))
            span.set_status(StatusCode.ERROR)
        span.end()

    def failed(self, error: BaseException) -> None:
        """End it with a fault of ours."""
        self._span.set_attribute("error.type", type(error).__name__)
        self._span.set_status(StatusCode.ERROR)
        self._span.end()


class OutcomeTrace:
    """An outcome on its way into Kafka."""

    def __init__(self, batch: BatchTrace, span: Span, followed: dict[int, Span], count: int, dead: str) -> None:
        self._batch = batch
        self._span = span
        self._followed = followed
        self._count = count
        for each in (span, *followed.values()) if dead else ():
            each.set_attribute("error.type", dead)
            each.set_status(StatusCode.ERROR)

    def carry(self, event: Event, headers: list[tuple[str, bytes | None]]) -> None:
        """Put the context into the headers of an event's reply, in place of the one that came, before the last."""
        span = self._followed.get(event.offset)
        if span is None:
            if any(name == "traceparent" for name, _ in headers):
                # Its producer chose not to trace it.
                return
            span = self._span
        carrier: dict[str, str] = {}
        PROPAGATOR.inject(carrier, set_span_in_context(span, NOWHERE))
        headers[:-1] = [header for header in headers[:-1] if header[0] not in TRACE_HEADERS]
        headers[-1:-1] = [(name, value.encode("ascii")) for name, value in carrier.items()]

    def stored(self) -> None:
        """End it: all of it is in Kafka."""
        for span in self._followed.values():
            span.end()
        self._span.end()
        self._batch.settled(self._count)


def otlp_tracing(*, version: str, events_topic: str, group_id: str, base_url: str) -> Tracing:
    """What the ``OTEL_*`` variables ask for; they are checked by `service.settings`."""
    console = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "console"
    exporter: SpanExporter = ConsoleSpanExporter() if console else OTLPSpanExporter()
    return Tracing(exporter, version=version, events_topic=events_topic, group_id=group_id, base_url=base_url)


def _context_of(event: Event) -> SpanContext | None:
    given = event.headers
    if not given:
        return None
    carrier = {name: value.decode("latin-1") for name, value in given if name in TRACE_HEADERS and value is not None}
    if "traceparent" not in carrier:
        return None
    found = get_current_span(PROPAGATOR.extract(carrier, NOWHERE)).get_span_context()
    return found if found.is_valid else None


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
