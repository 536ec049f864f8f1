"""The page at `/`: conversations as chats, requests as they come, faults to switch on and off.

Decides what is shown, and whether a form may be believed. Must not know the socket. All text is escaped by the
template engine, the browser is told to load and run nothing that is not the emulator's own, and a form counts
only if it was sent by this page. Rendered anew for each request; a few lines of script fetch it again each second.
"""

from __future__ import annotations

import datetime as dt
from functools import cache
from importlib import resources
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, urlencode

import jinja2
import msgspec

from service.emulator import contract
from service.emulator.contract import Answer
from service.emulator.everyday import EVERYDAY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from service.emulator.fault_play import FaultPlay, Switch
    from service.emulator.recent import Recent, Seen
    from service.emulator.store import Item, Store
    from service.emulator.tally import Tally

CONVERSATIONS: Final = 50
ITEMS: Final = 50
REQUESTS: Final = 40
_PREVIEW: Final = 80
_POLICY: Final = "; ".join(
    [
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("style", "script", "connect", "img")),
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    # Not "no-referrer": a browser would then send a form's Origin as "null".
    (b"referrer-policy", b"same-origin"),
)
_FILES: Final = {
    "page.css": b"text/css; charset=utf-8",
    "page.js": b"text/javascript; charset=utf-8",
    "icon.svg": b"image/svg+xml",
}


class Part(msgspec.Struct, frozen=True):
    """One part of a message: its text, or without one only what kind it is."""

    kind: str
    text: str | None


class Message(msgspec.Struct, frozen=True):
    """An item as it is shown."""

    id: str
    role: str
    at: str
    parts: list[Part]


class Line(msgspec.Struct, frozen=True):
    """A conversation in the list."""

    id: str
    href: str
    items: int
    preview: str
    chosen: bool


class Chat(msgspec.Struct, frozen=True):
    """The chosen conversation: its newest messages first, or those before a given one."""

    id: str
    created_at: str
    metadata: dict[str, str]
    items: int
    messages: list[Message]
    older: str | None
    newest: str | None


class Row(msgspec.Struct, frozen=True):
    """A request as it is shown. `state` is `good`, `bad`, `broken` or `open`."""

    at: str
    number: int
    operation: str
    conversation: str
    href: str
    items: int
    took: str
    outcome: str
    rule: str
    state: str


class Toggle(msgspec.Struct, frozen=True):
    """A fault that can be switched."""

    switch: Switch
    says: str


