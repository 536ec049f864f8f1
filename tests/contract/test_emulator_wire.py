"""What every fault puts on the wire, byte for byte, as a client without any cleverness sees it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import httpx
import pytest
import pytest_asyncio

from service.emulator.faults import (
    ConcurrencyThrottle,
    Cut,
    Drip,
    Effect,
    FaultScript,
    FewerItems,
    Garbage,
    HalfJson,
    Html,
    Latency,
    Lock,
    Match,
    Moderation,
    RateThrottle,
    Rule,
    Silence,
    Status,
    TooLarge,
    Unauthorized,
    UniformLatency,
    Unpaid,
    When,
    WrongPath,
)
from service.emulator.server import EmulatorServer
from service.emulator.store import Store

# `convoy emulator` and the demo run on uvloop, the fixture on asyncio's own loop.
pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

CONVERSATION = "conv_a"
ITEMS = f"/v1/conversations/{CONVERSATION}/items"
WRITES = Match(operations=("create_items",))


@dataclass
class Seen:
    """Everything a client received on a connection."""

    raw: bytes
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One connection, one request, no retries and no opinion."""

    def __init__(self, emulator: EmulatorServer) -> None:
        self._emulator = emulator

    async def __aenter__(self) -> Self:
        host, port = self._emulator.origin.removeprefix("http://").split(":")
        self.reader, self._writer = await asyncio.open_connection(host, int(port))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def send(self, method: str, path: str, document: Any = None) -> None:
        body = b"" if document is None else document if isinstance(document, bytes) else json.dumps(document).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        await self._writer.drain()

    async def receive(self) -> Seen:
        """Read until the server closes."""
        raw = await self.reader.read()
        if not raw:
            return Seen(raw)
        head, _, body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return Seen(raw, int(first.split()[1]), headers, body)


async def call(emulator: EmulatorServer, method: str, path: str, document: Any = None) -> Seen:
    async with Connection(emulator) as connection:
        await connection.send(method, path, document)
        return await connection.receive()


def says(*texts: str) -> dict[str, Any]:
    return {"items": [{"type": "message", "role": "user", "content": text} for text in texts]}


async def write(emulator: EmulatorServer, *texts: str) -> Seen:
    return await call(emulator, "POST", ITEMS, says(*(texts or ("a", "b", "c"))))


def stored(emulator: EmulatorServer) -> list[str]:
    return emulator.store.conversations[CONVERSATION].texts()


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


Start = Callable[..., Awaitable[EmulatorServer]]


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    async with contextlib.AsyncExitStack() as stack:

        async def start_with(*rules: Rule | Effect, lock_busy: bool = False, **settings: Any) -> EmulatorServer:
            script = FaultScript(
                tuple(rule if isinstance(rule, Rule) else Rule(rule, WRITES) for rule in rules), lock_busy
            )
            emulator = await stack.enter_async_context(EmulatorServer(faults=script, **settings))
            emulator.store.create_conversation(now_ms=0, conversation_id=CONVERSATION)
            return emulator

        async with asyncio.timeout(10):
            yield start_with


