"""An OAuth token endpoint on loopback, for client credentials: gives tokens, notes who asks, can refuse."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, unquote_plus

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class TokenEndpoint:
    """`with TokenEndpoint(make_token) as endpoint:` listens at `endpoint.url`."""

    def __init__(self, token: Callable[[], str], *, client: str = "convoy", secret: str = "client-hush-1") -> None:
        self.token = token
        self.client = client
        self.secret = secret
        self.expires_in: object = 600
        self.status = 200
        self.location = ""
        self.asked: list[dict[str, list[str]]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                status, body = endpoint._answer(
                    self.headers.get("Authorization", ""), self.rfile.read(int(self.headers["Content-Length"]))
                )
                self.send_response(status)
                if endpoint.location:
                    self.send_header("Location", endpoint.location)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/token"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, authorization: str, form: bytes) -> tuple[int, bytes]:
        self.asked.append(parse_qs(form.decode()))
        given = base64.b64decode(authorization.removeprefix("Basic ")).decode().split(":")
        if [unquote_plus(part) for part in given] != [self.client, self.secret]:
            return 401, b'{"error": "invalid_client"}'
        if self.status != 200:
            return self.status, b"not today"
        return 200, json.dumps({"access_token": self.token(), "expires_in": self.expires_in}).encode()
