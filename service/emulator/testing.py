"""The emulator as a pytest fixture, for whoever tests a client of the Conversations API.

In a `conftest.py`:

```python
pytest_plugins = ["service.emulator.testing"]
```

and every test that asks for `emulator` gets one of its own, empty and on a port of its own. It lives in a thread, so
that tests may block or run event loops as they please. A fixture `emulator_options` of your own replaces the
defaults. Without pytest's fixture, `with Emulator(...) as emulator:` does the same.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, Self, TypedDict, TypeVar, Unpack

import msgspec
import pytest

from service.emulator.faults import FaultScript, Rule
from service.emulator.server import EmulatorServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    T = TypeVar("T")

KEY: Final = "sk-emulator"
_PATIENCE_SECONDS: Final = 10.0


class EmulatorOptions(TypedDict, total=False):
    """What may be chosen. `key` None accepts any; `create_on_write` lets unknown conversations come into being."""

    host: str
    port: int
    key: str | None
    latency_seconds: float
    faults: FaultScript | None
    seed: int
    create_on_write: bool
    prefix: str
    max_body_bytes: int
    timestamps_in_seconds: bool


class Emulator:
    """The emulated Conversations API in a thread of its own, while entered; may be used from any other."""

    def __init__(self, **options: Unpack[EmulatorOptions]) -> None:
        self._options: EmulatorOptions = {"key": KEY, **options}
        self._thread = threading.Thread(target=self._live, name="emulator", daemon=True)
        self._started: Future[tuple[asyncio.AbstractEventLoop, EmulatorServer, asyncio.Event]] = Future()

    def __enter__(self) -> Self:
        """Start; returns when it answers.

        Raises:
            OSError: the address is taken or not ours.
        """
        self._thread.start()
        self._started.result(_PATIENCE_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop, _, stopped = self._started.result()
        loop.call_soon_threadsafe(stopped.set)
        self._thread.join(_PATIENCE_SECONDS)

    @property
    def base_url(self) -> str:
        """The address a client is given."""
        return self._server.base_url

    @property
    def origin(self) -> str:
        """Scheme, host and port; the page lives there."""
        return self._server.origin

    @property
    def key(self) -> str:
        """A bearer key that is accepted."""
        return self._options["key"] or KEY

    def play(self, *rules: Rule, lock_busy_conversations: bool = False) -> None:
        """Play these rules from now on, in place of any others; none of them: nothing goes wrong."""
        script = FaultScript(rules, lock_busy_conversations)
        self._inside(lambda server: server.play(script))

    def create_conversation(self, conversation_id: str | None = None, *, metadata: dict[str, str] | None = None) -> str:
        """Add an empty conversation and return its id; raises ValueError where that id is taken."""

        def create(server: EmulatorServer) -> str:
            if conversation_id in server.store.conversations:
                raise ValueError(f"there is a conversation {conversation_id!r} already")
            return server.store.create_conversation(now_ms=0, metadata=metadata, conversation_id=conversation_id).id

        return self._inside(create)

    def items(self, conversation_id: str) -> list[dict[str, Any]]:
        """Return a conversation's items, oldest first, as the API shows them; raises KeyError."""

        def read(server: EmulatorServer) -> list[bytes]:
            return [item.document for item in server.store.conversations[conversation_id].items()]

        return [msgspec.json.decode(document) for document in self._inside(read)]

    def texts(self, conversation_id: str) -> list[str]:
        """Return the texts of a conversation's items, oldest first; raises KeyError."""
        return self._inside(lambda server: server.store.conversations[conversation_id].texts())

    def stats(self) -> dict[str, Any]:
        """Return what was asked and what came of it: `requests` by operation and outcome, `faults` by rule, more."""
        return self._inside(lambda server: server.stats())

    @property
    def _server(self) -> EmulatorServer:
        return self._started.result()[1]

    def _inside(self, look: Callable[[EmulatorServer], T]) -> T:
        """Do something in the emulator's own thread, so that nothing changes under it."""
        loop, server, _ = self._started.result()

        async def do() -> T:
            return look(server)

        return asyncio.run_coroutine_threadsafe(do(), loop).result(_PATIENCE_SECONDS)

    def _live(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as refused:
            self._started.set_exception(refused)

    async def _serve(self) -> None:
        stopped = asyncio.Event()
        async with EmulatorServer(**self._options) as server:
            self._started.set_result((asyncio.get_running_loop(), server, stopped))
            await stopped.wait()


@pytest.fixture
def emulator_options() -> EmulatorOptions:
    """Return the options of the `emulator` fixture; replace it by one of your own."""
    return {}


@pytest.fixture
def emulator(emulator_options: EmulatorOptions) -> Iterator[Emulator]:
    """Run an emulator for one test."""
    with Emulator(**emulator_options) as running:
        yield running
