"""What an operator, Prometheus and Kubernetes ask over HTTP: a plain ASGI application.

Served from the first moment, beside the consumer, also while the broker is away. It shows; it controls
nothing and holds no message content.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from prometheus_client.exposition import choose_encoder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prometheus_client import CollectorRegistry

    from service.ops.health import Health

JSON = b"application/json"
TEXT = b"text/plain; charset=utf-8"


class OpsApp:
    """``/metrics``, ``/livez``, ``/readyz``, ``/status``, ``/asyncapi.json``."""

    def __init__(
        self,
        registry: CollectorRegistry,
        health: Health,
        status: Callable[[], dict[str, Any]],
        asyncapi: Callable[[], dict[str, Any]],
    ) -> None:
        self._registry = registry
        self._health = health
        self._status = status
        self._asyncapi = asyncapi

    async def __call__(
        self, scope: dict[str, Any], _receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        code, kind, body = self._answer(scope)
        headers = [
            (b"content-type", kind),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": code, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _answer(self, scope: dict[str, Any]) -> tuple[int, bytes, bytes]:
        if scope["method"] not in {"GET", "HEAD"}:
            return 405, TEXT, b"only GET\n"
        match scope["path"]:
            case "/metrics":
                accept = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
                encode, content_type = choose_encoder(accept)
                return 200, content_type.encode(), encode(self._registry)
            case "/livez":
                alive, body = self._health.alive()
            case "/readyz":
                alive, body = self._health.ready()
            case "/status":
                alive, body = True, self._status()
            case "/asyncapi.json":
                alive, body = True, self._asyncapi()
            case _:
                return 404, TEXT, b"/metrics /livez /readyz /status /asyncapi.json\n"
        return 200 if alive else 503, JSON, msgspec.json.encode(body) + b"\n"
