"""A traced run: requesters that trace, the real service, an API that fails once, and a receiver of OTLP on loopback.

`python tests/traced.py` prints what the receiver got as a tree; `docs/operations.md` shows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
from conftest import Topics
from kafka_server import create_topics, find_kafka
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from service_process import API_KEY, CALM, Record, Trial, until

from service.emulator.faults import FaultScript, Match, Rule, Status, When
from service.emulator.server import EmulatorServer
from service.ops.asgi import AsgiListener

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from kafka_server import KafkaServer

WORDS = ["Where is my parcel?", "It should have come on Monday.", "Hello?"]
TRACED = 2
"""So many of the events are sent by requesters that trace."""
SHOWN = ("convoy.outcome", "messaging.batch.message_count", "convoy.flush_reason", "http.response.status_code")


@dataclass(frozen=True, slots=True)
class SpanSeen:
    """A span as it came over the wire."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    links: tuple[str, ...]
    """Span ids."""
    attributes: Mapping[str, str | int]
    start: int
    end: int
    failed: bool


class Receiver:
    """An OTLP receiver over HTTP and protobuf; used with `with`."""

    def __init__(self) -> None:
        self.spans: list[SpanSeen] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert self.path == "/v1/traces"
                assert self.headers["content-type"] == "application/x-protobuf"
                receiver.spans.extend(_read(ExportTraceServiceRequest.FromString(body)))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as it is called there
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _read(request: ExportTraceServiceRequest) -> Iterator[SpanSeen]:
    for resource in request.resource_spans:
        service = _attributes(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield SpanSeen(
                    str(service),
                    span.name,
                    SpanKind(span.kind - 1).name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    tuple(link.span_id.hex() for link in span.links),
                    _attributes(span.attributes),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.status.code == span.status.STATUS_CODE_ERROR,
                )


def _attributes(pairs: Any) -> dict[str, str | int]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def tree(spans: Sequence[SpanSeen], *, times: bool = True) -> str:
    """All traces as a tree, oldest first: service, name, duration, what matters of the attributes."""
    known = {span.span_id: span for span in spans}
    ordered = sorted(spans, key=lambda span: (span.start, -span.end))
    found: list[tuple[str, SpanSeen]] = []

    def walk(span: SpanSeen, before: str, branch: str) -> None:
        found.append((before + branch, span))
        below = [each for each in ordered if each.parent_id == span.span_id]
        deeper = before + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        for child in below:
            walk(child, deeper, "└─ " if child is below[-1] else "├─ ")

    for span in ordered:
        if span.parent_id not in known:
            walk(span, "", "")
    numbers = {span.span_id: number for number, (_, span) in enumerate(found, 1)}
    lines = []
    for place, span in found:
        parent = known.get(span.parent_id)
        service = "" if parent is not None and parent.service == span.service else f"[{span.service}] "
        told = [
            f"{span.attributes[name]} events" if name == "messaging.batch.message_count" else str(span.attributes[name])
            for name in SHOWN
            if name in span.attributes
        ]
        if linked := [f"#{numbers[link]}" for link in span.links if link in numbers]:
            told.append(f"linked to {', '.join(linked)}")
        took = f"  {(span.end - span.start) / 1e6:,.1f} ms" if times else ""
        mark = " ✗" if span.failed else ""
        lines.append(f"{place}{service}{span.name} #{numbers[span.span_id]}{mark}{took}  {' · '.join(told)}".rstrip())
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Traced:
    """What came of the run."""

    spans: list[SpanSeen]
    requested: list[dict[str, str]]
    """The headers of each request that reached the API."""
    replied: list[dict[str, str]]
    """Those of each reply."""
    sent: list[str]
    """The traceparent of each event that had one."""


async def traced_run(kafka: KafkaServer, folder: Path, **otel: str) -> Traced:
    """Three events of one conversation, two of them from requesters that trace; the first attempt is answered 503."""
    topics = Topics(1)
    await create_topics(kafka.bootstrap_servers, dict.fromkeys(topics.names, 1))
    requested: list[dict[str, str]] = []
    unavailable = Rule(
        Status(status=503, code="overloaded", message="come again"), Match(operations=("create_items",)), When(first=1)
    )
    async with contextlib.AsyncExitStack() as stack:
        receiver = stack.enter_context(Receiver())
        api = await stack.enter_async_context(
            EmulatorServer(key=API_KEY, create_on_write=True, latency_seconds=0.05, faults=FaultScript((unavailable,)))
        )

        async def listening(scope: Any, receive: Any, send: Any) -> None:
            requested.append({name.decode(): value.decode() for name, value in scope["headers"]})
            await api.app(scope, receive, send)

        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {API_KEY}"}) as http:
            made = await http.post(f"{api.base_url}/conversations", json={})
        conversation_id = made.json()["id"]
        front = await stack.enter_async_context(AsgiListener(listening, "127.0.0.1", 0))
        trial = Trial(kafka.bootstrap_servers, topics, api, folder)
        service = trial.process(
            **CALM
            | {
                "API__BASE_URL": f"{front.origin}/v1",
                "BATCH__WINDOW_SECONDS": "0.5",
                "DELIVERY__BACKOFF_INITIAL_SECONDS": "0.2",
            }
        )
        service._environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, **otel}
        await stack.enter_async_context(service)
        await service.ready()
        sent = await asyncio.to_thread(_requests, receiver.endpoint)
        records = []
        for number, text in enumerate(WORDS):
            headers = [("traceparent", sent[number].encode())] if number < TRACED else []
            value = f'{{"conversation_id":"{conversation_id}","role":"user","content":"{text}"}}'.encode()
            records.append(Record(conversation_id.encode(), value, headers, 0))
        await trial.publish(records)
        await trial.finished()
        assert await service.stop() == 0
        replied = [
            {name: (value or b"").decode() for name, value in record.headers}
            for record in await trial.records(topics.replies)
        ]
        expected = len(sent) if otel else 1
        await until("the spans", lambda: len(receiver.spans) >= expected)
        return Traced(receiver.spans, requested, replied, sent)


def _requests(endpoint: str) -> list[str]:
    """Spans as a requester has them around what it publishes; returns their contexts."""
    provider = TracerProvider(resource=Resource.create({"service.name": "requester"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
    tracer = provider.get_tracer("requester")
    sent = []
    for _ in range(TRACED):
        with tracer.start_as_current_span("send conversation.events", kind=SpanKind.PRODUCER) as span:
            carrier: dict[str, str] = {}
            TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(span))
            sent.append(carrier["traceparent"])
    provider.shutdown()
    return sent


def main() -> None:
    """Print the tree."""
    with tempfile.TemporaryDirectory() as folder, find_kafka() as kafka:
        traced = asyncio.run(traced_run(kafka, Path(folder)))
    topic = next(span.attributes["messaging.destination.name"] for span in traced.spans if span.service == "convoy")
    prefix = str(topic).removesuffix("events")
    sys.stdout.write(tree(traced.spans).replace(prefix, "conversation.") + "\n")


if __name__ == "__main__":
    main()
