"""The client of the Conversations API: requests in, answers as values out.

Decides how a request is written and which transport error means what; it judges no answer and retries
nothing. One client lives as long as the process.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import aiohttp
import httpx

from service.conversations.answers import read_answer
from service.conversations.transport import AiohttpTransport, WithdrawnError
from service.core.model import Answered, Fate, Unanswered

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping, Sequence
    from types import TracebackType

    from typing_extensions import Buffer

    from service.core.model import Answer
    from service.settings import ApiSettings

WITHDRAWN = "withdrawn"
"""The code of an attempt that was called off before its first byte."""
PAGE_ITEMS = 100
"""The most a list request returns."""
MAX_PAGES = 50
"""Of one read-back: another writer that adds faster than this lists is none of ours."""
NO_BODY = httpx.ByteStream(b"")
"""Given as a stream, because httpx then adds no headers of its own to a request that is ready."""


class Conversations:
    """Creates and lists items; an ``async with`` opens and closes its connections."""

    def __init__(
        self,
        settings: ApiSettings,
        *,
        version: str,
        propagate: Callable[[MutableMapping[str, str]], None] | None = None,
    ) -> None:
        self._propagate = propagate
        self._transport = AiohttpTransport(
            connect_timeout_seconds=settings.connect_timeout_seconds,
            total_timeout_seconds=settings.total_timeout_seconds,
            ssl_context=settings.ssl_context(),
            proxy=settings.proxy,
        )
        self._client = httpx.AsyncClient(
            transport=self._transport,
            base_url=settings.base_url,
            headers={
                **{name: value.get_secret_value() for name, value in settings.extra_headers.items()},
                "Accept": "application/json",
                "User-Agent": f"convoy/{version}",
            },
            trust_env=False,
        )
        self._url = httpx.URL(settings.base_url)
        self._path = self._url.raw_path.decode("ascii").rstrip("/")
        self.use_key(settings.key.get_secret_value())

    def use_key(self, key: str) -> None:
        """Send ``key`` with every request that begins from now on."""
        self._client.headers["Authorization"] = f"Bearer {key}"
        post_headers = httpx.Headers({**self._client.headers, "Content-Type": "application/json"})
        del post_headers["Accept-Encoding"], post_headers["Connection"]
        self._post_headers = post_headers
        self._get_headers = post_headers.copy()
        del self._get_headers["Content-Type"]

    async def __aenter__(self) -> Self:
        """Open the connections."""
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Close the connections; attempts in flight must have ended."""
        await self._client.__aexit__(exc_type, exc_value, traceback)

    async def create_items(
        self, conversation_id: str, items: Sequence[Buffer], *, still: Callable[[], bool] | None = None
    ) -> Answer:
        """Add 1 to 20 items, each given as its JSON, to a conversation.

        ``still`` is asked last, once the connection stands and before the first byte: false, and nothing is sent.
        """
        extensions: dict[str, Any] = {"target": self._target(conversation_id)}
        if still is not None:
            extensions["still"] = still
        # The client would build this request in 60 µs and send it in 100 more; a ready one costs 10.
        request = httpx.Request(
            "POST",
            self._url,
            headers=self._post_headers,
            stream=httpx.ByteStream(b'{"items":[%b]}' % b",".join(items)),
            extensions=extensions,
        )
        return await self._exchange(request)

    async def list_items(
        self, conversation_id: str, *, after: str = "", limit: int = PAGE_ITEMS, newest_first: bool = False
    ) -> Answer:
        """List one page of a conversation's items, those behind the item ``after`` if given."""
        query = f"?limit={limit}&order={'desc' if newest_first else 'asc'}"
        if after:
            query += f"&after={quote(after, safe='')}"
        target = self._target(conversation_id) + query.encode("ascii")
        request = httpx.Request(
            "GET", self._url, headers=self._get_headers, stream=NO_BODY, extensions={"target": target}
        )
        return await self._exchange(request)

    async def list_newest(self, conversation_id: str, limit: int) -> Answer:
        """List the newest ``limit`` items, oldest first."""
        page = await self.list_items(conversation_id, limit=min(limit, PAGE_ITEMS), newest_first=True)
        if not isinstance(page, Answered) or page.items is None:
            return page
        return Answered(page.status, page.items[::-1], page.last_id)

    async def list_all_items(self, conversation_id: str, *, after: str) -> Answer:
        """List every item behind ``after`` (empty: from the beginning), oldest first, page by page.

        The first page that is not a list ends it and is the answer.
        """
        items: list[Buffer] = []
        for _ in range(MAX_PAGES):
            page = await self.list_items(conversation_id, after=after)
            if not isinstance(page, Answered) or page.items is None:
                return page
            items += page.items
            if not page.has_more or not page.last_id or page.last_id == after:
                return Answered(page.status, items, page.last_id)
            after = page.last_id
        return Unanswered(Fate.UNKNOWN, "endless_list", f"more than {MAX_PAGES} pages behind the cursor")

    def _target(self, conversation_id: str) -> bytes:
        return f"{self._path}/conversations/{quote(conversation_id, safe='')}/items".encode("ascii")

    async def _exchange(self, request: httpx.Request) -> Answer:
        if self._propagate is not None:
            self._propagate(request.headers)
        try:
            response = await self._transport.handle_async_request(request)
        except WithdrawnError:
            return Unanswered(Fate.NOT_SENT, WITHDRAWN, "too late to be sent")
        except httpx.ConnectError as error:
            tls = isinstance(error.__cause__, aiohttp.ClientSSLError)
            return Unanswered(Fate.NOT_SENT, "tls_error" if tls else "connect_error", str(error))
        except (httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
            return Unanswered(Fate.NOT_SENT, "connect_error", str(error))
        except httpx.TimeoutException as error:
            return Unanswered(Fate.UNKNOWN, "timeout", str(error))
        except httpx.TransportError as error:
            return Unanswered(Fate.UNKNOWN, "connection_cut", str(error))
        assert isinstance(response.stream, httpx.SyncByteStream)
        body = b"".join(response.stream)
        return read_answer(response.status_code, response.headers, body, wall_clock=time.time())