class Page:
    """Renders the page over what the emulator holds, and takes its forms. `clock` is the emulator's, in seconds."""

    def __init__(
        self,
        store: Store,
        faults: FaultPlay,
        tally: Tally,
        recent: Recent,
        *,
        base_path: str,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._faults = faults
        self._tally = tally
        self._recent = recent
        self._base_path = base_path
        self._clock = clock

    def show(self, query: bytes, host: str) -> Answer:
        """Render for a query of `conversation`, `before` (an item id), `q` (part of an id) and `skip`."""
        asked = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        chosen = asked.get("conversation", "")
        wanted = asked.get("q", "")
        skip = int(asked["skip"]) if asked.get("skip", "").isdecimal() and len(asked["skip"]) < 10 else 0
        lines, more = self._lines(wanted, skip, chosen)
        now = self._clock()
        scripted, everyday = self._faults.switches()
        text = _template().render(
            base_url=f"http://{host}{self._base_path}",
            chosen=chosen,
            wanted=wanted,
            skip=skip,
            lines=lines,
            newer=_here(q=wanted, skip=max(0, skip - CONVERSATIONS), conversation=chosen) if skip else None,
            older=_here(q=wanted, skip=skip + CONVERSATIONS, conversation=chosen) if more else None,
            chat=self._chat(chosen, asked.get("before")),
            rows=[_row(seen, now) for seen in islice(self._recent.newest_first(), REQUESTS)],
            script=[Toggle(switch, "") for switch in scripted],
            everyday=[Toggle(switch, one.says) for switch, one in zip(everyday, EVERYDAY, strict=True)],
            figures=self._figures(now),
        )
        return Answer(200, text.encode("utf-8", "replace"), b"text/html; charset=utf-8", _HEADERS)

    def switch(self, body: bytes, headers: Iterable[tuple[bytes, bytes]]) -> Answer:
        """Take the form of a switch: `fault`, `on` (1 or 0), and where to go back to."""
        if not _sent_by_this_page(headers):
            return contract.json_answer({"error": "This form was not sent by the emulator's own page."}, status=403)
        form = dict(parse_qsl(body.decode("latin-1"), keep_blank_values=True))
        try:
            self._faults.switch(form.get("fault", ""), on=form.get("on") == "1", now=self._clock())
        except LookupError as unknown:
            return contract.json_answer({"error": str(unknown)}, status=404)
        back = _here(q=form.get("q", ""), conversation=form.get("conversation", ""))
        return Answer(303, b"", headers=((b"location", back.encode()), *_HEADERS))

    def _figures(self, now: float) -> list[tuple[str, str]]:
        seen = self._tally.snapshot(now=now)
        requests: dict[str, dict[str, int]] = seen["requests"]
        outcomes = [(outcome, count) for by_outcome in requests.values() for outcome, count in by_outcome.items()]
        failed = sum(count for outcome, count in outcomes if not outcome.startswith("2"))
        return [
            ("conversations", f"{len(self._store.conversations):,}"),
            ("items stored", f"{self._store.items_stored:,}"),
            ("requests", f"{sum(count for _, count in outcomes):,}"),
            ("failed", f"{failed:,}"),
            ("in flight", f"{seen['in_flight']:,}"),
        ]

    def _lines(self, wanted: str, skip: int, chosen: str) -> tuple[list[Line], bool]:
        found = (
            conversation
            for conversation in reversed(self._store.conversations.values())
            if wanted.casefold() in conversation.id.casefold()
        )
        some = list(islice(found, skip, skip + CONVERSATIONS + 1))
        lines = [
            Line(
                conversation.id,
                _here(q=wanted, skip=skip, conversation=conversation.id),
                len(conversation),
                _preview(self._store.page(conversation, after=None, limit=1, newest_first=True)[0]),
                conversation.id == chosen,
            )
            for conversation in some[:CONVERSATIONS]
        ]
        return lines, len(some) > CONVERSATIONS

    def _chat(self, conversation_id: str, before: str | None) -> Chat | None:
        conversation = self._store.conversations.get(conversation_id)
        if conversation is None:
            return None
        after = self._store.item(conversation, before) if before else None
        items, more = self._store.page(conversation, after=after, limit=ITEMS, newest_first=True)
        return Chat(
            conversation.id,
            _moment(conversation.created_ms),
            conversation.metadata,
            len(conversation),
            [_message(item) for item in items],
            _here(conversation=conversation.id, before=items[-1].id) if more else None,
            _here(conversation=conversation.id) if after is not None else None,
        )


def file(name: str) -> Answer | None:
    """Return one of the files that the page refers to."""
    content_type = _FILES.get(name)
    return None if content_type is None else Answer(200, _read(name), content_type, _HEADERS)


@cache
def _read(name: str) -> bytes:
    return resources.files(__name__).joinpath(name).read_bytes()


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_read("page.html").decode())


def _sent_by_this_page(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Say whether a browser vouches for the form. What vouches for nothing is not believed either.

    Browsers send Sec-Fetch-Site to trustworthy addresses only (this machine, HTTPS), and Origin with every POST
    (Fetch standard, "append a request Origin header").
    """
    named = dict(headers)
    site = named.get(b"sec-fetch-site")
    if site is not None and site != b"same-origin":
        return False
    _, _, authority = named.get(b"origin", b"").partition(b"://")
    return bool(authority) and authority == named.get(b"host")


def _here(**query: str | int) -> str:
    """Return the page's own address with what is not empty of a query."""
    encoded = urlencode({name: value for name, value in query.items() if value}, quote_via=quote)
    return f"/?{encoded}" if encoded else "/"


def _moment(milliseconds: int) -> str:
    return f"{dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC):%Y-%m-%d %H:%M:%S}"


def _preview(newest: Sequence[Item]) -> str:
    text = newest[0].text if newest else ""
    return text if len(text) <= _PREVIEW else text[: _PREVIEW - 1] + "…"


def _message(item: Item) -> Message:
    parts = [_part(part) for part in item.content]
    return Message(item.id, item.role, _moment(item.created_ms), parts)


def _part(part: dict[str, Any]) -> Part:
    text = part.get("text", part.get("refusal"))
    return Part(str(part["type"]), text if isinstance(text, str) else None)


def _row(seen: Seen, now: float) -> Row:
    seconds = (seen.ended if seen.outcome else now) - seen.began
    state = "open" if not seen.outcome else "good" if seen.outcome[0] in "23" else "bad"
    if seen.outcome and not seen.outcome[0].isdigit():
        state = "broken"
    return Row(
        f"{dt.datetime.fromtimestamp(seen.at_ms / 1000, dt.UTC):%H:%M:%S}",
        seen.number,
        seen.operation.replace("_", " "),
        seen.conversation_id,
        _here(conversation=seen.conversation_id),
        seen.items,
        f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s",
        seen.outcome or "…",
        seen.rule,
        state,
    )
