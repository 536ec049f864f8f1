"""Puts the emulator on a real socket, inside an event loop that is already running.

The same listener as the service's own endpoints; this adds that the application may cut a connection.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Self

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.emulator.api import Api
from service.emulator.app import EmulatorApp
from service.emulator.everyday import EVERYDAY
from service.emulator.fault_play import FaultPlay
from service.emulator.faults import FaultScript
from service.emulator.store import Store
from service.emulator.wire import TRANSPORT_EXTENSION
from service.ops.asgi import AsgiListener

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


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
        self.faults = FaultPlay(
            faults or FaultScript(), seed=seed, now=clock(), everyday=[one.rule for one in EVERYDAY]
        )
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
        self._prefix = prefix
        self._listener = AsgiListener(self.app, host, port, protocol=_Protocol)

    @property
    def base_url(self) -> str:
        """The address a client is given, prefix included."""
        return self.origin + self._prefix

    async def __aenter__(self) -> Self:
        await self._listener.__aenter__()
        self.origin = self._listener.origin
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
        await self._listener.stop()
        late = list(self.app.late_landings)
        for landing in late:
            landing.cancel()
        await asyncio.gather(*late, return_exceptions=True)
