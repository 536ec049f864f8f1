"""`convoy dlq list | show | redrive`: see what failed, understand it, send it again."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from service.kafka.connection import KafkaError
from service.kafka.outlet import TopicMissingError
from service.kafka.redrive import CHUNK, Aim, DeadLetter, Left, Redriver, read_dead_letters

if TYPE_CHECKING:
    from service.settings import KafkaSettings

__all__ = ["Aim", "Redrive", "Selection", "send_again", "show_list", "show_one"]

WIDTH = 400
"""Of a line where there is no terminal to be narrow."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant; every condition given must hold."""

    places: tuple[str, ...] = ()
    reason: str | None = None
    conversation: str | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    text: str | None = None
    redriven: bool = False
    """Whether those already sent again are meant too."""

    def takes(self, letter: DeadLetter) -> bool:
        """Whether ``letter`` is meant, as far as it says itself; how it is marked is known when all is read."""
        return (
            (not self.places or letter.place in self.places)
            and (self.reason is None or letter.reason == self.reason)
            and (self.conversation is None or letter.conversation_id == self.conversation)
            and (self.since is None or _moment(letter.failed_at) >= self.since)
            and (self.until is None or _moment(letter.failed_at) < self.until)
            and (self.text is None or self.text.lower() in f"{letter.code} {letter.message}".lower())
        )


@dataclass(frozen=True, slots=True)
class Redrive:
    """How dead letters are sent again."""

    execute: bool
    aim: Aim
    rate: float | None
    """Events a second at most."""


def show_list(settings: KafkaSettings, selection: Selection, *, as_json: bool, limit: int) -> int:
    """Print a line for each dead letter, of the table ``limit`` at most; returns the exit code."""
    return _with_broker(settings, _show_list(settings, selection, as_json=as_json, limit=limit))


def show_one(settings: KafkaSettings, place: str) -> int:
    """Print one dead letter whole; returns the exit code."""
    return _with_broker(settings, _show_one(settings, place))


def send_again(settings: KafkaSettings, selection: Selection, how: Redrive) -> int:
    """Send dead letters again, or say which would be; returns the exit code."""
    return _with_broker(settings, _send_again(settings, selection, how))


