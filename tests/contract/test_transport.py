"""The transport tells the truth: nothing was sent, or it may have been stored, or it was answered.

The servers here are bare sockets that misbehave in one way each. Everything runs on both event loops: the
service uses uvloop, whose errors and timeouts are its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import json
import logging
import socket
import ssl
import struct
import time
import traceback
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.conversations.client import Conversations
from service.conversations.transport import MAX_ANSWER_BYTES, AiohttpTransport
from service.core.model import Answered, Fate, Unanswered
from service.settings import ApiSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from service.core.model import Answer

    Behaviour = Callable[["Peer"], Awaitable[None]]

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

KEY = "sk-very-secret-0815"
TOTAL_SECONDS = 0.5
CONNECT_SECONDS = 0.3
SLACK_SECONDS = 1.5
"""What a busy machine may add to a deadline."""
ITEM = b'{"type":"message","role":"user","content":"hello"}'
LARGE_ITEM = ITEM.replace(b"hello", b"hello" * 300_000)
STORED = b'{"data":[{"id":"msg_1","type":"message","role":"user","content":[]}],"last_id":"msg_1","has_more":false}'
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgf97Jkn+iRcOnNtoG
JNlZ9/IRTqePxxS/4F5Eu+Dm1dmhRANCAATdSccVmK+wePbZTlj9sscrFk4OxGjr
UWh2wCcvpEvtqR5/xJRk4k3LvpYoFPbmEktvq6JjIIxLp8NnU7nt9OMg
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBfDCCASOgAwIBAgIBAjAKBggqhkjOPQQDAjAXMRUwEwYDVQQDDAxDb252b3kg
dGVzdHMwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBcxFTATBgNV
BAMMDENvbnZveSB0ZXN0czBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABN1JxxWY
r7B49tlOWP2yxysWTg7EaOtRaHbAJy+kS+2pHn/ElGTiTcu+ligU9uYSS2+romMg
jEunw2dTue304yCjXjBcMBoGA1UdEQQTMBGCCWxvY2FsaG9zdIcEfwAAATAPBgNV
HRMBAf8EBTADAQH/MB0GA1UdDgQWBBRuv47sOuo61/Oa88CQkDhBIDzcBzAOBgNV
HQ8BAf8EBAMCAoQwCgYIKoZIzj0EAwIDRwAwRAIgMF6zXK9o6J3p2+MMbK6ojJoO
9cTa7Q5RdFGm1GEHyzoCIFAMIRp655ZvnI3oxtdLVfmNayOVrpTWOgc0Rmrxt8Zc
-----END CERTIFICATE-----
"""
"""Of localhost and 127.0.0.1, signed by itself, valid from 2020 to 2120; it guards nothing."""


# A server that misbehaves