async def test_without_faults_an_answer_is_whole(start: Start) -> None:
    emulator = await start()
    seen = await write(emulator)
    assert seen.status == 200
    assert seen.headers["content-type"] == "application/json"
    assert int(seen.headers["content-length"]) == len(seen.body)
    assert seen.headers["x-request-id"].startswith("req_")
    assert [item["content"][0]["text"] for item in seen.document["data"]] == stored(emulator) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("stores", "expected"), [("none", []), ("all", ["a", "b", "c"]), (2, ["a", "b"]), (9, ["a", "b", "c"])]
)
class TestWhatIsStoredBeforeItGoesWrong:
    async def test_a_cut_shows_no_byte(self, start: Start, stores: Any, expected: list[str]) -> None:
        emulator = await start(Cut(stores=stores))
        assert (await write(emulator)).raw == b""
        assert stored(emulator) == expected
        assert emulator.stats()["requests"] == {"create_items": {"cut": 1}}

    async def test_a_reset_shows_no_byte(self, start: Start, stores: Any, expected: list[str]) -> None:
        emulator = await start(Cut(stores=stores, reset=True))
        with pytest.raises(ConnectionResetError):
            await write(emulator)
        assert stored(emulator) == expected

    async def test_a_server_error_is_an_answer(self, start: Start, stores: Any, expected: list[str]) -> None:
        emulator = await start(Status(status=500, stores=stores))
        seen = await write(emulator)
        assert seen.status == 500
        assert seen.document["error"]["type"] == "server_error"
        assert stored(emulator) == expected

    async def test_silence_shows_no_byte_until_somebody_leaves(
        self, start: Start, stores: Any, expected: list[str]
    ) -> None:
        emulator = await start(Rule(Silence(stores=stores), WRITES, When(first=1)))
        async with Connection(emulator) as connection:
            await connection.send("POST", ITEMS, says("a", "b", "c"))
            # Another request that is answered shows that the silent one was dealt with before it.
            assert (await call(emulator, "GET", ITEMS)).status == 200
            assert emulator.stats()["in_flight"] == 1
            await emulator.stop()
            assert await connection.reader.read() == b""
        assert stored(emulator) == expected

    async def test_a_page_takes_the_answers_place(self, start: Start, stores: Any, expected: list[str]) -> None:
        emulator = await start(Html(stores=stores))
        seen = await write(emulator)
        assert (seen.status, seen.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert seen.body.startswith(b"<html>")
        assert stored(emulator) == expected

    async def test_garbage_takes_the_answers_place(self, start: Start, stores: Any, expected: list[str]) -> None:
        emulator = await start(Garbage(stores=stores))
        seen = await write(emulator)
        assert (seen.status, len(seen.body)) == (200, 64)
        with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
            seen.document  # noqa: B018 - it is what raises
        assert stored(emulator) == expected


async def test_what_lands_late_is_stored_after_the_cut_and_behind_what_came_between(start: Start) -> None:
    emulator = await start(Rule(Cut(stores="all", lands_after_seconds=0.2), WRITES, When(first=1)))
    assert (await write(emulator, "late")).raw == b""
    assert stored(emulator) == []
    assert (await write(emulator, "between")).status == 200
    await emulator.landed()
    assert stored(emulator) == ["between", "late"]


async def test_what_lands_late_keeps_its_conversation_locked_until_then(start: Start) -> None:
    late = Rule(Cut(stores=1, lands_after_seconds=0.2), WRITES, When(first=1))
    emulator = await start(late, lock_busy=True)
    await write(emulator, "late", "never")
    assert (await write(emulator, "x")).document["error"]["code"] == "conversation_locked"
    assert (await call(emulator, "GET", ITEMS)).document["data"] == []
    await emulator.landed()
    assert (await write(emulator, "x")).status == 200
    assert stored(emulator) == ["late", "x"]


async def test_silence_can_land_late_too(start: Start) -> None:
    emulator = await start(Rule(Silence(stores="all", lands_after_seconds=0.05), WRITES))
    async with Connection(emulator) as connection:
        await connection.send("POST", ITEMS, says("late"))
        while not emulator.app.late_landings:
            await call(emulator, "GET", ITEMS)
        await emulator.landed()
        assert stored(emulator) == ["late"]


async def test_a_fault_after_storing_does_not_hide_that_nothing_can_be_stored(start: Start) -> None:
    emulator = await start(Rule(Cut(stores="all")), Rule(Garbage()), key="secret")
    assert (await write(emulator)).status == 401


@pytest.mark.parametrize(
    ("form", "content_type", "body"),
    [
        (
            "openai",
            "application/json",
            {"error": {"message": "m", "type": "server_error", "param": "p", "code": "c"}},
        ),
        ("flat", "application/json", {"error": "m"}),
        ("dashscope", "application/json", {"code": "c", "message": "m", "request_id": "req_0000000000000001"}),
        ("text", "text/plain; charset=utf-8", b"m"),
        ("html", "text/html; charset=utf-8", b"<html><head><title>m</title></head><body><h1>m</h1></body></html>\n"),
    ],
)
async def test_an_error_comes_in_every_form_there_is(start: Start, form: Any, content_type: str, body: Any) -> None:
    headers = {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT", "retry-after-ms": "5"}
    emulator = await start(Status(status=503, code="c", message="m", param="p", form=form, headers=headers))
    seen = await write(emulator)
    assert (seen.status, seen.headers["content-type"]) == (503, content_type)
    assert (seen.body if isinstance(body, bytes) else seen.document) == body
    assert seen.headers["retry-after"] == headers["Retry-After"]
    assert seen.headers["retry-after-ms"] == "5"
    assert stored(emulator) == []


@pytest.mark.parametrize(
    ("body", "content_type"), [('{"oops": 1}', "application/json"), ("oops", "text/plain; charset=utf-8")]
)
async def test_an_error_can_have_a_body_of_the_scripts_own(start: Start, body: str, content_type: str) -> None:
    seen = await write(await start(Status(status=418, body=body)))
    assert (seen.status, seen.body, seen.headers["content-type"]) == (418, body.encode(), content_type)


@pytest.mark.parametrize(
    ("rule", "status", "code", "param"),
    [
        (Rule(Lock(), WRITES), 400, "conversation_locked", "conversation"),
        (Rule(Moderation(), Match(text="b")), 400, "DataInspectionFailed", None),
        (Rule(Moderation(names_item=True), Match(text="b")), 400, "DataInspectionFailed", "items[1].content"),
        (Rule(Unpaid()), 400, "Arrearage", None),
        (Rule(Unauthorized()), 401, "invalid_api_key", None),
        (Rule(TooLarge(max_bytes=20)), 413, "request_too_large", None),
    ],
)
async def test_a_refusal_stores_nothing(start: Start, rule: Rule, status: int, code: str, param: str) -> None:
    emulator = await start(rule)
    seen = await write(emulator)
    error = seen.document["error"]
    assert (seen.status, error["code"], error["param"]) == (status, code, param)
    assert stored(emulator) == []


async def test_a_wrong_path_is_answered_by_a_gateway(start: Start) -> None:
    seen = await write(await start(WrongPath()))
    assert (seen.status, seen.document) == (404, {"detail": "Not Found"})


async def test_a_key_can_be_refused_until_a_time_and_a_lock_last_until_one(start: Start) -> None:
    clock = Clock()
    emulator = await start(
        Rule(Unauthorized(), when=When(until_seconds=5)),
        Rule(Lock(), Match(conversation=CONVERSATION), When(from_seconds=10, until_seconds=30)),
        clock=clock,
    )
    statuses = []
    for now in (0, 4.9, 5, 9.9, 10, 29.9, 30):
        clock.now = 1000 + now
        statuses.append((await write(emulator, "x")).status)
    assert statuses == [401, 401, 200, 200, 400, 400, 200]


async def test_a_rate_is_throttled(start: Start) -> None:
    clock = Clock()
    emulator = await start(RateThrottle(requests_per_second=2, burst=2, retry_after_ms=500), clock=clock)
    assert [(await write(emulator)).status for _ in range(3)] == [200, 200, 429]
    clock.now += 0.5
    assert (await write(emulator)).status == 200
    refused = await write(emulator)
    assert refused.headers["retry-after-ms"] == "500"
    assert refused.document["code"] == "Throttling.RateQuota"
    assert emulator.stats()["requests"]["create_items"] == {"200": 3, "429": 2}


async def test_concurrency_is_throttled_until_a_request_ends(start: Start) -> None:
    emulator = await start(ConcurrencyThrottle(in_flight=1), Rule(Silence(), WRITES, When(first=1)))
    async with Connection(emulator) as connection:
        await connection.send("POST", ITEMS, says("silent"))
        while emulator.stats()["in_flight"] == 0:
            await call(emulator, "GET", ITEMS)
        refused = await write(emulator)
        assert refused.status == 429
        assert "retry-after" not in refused.headers
    while (await write(emulator, "x")).status == 429:
        pass
    assert stored(emulator) == ["x"]
    assert emulator.stats()["max_writes_of_one_conversation"] == 1


async def test_a_busy_conversation_is_locked_and_others_are_not(start: Start) -> None:
    emulator = await start(Rule(Silence(), WRITES, When(first=1)), lock_busy=True, create_on_write=True)
    async with Connection(emulator) as connection:
        await connection.send("POST", ITEMS, says("silent"))
        while emulator.stats()["in_flight"] == 0:
            await call(emulator, "GET", ITEMS)
        assert (await write(emulator)).document["error"]["code"] == "conversation_locked"
        assert (await call(emulator, "POST", "/v1/conversations/conv_b/items", says("x"))).status == 200


async def test_half_an_answer_can_be_honest_about_its_length(start: Start) -> None:
    emulator = await start(HalfJson())
    seen = await write(emulator)
    assert int(seen.headers["content-length"]) == len(seen.body)
    assert seen.body.startswith(b'{"object":"list","data":[')
    with pytest.raises(json.JSONDecodeError):
        seen.document  # noqa: B018 - it is what raises
    assert stored(emulator) == ["a", "b", "c"]


async def test_half_an_answer_can_promise_the_whole(start: Start) -> None:
    emulator = await start(HalfJson(cut=True))
    seen = await write(emulator)
    assert int(seen.headers["content-length"]) // 2 == len(seen.body) > 0
    assert stored(emulator) == ["a", "b", "c"]


@pytest.mark.parametrize(("stores", "expected"), [("all", ["a", "b", "c"]), (2, ["a", "b"]), (0, [])])
async def test_fewer_items_can_be_listed_than_were_sent(start: Start, stores: Any, expected: list[str]) -> None:
    emulator = await start(FewerItems(listed=1, stores=stores))
    seen = await write(emulator)
    assert seen.status == 200
    assert [item["content"][0]["text"] for item in seen.document["data"]] == expected[:1]
    assert stored(emulator) == expected


async def test_a_drip_is_the_true_answer_byte_by_byte(start: Start) -> None:
    emulator = await start(Drip(seconds=0.1))
    async with Connection(emulator) as connection:
        began = time.monotonic()
        await connection.send("POST", ITEMS, says("a"))
        pieces = []
        while piece := await connection.reader.read(65536):
            pieces.append(piece)
    assert time.monotonic() - began >= 0.1
    assert len(pieces) > 10
    assert json.loads(b"".join(pieces).partition(b"\r\n\r\n")[2])["data"][0]["role"] == "user"


async def test_a_drip_ends_when_its_client_leaves(start: Start) -> None:
    emulator = await start(Drip(seconds=20))
    async with Connection(emulator) as connection:
        await connection.send("POST", ITEMS, says("a"))
        await connection.reader.readuntil(b"\r\n\r\n{")
    while emulator.stats()["in_flight"]:
        await call(emulator, "GET", ITEMS)
    assert stored(emulator) == ["a"]


async def test_latencies_add_up(start: Start) -> None:
    emulator = await start(
        Latency(0.03), UniformLatency(0.03, 0.04), Latency(0.03, when_done=True), latency_seconds=0.03
    )
    began = time.monotonic()
    assert (await write(emulator)).status == 200
    assert time.monotonic() - began >= 0.12


async def test_a_body_over_the_limit_is_read_and_refused(start: Start) -> None:
    emulator = await start(max_body_bytes=100_000)
    seen = await write(emulator, "x" * 3_000_000)
    assert seen.status == 413
    assert stored(emulator) == []


async def test_an_encoded_slash_belongs_to_the_id(start: Start) -> None:
    emulator = await start(create_on_write=True)
    assert (await call(emulator, "POST", "/v1/conversations/a%2Fb%20%C3%BC/items", says("x"))).status == 200
    assert "a/b ü" in emulator.store.conversations


# -- a look inside -------------------------------------------------------------------------------------------


async def test_statistics_tell_what_was_asked_and_what_came_of_it(start: Start) -> None:
    emulator = await start(Rule(Cut(), WRITES, When(every=2), name="every other write"))
    for _ in range(4):
        await write(emulator)
    await call(emulator, "GET", "/v2/nonsense")
    seen = (await call(emulator, "GET", "/_emulator/stats")).document
    assert seen["requests"] == {"create_items": {"200": 2, "cut": 2}, "unknown": {"404": 1}}
    assert seen["faults"] == [{"rule": "every other write", "matched": 4, "applied": 2}]
    assert (seen["conversations"], seen["items_stored"], seen["in_flight"]) == (1, 6, 0)
    assert (seen["max_in_flight"], seen["max_writes_of_one_conversation"]) == (1, 1)


async def test_a_dump_shows_every_conversation_with_its_items_in_order(start: Start) -> None:
    emulator = await start(create_on_write=True)
    for number in range(300):
        path = f"/v1/conversations/conv_{number}/items"
        assert (await call(emulator, "POST", path, says("first" * 20, "second" * 20))).status == 200
    async with Connection(emulator) as connection:
        await connection.send("GET", "/_emulator/dump")
        seen = await connection.receive()
    assert seen.headers["transfer-encoding"] == "chunked"
    body, rest = b"", seen.body
    while rest:
        length, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(length, 16)], rest[int(length, 16) + 2 :]
    lines = [json.loads(line) for line in body.splitlines()]
    assert [line["conversation_id"] for line in lines] == list(emulator.store.conversations)
    assert [item["text"] for item in lines[7]["items"]] == ["first" * 20, "second" * 20]
    assert lines[7]["items"][0].keys() == {"id", "role", "text", "created_ms"}


async def test_a_script_can_be_replaced_while_running(start: Start) -> None:
    emulator = await start()
    script = {"rules": [{"effect": {"kind": "unpaid"}, "when": {"first": 1}}]}
    put = await call(emulator, "PUT", "/_emulator/faults", script)
    assert put.status == 200
    assert (await call(emulator, "GET", "/_emulator/faults")).document == put.document
    assert [(await write(emulator)).status for _ in range(2)] == [400, 200]
    refused = await call(emulator, "PUT", "/_emulator/faults", {"rules": [{"effect": {"kind": "cat"}}]})
    assert refused.status == 400
    assert "rules[0].effect.kind" in refused.document["error"]
    assert (await call(emulator, "PUT", "/_emulator/faults", b"{")).status == 400
    emulator.play(FaultScript((Rule(WrongPath()),)))
    assert (await write(emulator)).status == 404
    assert (await call(emulator, "GET", "/_emulator/else")).status == 404


# -- starting and stopping -----------------------------------------------------------------------------------


async def test_it_stops_at_once_whatever_its_connections_are_doing() -> None:
    script = FaultScript(
        (
            Rule(Silence(), Match(text="silent")),
            Rule(Cut(stores="all", lands_after_seconds=60), Match(text="late")),
            Rule(Drip(seconds=60), Match(text="drip")),
        )
    )
    emulator = EmulatorServer(latency_seconds=60, faults=script, create_on_write=True)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(emulator)
        for text in ("silent", "late", "drip", "plain"):
            connection = await stack.enter_async_context(Connection(emulator))
            await connection.send("POST", ITEMS, says(text))
        idle = await stack.enter_async_context(Connection(emulator))
        while emulator.stats()["in_flight"] < 3:
            await call(emulator, "GET", "/_emulator/stats")
        began = time.monotonic()
        await emulator.stop()
        assert time.monotonic() - began < 0.5
        assert await idle.reader.read() == b""
    with pytest.raises(ConnectionRefusedError):
        await call(emulator, "GET", ITEMS)


@pytest.mark.parametrize(
    ("prefix", "base_path"), [("/v1", "/v1"), ("api/v2/compatible-mode/v1/", "/api/v2/compatible-mode/v1"), ("", "")]
)
async def test_the_api_can_live_under_any_path(prefix: str, base_path: str) -> None:
    async with EmulatorServer(prefix=prefix) as emulator:
        assert emulator.base_url == emulator.origin + base_path
        assert (await call(emulator, "POST", f"{base_path}/conversations")).status == 200
        assert (await call(emulator, "POST", "/other/conversations")).document == {"detail": "Not Found"}


async def test_two_emulators_share_nothing() -> None:
    async with EmulatorServer(create_on_write=True) as one, EmulatorServer() as other:
        assert one.base_url != other.base_url
        await write(one)
        assert not other.store.conversations


another_process = pytest.mark.asyncio(loop_factories=["asyncio"])  # whose loop is its own
COMMAND = (sys.executable, "-m", "service", "emulator", "--port", "0")


@another_process
async def test_the_command_prints_its_address_once_it_listens_and_ends_on_sigterm() -> None:
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "--prefix", "api/v2"), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    base_url = (await process.stdout.readline()).decode().strip()
    host, port = base_url.removeprefix("http://").removesuffix("/api/v2").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    process.terminate()
    out, err = await process.communicate()
    writer.close()
    assert (process.returncode, out, err) == (0, b"", b"")