def _with_broker(settings: KafkaSettings, work: Any) -> int:
    try:
        code: int = asyncio.run(work)
    except TopicMissingError as missing:
        sys.stderr.write(f"convoy dlq: topic {missing} does not exist\n")
        return 1
    except (KafkaError, OSError) as error:
        sys.stderr.write(f"convoy dlq: {settings.bootstrap_servers}: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("convoy dlq: interrupted\n")
        return 1
    return code


async def _select(
    settings: KafkaSettings, selection: Selection, *, whole: bool = True
) -> list[tuple[DeadLetter, str | None]]:
    letters, marks = await read_dead_letters(settings, selection.takes, whole=whole)
    chosen = ((letter, marks.get(letter.origin)) for letter in letters)
    return [(letter, mark) for letter, mark in chosen if selection.redriven or mark is None]


async def _show_list(settings: KafkaSettings, selection: Selection, *, as_json: bool, limit: int) -> int:
    chosen = await _select(settings, selection, whole=False)
    if as_json:
        for letter, mark in chosen:
            sys.stdout.write(json.dumps(_told(letter, mark)) + "\n")
        return 0
    table = Table(box=None)
    for column in ("place", "when", "reason", "code", "conversation", "event", "origin", "redrives"):
        table.add_column(column, no_wrap=column in {"place", "when", "reason"}, overflow="fold")
    for letter, mark in chosen[:limit]:
        origin = "{}-{}-{}".format(*letter.origin)
        cells = (
            letter.place,
            letter.failed_at,
            letter.reason,
            letter.code,
            letter.conversation_id,
            letter.event_id,
            origin,
            f"{letter.redrives}{f' {mark}' if mark else ''}",
        )
        # As text: what stands in events is neither markup nor an order to the terminal.
        table.add_row(*(Text(_plain(cell)) for cell in cells))
    # Into a file or a pipe lines are whole.
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(table)
    reasons = Counter(letter.reason for letter, _ in chosen).most_common()
    by_reason = ", ".join(f"{count} {_plain(reason)}" for reason, count in reasons)
    shown = f", the first {limit} shown (--limit; --json shows all)" if len(chosen) > limit else ""
    last = f"{len(chosen)} dead letters{shown}{f': {by_reason}' if by_reason else ''}"
    console.print(last, highlight=False, markup=False, soft_wrap=True)
    return 0


async def _show_one(settings: KafkaSettings, place: str) -> int:
    chosen = await _select(settings, Selection(places=(place,), redriven=True))
    if not chosen:
        sys.stderr.write(
            f"convoy dlq: there is no dead letter at {place} (PARTITION-OFFSET, as `convoy dlq list` shows)\n"
        )
        return 1
    letter, mark = chosen[0]
    for name, value in _told(letter, mark).items():
        sys.stdout.write(f"{name:16} {_plain(str(value))}\n")
    sys.stdout.write("headers\n")
    for name, content in letter.headers:
        sys.stdout.write(f"  {_plain(name):28} {_readable(content)}\n")
    sys.stdout.write(f"key              {_readable(letter.key)}\nvalue\n{_pretty(letter.value)}\n")
    return 0


async def _send_again(settings: KafkaSettings, selection: Selection, how: Redrive) -> int:
    if not how.execute:
        chosen = [letter for letter, _ in await _select(settings, selection, whole=False)]
        for letter in chosen:
            target = how.aim.target(letter)
            if target is None:
                target = "nowhere: redriven too often"
            elif target == letter.origin[0]:
                target = f"{target}-{letter.origin[1]}"
            line = f"{letter.place}  {letter.reason}  {letter.conversation_id}  {letter.event_id}  → {target}"
            sys.stdout.write(f"{_plain(line)}\n")
        sys.stdout.write(f"{len(chosen)} would be sent; nothing was (add --execute)\n")
        return 0
    # A second's worth at most, so that a rate is one.
    chunk_size = CHUNK if how.rate is None else max(1, min(CHUNK, int(how.rate)))
    sent = 0
    left: list[str] = []
    try:
        async with Redriver(settings, how.aim) as redriver:
            # Not sooner: what another redrive had under way has its marks now, or never will.
            letters = [letter for letter, _ in await _select(settings, selection)]
            with Progress(console=Console(stderr=True)) as progress:
                task = progress.add_task("redrive", total=len(letters))
                async for letter, result in redriver.send(letters, chunk_size=chunk_size):
                    progress.advance(task)
                    if isinstance(result, Left):
                        left.append(f"{letter.place} left: {result.why}\n")
                        continue
                    sent += 1
                    if how.rate is not None:
                        await asyncio.sleep(1 / how.rate)
    finally:
        # Interrupted too: the next run finds by the marks where this one ended.
        sys.stderr.writelines(left)
        sys.stdout.write(f"{sent} sent, {len(left)} left\n")
    return 0


def _told(letter: DeadLetter, mark: str | None) -> dict[str, Any]:
    return {
        "place": letter.place,
        "failed_at": letter.failed_at,
        "reason": letter.reason,
        "code": letter.code,
        "message": letter.message,
        "conversation_id": letter.conversation_id,
        "event_id": letter.event_id,
        "origin": "{}-{}-{}".format(*letter.origin),
        "redrives": letter.redrives,
        "mark": mark,
    }


def _moment(text: str) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        return dt.datetime.min.replace(tzinfo=dt.UTC)


def _plain(text: str) -> str:
    """What a terminal may be shown: no control characters, no half of a letter."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _readable(content: bytes | None) -> str:
    if content is None:
        return "null"
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return f"0x{content.hex()}"
    return text if text.isprintable() else f"0x{content.hex()}"


def _pretty(value: bytes | None) -> str:
    if value is None:
        return "null"
    try:
        text = json.dumps(json.loads(value), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return _readable(value)
    return "\n".join(_plain(line) for line in text.split("\n"))
