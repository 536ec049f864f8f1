"""Traces end to end: producers' contexts in, OTLP out to a receiver on loopback, the API and the replies in between."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from traced import WORDS, Traced, traced_run, tree

if TYPE_CHECKING:
    from kafka_server import KafkaServer
    from traced import SpanSeen

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
POST, GET = "POST /conversations/{conversation_id}/items", "GET /conversations/{conversation_id}/items"


@pytest.fixture(scope="module")
def traced(kafka: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return asyncio.run(traced_run(kafka, tmp_path_factory.mktemp("traced")))


def named(traced: Traced, name: str) -> list[SpanSeen]:
    return sorted((span for span in traced.spans if re.fullmatch(name, span.name)), key=lambda span: span.start)


def test_a_batch_its_attempts_and_its_outcome_are_one_trace(traced: Traced) -> None:
    [batch] = named(traced, r"batch .*")
    within = [span for span in traced.spans if span.trace_id == batch.trace_id and span is not batch]
    assert {span.parent_id for span in within} == {batch.span_id}
    names = [span.name for span in sorted(within, key=lambda span: span.start)]
    assert [re.sub(r" t\w+\.", " ", name) for name in names] == ["receive events", POST, GET, POST, "send replies"]
    assert batch.attributes["messaging.batch.message_count"] == len(WORDS)
    assert all(batch.start <= span.start <= span.end for span in within)
    assert [span.attributes["http.response.status_code"] for span in named(traced, "(POST|GET).*")] == [503, 200, 200]
    assert [span.failed for span in named(traced, "(POST|GET).*")] == [True, False, False]


def test_the_batch_is_linked_to_the_spans_that_sent_its_events(traced: Traced) -> None:
    [batch] = named(traced, r"batch .*")
    assert list(batch.links) == [sent.split("-")[2] for sent in traced.sent]


def test_a_requester_finds_in_its_own_trace_what_became_of_its_event_and_its_reply_goes_on_there(
    traced: Traced,
) -> None:
    own = {span.trace_id: span for span in named(traced, r"process .*")}
    for sent, reply in zip(traced.sent, traced.replied, strict=False):
        _, trace_id, span_id, _ = sent.split("-")
        assert own[trace_id].parent_id == span_id
        assert own[trace_id].kind == "CONSUMER"
        assert own[trace_id].attributes["convoy.outcome"] == "delivered"
        assert reply["traceparent"].split("-")[1:3] == [trace_id, own[trace_id].span_id]
    [batch] = named(traced, r"batch .*")
    assert traced.replied[-1]["traceparent"].split("-")[1] == batch.trace_id


def test_each_request_carries_the_context_of_its_attempt(traced: Traced) -> None:
    attempts = [span.span_id for span in named(traced, "(POST|GET).*")]
    assert [headers["traceparent"].split("-")[2] for headers in traced.requested] == attempts


def test_the_page_shows_the_tree_as_it_is(traced: Traced) -> None:
    shown = re.search(r"```\n(\[requester\].*?)\n```", PAGE.read_text(), re.DOTALL)
    assert shown is not None
    without_times = re.sub(r"  [\d,.]+ ms", "", shown[1])
    found = re.sub(r"\bt\w{8}\.", "conversation.", tree(traced.spans, times=False))
    assert without_times == found


def test_what_is_not_sampled_is_neither_exported_nor_propagated(kafka: KafkaServer, tmp_path: Path) -> None:
    traced = asyncio.run(traced_run(kafka, tmp_path, OTEL_TRACES_SAMPLER="always_off"))
    assert {span.service for span in traced.spans} == {"requester"}
    assert not any("traceparent" in headers for headers in traced.requested)
    assert [reply.get("traceparent") for reply in traced.replied] == [*traced.sent, None]