@dataclass(eq=False)
class Peer:
    """One connection, seen from the server."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server: Misbehaving

    async def request(self) -> bytes:
        """Read one request whole; empty at the end of the connection."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        body = await self.reader.readexactly(length)
        self.server.requests.append(head + body)
        return head + body

    async def say(self, text: bytes) -> None:
        self.writer.write(text)
        await self.writer.drain()

    def reset(self) -> None:
        """End the connection abruptly (RST)."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass(eq=False)
class Misbehaving:
    """What a server got and where it listens."""

    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    open_connections: int = 0


@contextlib.asynccontextmanager
async def serving(behave: Behaviour, tls: ssl.SSLContext | None = None) -> AsyncIterator[Misbehaving]:
    seen = Misbehaving()
    tasks = set()

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        tasks.add(task)
        seen.connections += 1
        seen.open_connections += 1
        try:
            await behave(Peer(reader, writer, seen))
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            seen.open_connections -= 1
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
            tasks.discard(task)

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0, ssl=tls)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()
        for task in list(tasks):
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)


def answer(body: bytes, *, status: str = "200 OK", headers: str = "", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n{headers}\r\n".encode()
        + body
    )


def chunked(*chunks: bytes, headers: str = "") -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n{headers}\r\n"
    return head.encode() + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


def settings(port: int, **more: Any) -> ApiSettings:
    return ApiSettings(
        base_url=more.pop("base_url", f"http://127.0.0.1:{port}/v1"),
        key=KEY,
        connect_timeout_seconds=more.pop("connect_timeout_seconds", CONNECT_SECONDS),
        total_timeout_seconds=more.pop("total_timeout_seconds", TOTAL_SECONDS),
        **more,
    )


@contextlib.asynccontextmanager
async def client(port: int, **more: Any) -> AsyncIterator[Conversations]:
    async with Conversations(settings(port, **more), version="0") as conversations:
        yield conversations
    # A connection left open is told of when it is collected; in these tests a warning is an error.
    await asyncio.sleep(0)
    gc.collect(1)


async def attempt(port: int, *, items: int = 1, **more: Any) -> Answer:
    """One attempt, held to its deadline and to silence about the key."""
    async with client(port, **more) as conversations:
        started = time.monotonic()
        found = await conversations.create_items("conv_1", [ITEM] * items)
        assert time.monotonic() - started < TOTAL_SECONDS + SLACK_SECONDS
    assert KEY not in repr(found)
    return found


# Nothing was sent


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


async def test_a_refused_connection_sent_nothing() -> None:
    found = await attempt(closed_port())
    assert isinstance(found, Unanswered)
    assert (found.fate, found.code) == (Fate.NOT_SENT, "connect_error")


async def test_a_host_that_accepts_nobody_is_left_within_the_connect_timeout_and_got_nothing() -> None:
    with contextlib.ExitStack() as stack:
        deaf = stack.enter_context(socket.socket())
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        # Fill the queue of those who wait to be accepted: the next one's handshake goes unanswered.
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        started = time.monotonic()
        found = await attempt(deaf.getsockname()[1])
        assert CONNECT_SECONDS * 0.9 < time.monotonic() - started < CONNECT_SECONDS + SLACK_SECONDS
    assert isinstance(found, Unanswered)
    assert (found.fate, found.code) == (Fate.NOT_SENT, "connect_error")


async def hang(peer: Peer) -> None:
    await peer.reader.read()


async def close(peer: Peer) -> None:
    """Leave at once."""


async def speak_plain(peer: Peer) -> None:
    await peer.say(answer(b"{}", status="400 Bad Request"))


@pytest.mark.parametrize("behave", [hang, close, speak_plain])
async def test_a_tls_handshake_that_never_succeeds_sent_nothing(behave: Behaviour) -> None:
    async with serving(behave) as server:
        found = await attempt(0, base_url=f"https://127.0.0.1:{server.port}/v1")
        assert isinstance(found, Unanswered)
        assert found.fate is Fate.NOT_SENT
        assert server.requests == []


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    file = tmp_path / "certificate.pem"
    file.write_text(CERTIFICATE)
    return file


def tls_server(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def store(peer: Peer) -> None:
    while await peer.request():
        await peer.say(answer(STORED))


async def test_an_untrusted_certificate_is_told_apart_and_gets_nothing(certificate: Path) -> None:
    async with serving(store, tls_server(certificate)) as server:
        found = await attempt(0, base_url=f"https://localhost:{server.port}/v1")
        assert isinstance(found, Unanswered)
        assert (found.fate, found.code) == (Fate.NOT_SENT, "tls_error")
        assert server.requests == []


async def test_a_certificate_of_an_authority_that_was_named_is_trusted_for_its_host_alone(certificate: Path) -> None:
    async with serving(store, tls_server(certificate)) as server:
        found = await attempt(0, base_url=f"https://localhost:{server.port}/v1", ca_file=certificate)
        assert isinstance(found, Answered)
        assert found.last_id == "msg_1"
        found = await attempt(0, base_url=f"https://127.0.0.2:{server.port}/v1", ca_file=certificate)
        assert isinstance(found, Unanswered)
        assert found.fate is Fate.NOT_SENT


# It may have been stored


async def close_after_the_head(peer: Peer) -> None:
    await peer.reader.readuntil(b"\r\n\r\n")


async def close_after_reading(peer: Peer) -> None:
    await peer.request()


async def reset_after_reading(peer: Peer) -> None:
    await peer.request()
    peer.reset()


async def reset_at_once(peer: Peer) -> None:
    peer.reset()


def after_reading(*said: bytes, then_hang: bool = False) -> Behaviour:
    async def behave(peer: Peer) -> None:
        await peer.request()
        for text in said:
            await peer.say(text)
        if then_hang:
            await peer.reader.read()

    return behave


CUTS: dict[str, Behaviour] = {
    "closes before reading": close,
    "resets before reading": reset_at_once,
    "closes after the head": close_after_the_head,
    "closes after reading": close_after_reading,
    "resets after reading": reset_after_reading,
    "half a status line": after_reading(b"HTTP/1.1 20"),
    "half a head": after_reading(b"HTTP/1.1 200 OK\r\ncontent-le"),
    "half a body": after_reading(answer(STORED[:40], length=len(STORED))),
    "half a chunk": after_reading(chunked(STORED[:40])[:-20]),
    "no last chunk": after_reading(chunked(STORED)),
    "a bad chunk size": after_reading(chunked(STORED) + b"zzz\r\n"),
    "no HTTP": after_reading(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    "an endless header": after_reading(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n"),
    "a length that is none": after_reading(b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n{}"),
    "gzip that is none": after_reading(answer(STORED, headers="content-encoding: gzip\r\n")),
}


@pytest.mark.parametrize("how", CUTS)
async def test_an_answer_that_is_cut_or_none_may_have_been_stored(how: str) -> None:
    async with serving(CUTS[how]) as server:
        found = await attempt(server.port)
        assert isinstance(found, Unanswered), found
        assert (found.fate, found.code) == (Fate.UNKNOWN, "connection_cut")
        assert "conv_1" not in found.message
        assert server.connections == 1, "a write is never repeated by the transport"


async def drip(peer: Peer) -> None:
    await peer.request()
    for byte in answer(STORED):
        await peer.say(bytes((byte,)))
        await asyncio.sleep(0.05)


async def drip_body(peer: Peer) -> None:
    await peer.request()
    await peer.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await peer.say(b"1\r\n \r\n")
        await asyncio.sleep(0.02)


async def drip_interim(peer: Peer) -> None:
    await peer.request()
    while True:
        await peer.say(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
        await asyncio.sleep(0.02)


SILENCES: dict[str, Behaviour] = {
    "never reads": hang,
    "never answers": after_reading(then_hang=True),
    "stops after the head": after_reading(answer(b"", length=100), then_hang=True),
    "stops within the body": after_reading(answer(STORED[:40], length=len(STORED)), then_hang=True),
    "drips": drip,
    "drips for ever": drip_body,
    "only ever promises": drip_interim,
}


@pytest.mark.parametrize("how", SILENCES)
async def test_silence_and_drips_end_at_the_total_deadline_and_may_have_been_stored(how: str) -> None:
    async with serving(SILENCES[how]) as server:
        started = time.monotonic()
        found = await attempt(server.port)
        assert TOTAL_SECONDS * 0.95 < time.monotonic() - started < TOTAL_SECONDS + SLACK_SECONDS
        assert isinstance(found, Unanswered)
        assert (found.fate, found.code) == (Fate.UNKNOWN, "timeout")


async def test_a_connection_nobody_accepts_may_have_been_read_in_the_end() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        found = await attempt(listening.getsockname()[1])
    assert isinstance(found, Unanswered)
    assert (found.fate, found.code) == (Fate.UNKNOWN, "timeout")


async def flood(peer: Peer) -> None:
    await peer.request()
    await peer.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    megabyte = b"100000\r\n%b\r\n" % (b" " * (1 << 20))
    while True:
        await peer.say(megabyte)


def bomb() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1 << 20)
    return b"".join(packer.compress(zeros) for _ in range(4 * MAX_ANSWER_BYTES >> 20)) + packer.flush()


@pytest.mark.parametrize(
    "behave",
    [flood, after_reading(answer(bomb(), headers="content-encoding: gzip\r\n"), then_hang=True)],
    ids=["endless", "a bomb"],
)
async def test_an_answer_without_measure_is_cut_off(behave: Behaviour) -> None:
    async with serving(behave) as server, client(server.port) as conversations:
        found = await conversations.create_items("conv_1", [ITEM])
        assert isinstance(found, Unanswered)
        assert found.fate is Fate.UNKNOWN


# It was answered

PACKED = gzip.compress(STORED)
ANSWERS = {
    "plain": answer(STORED),
    "in chunks": chunked(STORED[:10], STORED[10:], b""),
    "until the end of the connection": b"HTTP/1.0 200 OK\r\n\r\n" + STORED,
    "gzip": answer(PACKED, headers="content-encoding: gzip\r\n"),
    "deflate": answer(zlib.compress(STORED), headers="Content-Encoding: deflate\r\n"),
    "gzip in chunks": chunked(
        gzip.compress(STORED)[:20], gzip.compress(STORED)[20:], b"", headers="content-encoding: gzip\r\n"
    ),
    "identity": answer(STORED, headers="content-encoding: identity\r\n"),
    "after an interim answer": b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + answer(STORED),
    "after 100 Continue": b"HTTP/1.1 100 Continue\r\n\r\n" + answer(STORED),
    "in another charset": answer(STORED, headers="content-type: application/json; charset=iso-8859-1\r\n"),
}


@pytest.mark.parametrize("how", ANSWERS)
async def test_an_answer_is_read_however_it_is_written(how: str) -> None:
    async with serving(after_reading(ANSWERS[how])) as server:
        found = await attempt(server.port)
        assert isinstance(found, Answered), found
        assert found.items is not None
        assert (found.status, found.last_id) == (200, "msg_1")
        assert json.loads(bytes(found.items[0]))["id"] == "msg_1"
        async with client(server.port) as conversations:
            listed = await conversations.list_items("conv_1")
        assert isinstance(listed, Answered), listed
        assert listed.items is not None
        assert len(listed.items) == 1


async def test_a_packed_answer_that_ends_early_is_no_list() -> None:
    async with serving(after_reading(answer(PACKED[:30], headers="content-encoding: gzip\r\n"))) as server:
        found = await attempt(server.port)
        assert isinstance(found, Unanswered) or (found.status, found.items) == (200, None)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer_and_not_followed(status: int) -> None:
    async with serving(store) as elsewhere:
        to = f"location: http://127.0.0.1:{elsewhere.port}/v1/conversations/conv_1/items\r\n"
        async with serving(after_reading(answer(b"", status=f"{status} Elsewhere", headers=to))) as server:
            found = await attempt(server.port)
            assert isinstance(found, Answered)
            assert (found.status, found.items) == (status, None)
        assert elsewhere.connections == 0, "the key would go along"


@pytest.mark.parametrize("status", [204, 400, 401, 404, 413, 429, 500, 502, 503, 599])
async def test_any_status_is_an_answer(status: int) -> None:
    async with serving(after_reading(answer(b"", status=f"{status} Whatever"))) as server:
        found = await attempt(server.port)
        assert isinstance(found, Answered)
        assert (found.status, found.items, found.error) == (status, None, None)


async def test_a_refusal_before_the_whole_body_was_read_is_an_answer_or_a_doubt_but_never_nothing_sent() -> None:
    async def refuse_early(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.say(answer(b"{}", status="413 Content Too Large", headers="connection: close\r\n"))

    async with serving(refuse_early) as server:
        found = await attempt(server.port, items=200_000)
        assert not (isinstance(found, Unanswered) and found.fate is Fate.NOT_SENT)
        if isinstance(found, Answered):
            assert found.status == 413


# Connections


async def test_a_kept_connection_that_was_closed_meanwhile_does_not_send_a_write_twice() -> None:
    async def answer_once(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer(STORED))
        # The next request meets a peer that reads it and leaves.
        await peer.request()

    async with serving(answer_once) as server, client(server.port) as conversations:
        first = await conversations.create_items("conv_1", [ITEM])
        second = await conversations.create_items("conv_1", [ITEM])
        assert isinstance(first, Answered)
        assert isinstance(second, Unanswered)
        assert second.fate is Fate.UNKNOWN
        assert len(server.requests) == 2


async def test_an_answer_nobody_asked_for_is_not_taken_for_the_next_one() -> None:
    async def answer_twice(peer: Peer) -> None:
        while request := await peer.request():
            asked = answer(STORED.replace(b"msg_1", request.split(b"/")[3]))
            await peer.say(asked + answer(STORED.replace(b"msg_1", b"stray")))

    async with serving(answer_twice) as server, client(server.port) as conversations:
        for number in range(4):
            found = await conversations.create_items(f"conv_{number}", [ITEM])
            assert isinstance(found, Answered)
            assert found.last_id == f"conv_{number}"


async def test_attempts_that_time_out_leave_no_connection_and_do_not_hold_up_others() -> None:
    async def mute_for_some(peer: Peer) -> None:
        while request := await peer.request():
            if b"/mute_" in request:
                await peer.reader.read()
                return
            await peer.say(answer(STORED))

    patient = 2.5
    async with serving(mute_for_some) as server:
        # Fifty at once: on a busy machine the last of them connects late.
        patience = {"connect_timeout_seconds": patient, "total_timeout_seconds": patient}
        async with client(server.port, **patience) as conversations:
            mute = [asyncio.create_task(conversations.create_items(f"mute_{number}", [ITEM])) for number in range(50)]
            started = time.monotonic()
            for number in range(20):
                assert isinstance(await conversations.create_items(f"conv_{number}", [ITEM]), Answered)
            assert time.monotonic() - started < patient
            fates = {found.fate for found in await asyncio.gather(*mute) if isinstance(found, Unanswered)}
            assert fates == {Fate.UNKNOWN}
            assert isinstance(await conversations.create_items("conv_1", [ITEM]), Answered)
            async with asyncio.timeout(5):
                while server.open_connections > 1:  # noqa: ASYNC110 - the other side of the sockets
                    await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            while server.open_connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_request_that_is_called_off_once_connected_sends_nothing_and_keeps_the_connection() -> None:
    async with serving(store) as server, client(server.port) as conversations:
        found = await conversations.create_items("conv_1", [ITEM], still=lambda: False)
        assert isinstance(found, Unanswered)
        assert (found.fate, found.code) == (Fate.NOT_SENT, "withdrawn")
        assert server.requests == []
        assert isinstance(await conversations.create_items("conv_1", [ITEM], still=lambda: True), Answered)
        assert (server.connections, len(server.requests)) == (1, 1)


@pytest.mark.parametrize("item", [ITEM, LARGE_ITEM], ids=["small", "large"])
async def test_a_request_called_off_between_its_connection_and_its_first_byte_sends_nothing(item: bytes) -> None:
    async with serving(store) as server, client(server.port) as conversations:
        answers = iter([True, False])
        found = await conversations.create_items("conv_1", [item], still=lambda: next(answers))
        assert isinstance(found, Unanswered)
        assert (found.fate, found.code) == (Fate.NOT_SENT, "withdrawn")
        assert isinstance(await conversations.create_items("conv_1", [item], still=lambda: True), Answered)
        assert len(server.requests) == 1


# The key


async def test_the_key_is_sent_and_is_in_no_error_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for behave in (*CUTS.values(), SILENCES["never answers"]):
        async with serving(behave) as server:
            transport = AiohttpTransport(connect_timeout_seconds=0.1, total_timeout_seconds=0.1)
            request = httpx.Request(
                "POST",
                f"http://127.0.0.1:{server.port}/v1",
                headers={"authorization": f"Bearer {KEY}"},
                stream=httpx.ByteStream(b"{}"),
            )
            async with transport:
                with pytest.raises(httpx.TransportError) as caught:
                    await transport.handle_async_request(request)
            assert all(f"Bearer {KEY}".encode() in request for request in server.requests)
            told = "".join(traceback.format_exception(caught.value, chain=True)) + repr(caught.value)
            assert KEY not in told
    assert KEY not in caplog.text
