"""The port for operators shows, and there is nothing on it that could be changed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.ops.health import Health
from service.ops.http import OpsApp

PATHS = ("/metrics", "/livez", "/readyz", "/status", "/asyncapi.json")


def ask(method: str, path: str, **scope: Any) -> tuple[int, bytes]:
    app = OpsApp(CollectorRegistry(), Health(lambda: 0.0, ready_needs_api=False), dict, dict)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("a body is never read")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app({"type": "http", "method": method, "path": path, "headers": [], **scope}, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize("path", [*PATHS, "/", "/shutdown"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", ""])
def test_only_questions_are_answered_and_no_body_is_read(method: str, path: str) -> None:
    assert ask(method, path)[0] == 405


@pytest.mark.parametrize("path", PATHS)
def test_what_is_shown_is_shown(path: str) -> None:
    assert ask("GET", path)[0] == (503 if path == "/readyz" else 200)
    assert ask("HEAD", path)[1] == b""


@pytest.mark.parametrize(
    "path", ["", "/", "//status", "/status/", "/../etc/passwd", "/STATUS", "/status\x00", "/%2e%2e", "/debug"]
)
def test_nothing_else_is_there(path: str) -> None:
    assert ask("GET", path)[0] == 404


@pytest.mark.parametrize(
    "accept", [b"", b"\xff\xfe", b"a" * 100_000, b"application/openmetrics-text; version=1.0.0", b"*/*;q=nan"]
)
def test_no_header_gets_in_the_way_of_a_scrape(accept: bytes) -> None:
    assert ask("GET", "/metrics", headers=[(b"accept", accept)])[0] == 200
