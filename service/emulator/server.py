"""Puts the emulator on a real socket, inside an event loop that is already running.

Decides how the server starts and how it stops: at once, whatever its connections are doing. It uses uvicorn's
HTTP protocol (httptools) but not uvicorn's server, which installs signal handlers, ticks, and waits for open
connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Self

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.emulator.api import Api
from service.emulator.app import EmulatorApp
from service.emulator.fault_play import FaultPlay
from service.emulator.faults import FaultScript
from service.emulator.store import Store
from service.emulator.wire import TRANSPORT_EXTENSION

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

# Longer than any client keeps an idle connection: a server that closes first cuts requests just being
# written, and cuts are the fault script's business.
_KEEP_ALIVE_SECONDS = 300


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, with the connection handed to the application, which is asked to cut it."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {TRANSPORT_EXTENSION: {"transport": self.transport}}


class EmulatorServer:
    """The emulated Conversations API, as an async context manager.

    ```python
    async with EmulatorServer(key="secret") as emulator:
        client = AsyncOpenAI(base_url=emulator.base_url, api_key="secret")
    ```

    `origin` (scheme, host, port) and `base_url` are known once it is entered; `store` may be looked into at
    any time, also afterwards.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        key: str | None = None,
        latency_seconds: float = 0.0,
        faults: FaultScript | None = None,
        seed: int = 0,
        create_on_write: bool = False,
        prefix: str = "/v1",
        max_body_bytes: int = 8 * 1024 * 1024,
        timestamps_in_seconds: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        prefix = "/" + prefix.strip("/") if prefix.strip("/") else ""
        self.store = Store(seed=seed)
        self.faults = FaultPlay(faults or FaultScript(), seed=seed, now=clock())
        api = Api(
            self.store,
            key=key,
            create_on_write=create_on_write,
            prefix=prefix,
            max_body_bytes=max_body_bytes,
            timestamps_in_seconds=timestamps_in_seconds,
        )
        self.app = EmulatorApp(api, self.faults, latency_seconds=latency_seconds, clock=clock)
        self._clock = clock
        self.origin = ""
        self._host = host
        self._port = port
        self._prefix = prefix
        self._state = ServerState()
        self._server: asyncio.Server | None = None

    @property
    def base_url(self) -> str:
        """The address a client is given, prefix included."""
        return self.origin + self._prefix

    async def __aenter__(self) -> Self:
        config = Config(
            self._run,
            http=_Protocol,
            interface="asgi3",
            proxy_headers=False,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        config.load()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Protocol(config=config, server_state=self._state, app_state={}, _loop=loop),
            self._host,
            self._port,
            backlog=2048,
        )
        self.origin = _origin(self._server)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def play(self, script: FaultScript) -> None:
        """Play a fault script from its beginning, in place of the one before."""
        self.faults.play(script, now=self._clock())

    def stats(self) -> dict[str, Any]:
        """Return what was asked and what came of it, as `GET /_emulator/stats` shows it."""
        return self.app.stats()

    async def landed(self) -> None:
        """Wait until everything that was to be stored late is stored."""
        while self.app.late_landings:
            await asyncio.wait(self.app.late_landings)

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
        tasks = [*self._state.tasks, *self.app.late_landings]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _run(self, scope: Any, receive: Any, send: Any) -> None:
        # Only stop() cancels a request; uvicorn would log that as a fault of the application.
        with contextlib.suppress(asyncio.CancelledError):
            await self.app(scope, receive, send)


def _origin(server: asyncio.Server) -> str:
    host, port = server.sockets[0].getsockname()[:2]
    # Listening on every interface is no address to connect to.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
