"""Where the API's key goes, and where it never goes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
from typing import TYPE_CHECKING

import pytest
from certificates import Authority, write

from service.conversations.client import Conversations
from service.core.model import Answered, Fate, Unanswered
from service.emulator.server import EmulatorServer
from service.settings import ApiSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from service.core.model import Answer

KEY = "sk-that-nobody-else-may-see"
ITEM = json.dumps({"type": "message", "role": "user", "content": "hello"}).encode()


class Listener:
    """A socket that keeps every byte it was sent."""

    def __init__(self) -> None:
        self.port = 0
        self.heard = b""


@contextlib.asynccontextmanager
async def listening(answer: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[Listener]:
    seen = Listener()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            seen.heard += await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    seen.port = server.sockets[0].getsockname()[1]
    async with server:
        yield seen


@contextlib.asynccontextmanager
async def tunnelling() -> AsyncIterator[Listener]:
    """A proxy that knows CONNECT, and keeps what it is told in the clear."""
    seen = Listener()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                seen.heard += data
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.heard += head
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    seen.port = server.sockets[0].getsockname()[1]
    async with server:
        yield seen


@contextlib.asynccontextmanager
async def tls_api(authority: Authority, folder: Path, *hosts: str, expired: bool = False) -> AsyncIterator[Listener]:
    pair = authority.issue("the API", hosts, expired=expired)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(write(folder, "api.pem", pair.pem()), write(folder, "api.key", pair.key_pem()))
    body = b'{"data":[],"has_more":false}'
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    async with listening(answer, context) as api:
        yield api


async def ask(base_url: str, **settings: str) -> Answer:
    async with Conversations(ApiSettings(base_url=base_url, key=KEY, **settings), version="0") as api:
        return await api.list_items("conv_1")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


async def test_a_private_authority_is_trusted_where_it_is_named(authority: Authority, tmp_path: Path) -> None:
    trusted = write(tmp_path, "ca.pem", authority.pem())
    async with tls_api(authority, tmp_path, "localhost") as api:
        answer = await ask(f"https://localhost:{api.port}/v1", ca_file=trusted)
        assert isinstance(answer, Answered)
        assert answer.status == 200
        assert f"Bearer {KEY}".encode() in api.heard


@pytest.mark.parametrize("case", ["nobody's", "another's", "of another host", "expired"])
async def test_the_key_is_not_said_to_who_cannot_prove_who_he_is(
    authority: Authority, tmp_path: Path, case: str
) -> None:
    trusted = "" if case == "nobody's" else write(tmp_path, "ca.pem", authority.pem())
    issuer = Authority("another") if case == "another's" else authority
    host = "another.example" if case == "of another host" else "localhost"
    async with tls_api(issuer, tmp_path, host, expired=case == "expired") as api:
        answer = await ask(f"https://localhost:{api.port}/v1", ca_file=trusted)
        assert isinstance(answer, Unanswered)
        assert (answer.fate, answer.code) == (Fate.NOT_SENT, "tls_error")
        assert api.heard == b""


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
async def test_the_key_follows_no_redirect(status: str) -> None:
    async with listening(b"") as thief:
        head = f"HTTP/1.1 {status}\r\nlocation: http://127.0.0.1:{thief.port}/v1\r\ncontent-length: 0\r\n\r\n"
        async with listening(head.encode()) as api:
            answer = await ask(f"http://127.0.0.1:{api.port}/v1")
            assert isinstance(answer, Answered)
            assert answer.status == int(status[:3])
        assert thief.heard == b""


async def test_a_proxy_gets_its_own_password_and_never_the_key(authority: Authority, tmp_path: Path) -> None:
    trusted = write(tmp_path, "ca.pem", authority.pem())
    async with tls_api(authority, tmp_path, "localhost") as api, tunnelling() as proxy:
        answer = await ask(
            f"https://localhost:{api.port}/v1", ca_file=trusted, proxy=f"http://me:sesame@127.0.0.1:{proxy.port}"
        )
        assert isinstance(answer, Answered), answer
        assert answer.status == 200
        assert f"Bearer {KEY}".encode() in api.heard
        assert b"sesame" not in api.heard
        assert f"CONNECT localhost:{api.port}".encode() in proxy.heard
        assert b"Basic " + base64.b64encode(b"me:sesame") in proxy.heard
        assert KEY.encode() not in proxy.heard


async def test_a_proxy_that_refuses_sent_nothing(authority: Authority, tmp_path: Path) -> None:
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n"
    async with tls_api(authority, tmp_path, "localhost") as api, listening(refusal) as proxy:
        answer = await ask(f"https://localhost:{api.port}/v1", proxy=f"http://127.0.0.1:{proxy.port}")
        assert isinstance(answer, Unanswered)
        assert answer.fate is Fate.NOT_SENT
        assert "407" in answer.message
        assert api.heard == b""


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(b"HTTP/1.1 502 no\r\ncontent-length: 0\r\n\r\n") as proxy, EmulatorServer(key=KEY) as api:
        for name in ("http_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        answer = await ask(api.base_url)
        assert isinstance(answer, Answered)
        assert answer.status == 404
        assert proxy.heard == b""


async def test_a_key_that_changes_is_used_from_the_next_request_on() -> None:
    async with (
        EmulatorServer(key=KEY, create_on_write=True) as server,
        Conversations(ApiSettings(base_url=server.base_url, key="sk-old"), version="0") as api,
    ):
        for use, status in (("sk-old", 401), (KEY, 200), ("sk-new", 401)):
            api.use_key(use)
            for answer in (await api.create_items("conv_1", [ITEM]), await api.list_items("conv_1")):
                assert isinstance(answer, Answered)
                assert answer.status == status


async def test_extra_headers_go_with_every_request(authority: Authority) -> None:
    async with listening(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as api:
        headers = {"X-Team": "chat"}
        given = ApiSettings(base_url=f"http://127.0.0.1:{api.port}/v1", key=KEY, extra_headers=headers)
        async with Conversations(given, version="0") as client:
            await client.create_items("conv_1", [ITEM])
            await client.list_items("conv_1")
        assert api.heard.lower().count(b"x-team: chat\r\n") == 2
