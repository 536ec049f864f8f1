"""The emulator as a plain ASGI application: the API under its prefix, and what happens to its requests.

Decides in which order a request meets the fault script, the latency and the API, and what is counted. What goes
wrong is the script's decision, what is stored the API's, how the bytes leave the wire's.

Under `/_emulator`, beside the API and without a key, one may look inside:

- `GET /_emulator/stats`: requests by operation and outcome, concurrency, items stored, what each fault rule did.
- `GET /_emulator/dump`: JSON lines, one a conversation: `{"conversation_id", "items": [{"id", "role", "text",
  "created_ms"}]}`, items in the order in which they were stored.
- `GET` and `PUT /_emulator/faults`: the script being played; putting one starts it from its beginning.

and, for people and their tools, `GET /` (the page) and `GET /openapi.json`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec

from service import __version__
from service.emulator import contract, openapi
from service.emulator.contract import WRITES, Answer, Refusal
from service.emulator.fault_play import Arrival, Decision, FaultPlay, Scripted
from service.emulator.faults import Cut, Drip, FaultScriptError, FewerItems, HalfJson, Silence, Stores, read_faults
from service.emulator.page import Page, file
from service.emulator.recent import Recent, Seen
from service.emulator.tally import Tally
from service.emulator.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from service.emulator.api import Api, Request
    from service.emulator.wire import Receive, Scope, Send

_CONTROL = "/_emulator/"
_FRONT = {"/", "/openapi.json"}
_DUMP_CHUNK_BYTES = 64 * 1024

_encode = msgspec.json.Encoder().encode


class EmulatorApp:
    """ASGI application over an API and a fault script.

    `latency_seconds` is what the API's own work takes, before it stores or reads; what a fault refuses without
    any work does not wait for it. `clock` drives the fault script's seconds and the statistics.
    """

    def __init__(
        self,
        api: Api,
        faults: FaultPlay,
        *,
        latency_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.api = api
        self.faults = faults
        self.tally = Tally(now=clock())
        self.recent = Recent()
        self._page = Page(api.store, faults, self.tally, self.recent, base_path=api.base_path, clock=clock)
        self.late_landings: set[asyncio.Task[None]] = set()
        self._latency_seconds = latency_seconds
        self._clock = clock
        self._arrived = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        assert scope["type"] == "http"
        self._arrived += 1
        request_id = f"req_{self._arrived:016x}"
        wire = Wire(scope, receive, send, request_id=request_id)
        body = await wire.read_body(self.api.max_body_bytes)
        if body is None:
            return
        path: str = scope["path"]
        if path.startswith(_CONTROL):
            await self._control(scope, path.removeprefix(_CONTROL), body, wire)
            return
        if path in _FRONT and scope["method"] == "GET":
            await wire.answer(self._front(scope, path))
            return
        request = self.api.read_request(scope, body)
        if isinstance(request, Answer):
            self.tally.count("unknown", str(request.status))
            self._see(scope["method"], path, "", 0).end(str(request.status), now=self._clock())
            await wire.answer(request)
            return
        items = request.items
        arrival = Arrival(
            request.operation,
            request.conversation_id,
            items,
            request.body_bytes,
            self.tally.writing(request.conversation_id),
            request_id,
        )
        seen = self._see(scope["method"], request.operation, request.conversation_id, len(items))
        decision = self.faults.decide(arrival, now=seen.began)
        seen.rule = decision.rule
        outcome = "gone"
        try:
            outcome = await self._play(decision, request, wire)
        finally:
            self.faults.release(decision)
            seen.end(outcome, now=self._clock())
        self.tally.count(request.operation, outcome)

    def _see(self, method: str, operation: str, conversation_id: str, items: int) -> Seen:
        now = self._clock()
        seen = Seen(self._arrived, int(time.time() * 1000), now, method, operation, conversation_id, items)
        self.recent.add(seen)
        return seen

    async def _play(self, decision: Decision, request: Request, wire: Wire) -> str:
        """Let one request have what was decided; returns what its client saw."""
        effect = decision.effect
        if isinstance(effect, Scripted | Cut) and effect.stores == "none":
            # Refused at the door: the API never sees it, and it is not in flight.
            await _sleep(decision.wait_before_seconds + decision.wait_when_done_seconds)
            return await _break_off(effect, wire)
        is_write = request.operation in WRITES
        self.tally.begin(now=self._clock())
        if is_write:
            self.tally.begin_write(request.conversation_id)
        landing = None
        try:
            await _sleep(decision.wait_before_seconds)
            if isinstance(effect, Scripted | Cut | Silence) and effect.lands_after_seconds:
                landing = asyncio.create_task(self._land(request, effect))
                self.late_landings.add(landing)
                landing.add_done_callback(self.late_landings.discard)
            return await self._work(request, decision, wire)
        finally:
            self.tally.end(now=self._clock())
            # What has yet to land keeps its conversation busy.
            if is_write and landing is None:
                self.tally.end_write(request.conversation_id)

    async def _work(self, request: Request, decision: Decision, wire: Wire) -> str:
        effect = decision.effect
        stores: Stores = "all"
        if isinstance(effect, Scripted | Cut | Silence):
            stores = "none" if effect.lands_after_seconds else effect.stores
        elif isinstance(effect, FewerItems):
            stores = effect.stores
        answer = None
        if stores != "none":
            await _sleep(self._latency_seconds)
            listed = effect.listed if isinstance(effect, FewerItems) else None
            answer = self.api.perform(request, keep=_keep(stores), listed=listed)
        await _sleep(decision.wait_when_done_seconds)
        # The API's own refusal goes out as it is, whatever the script says: a fault that is to be felt after
        # storing must not pretend that something was stored.
        if answer is not None and answer.status >= 400:
            effect = None
        if isinstance(effect, Scripted | Cut | Silence):
            return await _break_off(effect, wire)
        assert answer is not None
        return await _give(answer, effect, wire)

    async def _land(self, request: Request, effect: Scripted | Cut | Silence) -> None:
        try:
            await asyncio.sleep(effect.lands_after_seconds)
            self.api.perform(request, keep=_keep(effect.stores))
        finally:
            if request.operation in WRITES:
                self.tally.end_write(request.conversation_id)

    # -- a look inside ---------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Return the statistics, as `GET /_emulator/stats` shows them."""
        store = self.api.store
        return {
            **self.tally.snapshot(now=self._clock()),
            "conversations": len(store.conversations),
            "items_stored": store.items_stored,
            "late_landings": len(self.late_landings),
            "faults": self.faults.counts(),
        }

    def _front(self, scope: Scope, path: str) -> Answer:
        if path == "/openapi.json":
            description = openapi.describe(
                base_path=self.api.base_path, needs_key=self.api.needs_key, version=__version__
            )
            return contract.json_answer(description)
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        return self._page.show(scope["query_string"], host)

    async def _control(self, scope: Scope, name: str, body: bytes, wire: Wire) -> None:
        match scope["method"], name:
            case "GET", "stats":
                await wire.answer(contract.json_answer(self.stats()))
            case "GET", "dump":
                await wire.stream(b"application/x-ndjson", self._dump())
            case "GET", "faults":
                await wire.answer(contract.json_answer(self.faults.script))
            case "PUT", "faults":
                await wire.answer(self._put_faults(body))
            case "POST", "switch":
                await wire.answer(self._page.switch(body, scope["headers"]))
            case "GET", _:
                await wire.answer(file(name) or contract.gateway_not_found())
            case _:
                await wire.answer(contract.gateway_not_found())

    def _put_faults(self, body: bytes) -> Answer:
        document = contract.read_document(body)
        if isinstance(document, Refusal):
            return contract.refusal_answer(document, form="flat")
        try:
            script = read_faults(document)
        except FaultScriptError as error:
            return contract.json_answer({"error": str(error)}, status=400)
        self.faults.play(script, now=self._clock())
        return contract.json_answer(script)

    def _dump(self) -> Iterator[bytes]:
        chunk = bytearray()
        for conversation in list(self.api.store.conversations.values()):
            items = [
                {"id": item.id, "role": item.role, "text": item.text, "created_ms": item.created_ms}
                for item in conversation.items()
            ]
            chunk += _encode({"conversation_id": conversation.id, "items": items})
            chunk += b"\n"
            if len(chunk) >= _DUMP_CHUNK_BYTES:
                yield bytes(chunk)
                chunk.clear()
        yield bytes(chunk)


async def _break_off(effect: Scripted | Cut | Silence, wire: Wire) -> str:
    match effect:
        case Scripted():
            await wire.answer(effect.answer)
            return str(effect.answer.status)
        case Cut():
            await wire.cut(reset=effect.reset)
            return "cut"
        case Silence():
            await wire.wait_until_gone()
            return "silence"


async def _give(answer: Answer, effect: Drip | HalfJson | FewerItems | None, wire: Wire) -> str:
    match effect:
        case Drip():
            await wire.drip(answer, seconds=effect.seconds)
        case HalfJson():
            await wire.answer_half(answer, cut=effect.cut)
        case _:
            await wire.answer(answer)
    return str(answer.status)


def _keep(stores: Stores) -> int | None:
    return stores if isinstance(stores, int) else None


async def _sleep(seconds: float) -> None:
    # A sleep of nothing would still let other requests overtake: without a delay, a request is one turn.
    if seconds > 0:
        await asyncio.sleep(seconds)
