"""An ASGI application on a socket, inside an event loop that is already running.

uvicorn's HTTP protocol (httptools) does the talking; its server is not used, because that installs signal
handlers, ticks, and waits for open connections when it stops.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Self

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

if TYPE_CHECKING:
    from types import TracebackType

KEEP_ALIVE_SECONDS = 300
"""Longer than clients keep an idle connection, so that the server is not the one to close."""


class AsgiListener:
    """Serves ``app`` while entered; ``port`` and ``origin`` (scheme, host, port) are the real ones then."""

    def __init__(
        self, app: Any, host: str, port: int, *, protocol: type[HttpToolsProtocol] = HttpToolsProtocol
    ) -> None:
        self._app = app
        self._host = host
        self._protocol = protocol
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self.port = port
        self.origin = ""

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            OSError: the address is taken or not ours.
        """
        config = Config(
            self._run,
            http=self._protocol,
            interface="asgi3",
            proxy_headers=False,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        config.load()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: self._protocol(config=config, server_state=self._state, app_state={}, _loop=loop),
            self._host,
            self.port,
            backlog=2048,
        )
        host, self.port = self._server.sockets[0].getsockname()[:2]
        # Listening on every interface is no address to connect to.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        self.origin = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Close the socket and every connection at once, whatever is under way on it."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._state.connections):
            connection.transport.abort()
        # A protocol learns one turn of the loop after the abort that its connection is gone; until then
        # uvicorn would answer for a request that ends without an answer.
        while self._state.connections:  # noqa: ASYNC110 - the loop has no event for it
            await asyncio.sleep(0)
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _run(self, scope: Any, receive: Any, send: Any) -> None:
        # Only stop() cancels a request; uvicorn would log that as a fault of the application.
        with contextlib.suppress(asyncio.CancelledError):
            await self._app(scope, receive, send)