@another_process
async def test_the_commands_options_are_obeyed(tmp_path: Any) -> None:
    script = tmp_path / "faults.toml"
    script.write_text('[[rules]]\nmatch = { text = "nine" }\neffect = { kind = "status", status = 418 }\n')
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "--key", "sk-x", "--latency", "0.2", "--faults", str(script), "--seed", "7"),
        *("--timestamps-in-seconds", "--create-on-write"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    base_url = (await process.stdout.readline()).decode().strip()
    async with httpx.AsyncClient(base_url=base_url, headers={"Authorization": "Bearer sk-x"}, trust_env=False) as http:
        began = time.monotonic()
        created = (await http.post("/conversations", json={})).json()
        assert time.monotonic() - began >= 0.2
        assert created["id"] == Store(seed=7).create_conversation(now_ms=0).id
        assert abs(created["created_at"] - time.time()) < 60
        assert (await http.post("/conversations/conv_new/items", json=says("eight"))).status_code == 200
        assert (await http.post("/conversations/conv_new/items", json=says("nine"))).status_code == 418
        assert (await http.get("/conversations/conv_new", headers={"Authorization": "Bearer x"})).status_code == 401
    process.terminate()
    assert await process.wait() == 0


@another_process
async def test_the_command_refuses_a_script_it_cannot_play(tmp_path: Any) -> None:
    path = tmp_path / "faults.toml"
    path.write_text("[[rules]]\neffect = { kind = 'cat' }\n")
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "--faults", str(path)), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert err.decode().count("\n") == 1
    assert "rules[0].effect.kind" in err.decode()
