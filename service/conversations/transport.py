"""How a request reaches the API: an httpx transport over aiohttp whose errors tell the truth.

Decides one thing that the rest of the service stands on: whether a request that got no answer may have
been stored. Errors before the first byte left are ``httpx.ConnectError``, ``ConnectTimeout`` or
``ProxyError``; everything after that is ``ReadError``, ``ReadTimeout`` or ``RemoteProtocolError``. Where it
cannot tell, it says "after": reading back costs a request, sending twice costs a duplicate.

Why not httpx's own pool: it costs time in proportion to its connections and leaks a place for each
request that is cancelled (encode/httpcore#1093).
"""

from __future__ import annotations

import io
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import httpx
from multidict import CIMultiDict
from yarl import URL

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from types import TracebackType

    from aiohttp.abc import AbstractStreamWriter

MAX_ANSWER_BYTES = 32 << 20
"""20 items of the largest size an API takes are well below; more is not an answer but an attack or a mistake."""
SET_BY_AIOHTTP = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection"})
DECODED_BY_AIOHTTP = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})
"""They speak of the bytes on the wire; httpx would decode once more what is decoded already."""
LARGE_BODY_BYTES = 1 << 20
"""A larger one is written piece by piece, so that the others are not kept waiting meanwhile."""
KEEPALIVE_SECONDS = 30.0
"""Shorter than the idle limit of common load balancers (60 s), so that a pooled connection is rarely half closed."""


class WithdrawnError(Exception):
    """The request was called off before its first byte: its ``still`` extension said no."""


_still: ContextVar[Callable[[], bool] | None] = ContextVar("still", default=None)


class _AskingConnector(aiohttp.TCPConnector):
    """Asks, once a connection stands and before anything is written to it, whether the request is still wanted."""

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:  # noqa: ASYNC109 - aiohttp's signature
        connection = await super().connect(req, traces, timeout)
        still = _still.get()
        if still is not None and not still():
            connection.release()
            raise WithdrawnError
        return connection


class _Asking(aiohttp.Payload):
    """A body that asks again when it is about to be written, and the head, which goes with its first bytes.

    Before Python 3.12 aiohttp writes in another task, a round of the loop after the connection was handed over: in a
    busy process time enough to be stopped in, with a dozen requests on their way.
    """

    still: Callable[[], bool]
    withdrawn = False

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        if not self.still():
            self.withdrawn = True
            raise WithdrawnError
        await super().write_with_length(writer, content_length)


class _AskingBytes(_Asking, aiohttp.BytesPayload):
    pass


class _AskingFile(_Asking, aiohttp.BytesIOPayload):
    pass


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Sends ready requests; the caller bounds how many at once.

    A request's ``target`` extension (httpx's own, bytes of path and query) replaces the path of its URL:
    parsing a URL a request would cost more than the rest of the work here. Its ``still`` extension, a function,
    is asked before the first byte leaves: false, and ``WithdrawnError`` is raised instead.

    ``total_timeout_seconds`` covers the whole attempt, name resolution to last byte, so a slow drip ends.
    It is enforced by closing the one connection concerned.
    """

    def __init__(
        self,
        *,
        connect_timeout_seconds: float,
        total_timeout_seconds: float,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
    ) -> None:
        self._timeout = aiohttp.ClientTimeout(
            total=total_timeout_seconds, connect=connect_timeout_seconds, sock_connect=connect_timeout_seconds
        )
        self._ssl = ssl_context or True
        self._proxy = proxy or None
        self._session: aiohttp.ClientSession | None = None
        self._headers: dict[str, tuple[list[tuple[bytes, bytes]], CIMultiDict[str]]] = {}
        """Of each method the last: as they came, and as aiohttp takes them."""
        self._origin_of: httpx.URL | None = None
        self._origin_text = ""

    async def __aenter__(self) -> Self:
        """Open the connection pool; it lives as long as the transport."""
        self._session = aiohttp.ClientSession(
            connector=_AskingConnector(
                limit=0, ssl=self._ssl, keepalive_timeout=KEEPALIVE_SECONDS, enable_cleanup_closed=False
            ),
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Close every connection."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request and read its answer whole: its stream is there already.

        Raises:
            httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError: nothing was sent.
            httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError: it may have been received.
        """
        assert self._session is not None, "the transport is used within `async with`"
        target = request.extensions.get("target")
        url = str(request.url) if target is None else f"{self._origin(request.url)}{target.decode('ascii')}"
        headers = self._headers_for(request.method, request.headers.raw)
        assert isinstance(request.stream, httpx.SyncByteStream), "a ready body, not one that is still being made"
        content = b"".join(request.stream)
        still = request.extensions.get("still")
        token = _still.set(still)
        large = len(content) > LARGE_BODY_BYTES
        data: bytes | io.BytesIO | _Asking | None = (io.BytesIO(content) if large else content) or None
        if content and still is not None:
            data = _AskingFile(io.BytesIO(content)) if large else _AskingBytes(content)
            data.still = still
        try:
            async with self._session.request(
                request.method,
                URL(url, encoded=True),
                data=data,
                headers=headers,
                allow_redirects=False,
                proxy=self._proxy,
            ) as answer:
                body = httpx.ByteStream(await _read(answer))
                told = [header for header in answer.raw_headers if header[0].lower() not in DECODED_BY_AIOHTTP]
                # As a stream, as transports give it: told as content, httpx would read it back out of itself at once.
                return httpx.Response(answer.status, headers=told, stream=body, request=request)
        except aiohttp.ClientConnectorError as error:
            raise httpx.ConnectError(str(error), request=request) from error
        except aiohttp.ConnectionTimeoutError as error:
            raise httpx.ConnectTimeout(str(error), request=request) from error
        except aiohttp.ClientHttpProxyError as error:
            raise httpx.ProxyError(f"proxy answered {error.status}", request=request) from error
        except (TimeoutError, aiohttp.ServerTimeoutError) as error:
            raise httpx.ReadTimeout("no whole answer in time", request=request) from error
        except aiohttp.InvalidURL as error:
            raise httpx.UnsupportedProtocol(str(error), request=request) from error
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(data, _Asking) and data.withdrawn:
                raise WithdrawnError from error
            # aiohttp names the URL in some of its errors, and the conversation stands in it.
            words = str(error).replace(url, "the API") or type(error).__name__
            raise httpx.ReadError(words, request=request) from error
        finally:
            _still.reset(token)

    def _headers_for(self, method: str, raw: list[tuple[bytes, bytes]]) -> CIMultiDict[str]:
        known = self._headers.get(method)
        if known is not None and known[0] == raw:
            return known[1]
        headers = CIMultiDict(
            (name.decode("ascii"), value.decode("latin-1")) for name, value in raw if name.lower() not in SET_BY_AIOHTTP
        )
        self._headers[method] = raw, headers
        return headers

    def _origin(self, url: httpx.URL) -> str:
        if url is not self._origin_of:
            self._origin_of = url
            self._origin_text = f"{url.scheme}://{url.netloc.decode('ascii')}"
        return self._origin_text


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    length = answer.content_length
    if length is not None and length <= MAX_ANSWER_BYTES and "Content-Encoding" not in answer.headers:
        return await answer.read()
    chunks: list[bytes] = []
    total = 0
    async for chunk in answer.content.iter_any():
        total += len(chunk)
        if total > MAX_ANSWER_BYTES:
            answer.close()
            raise aiohttp.ClientPayloadError(f"answer exceeds {MAX_ANSWER_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)
