"""What lies outside a process: the log of events, the ledger, the group, the outputs and the API, in virtual time.

All of it is as nasty as the real thing may be and no nastier: the ledger's offsets are dense, a partition's records
from one producer keep their order, commits are fenced by the group's generation, and the API stores a request at
most once. How nasty is drawn from the seed, request by request, by the rates of a `Weather`.

Each item carries a tag that the API forwards and the code under test never looks at, so the world knows which event
a stored copy is, however often a text is repeated.
"""

from __future__ import annotations

import contextvars
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from aiokafka.errors import CommitFailedError
from aiokafka.structs import ConsumerRecord

from service.kafka.ledger import Stored

if TYPE_CHECKING:
    import asyncio
    import random
    from collections.abc import Callable, Sequence

    from model.api import Fated
    from model.virtual_time import VirtualLoop
    from typing_extensions import Buffer

T = TypeVar("T")

TOTAL_SECONDS = 4.0
"""How long an attempt may take."""
CONNECT_SECONDS = 3.0
LANDING_SECONDS = 5.0
"""How long after it was given up a request may still land, by the contract."""
WRITE_SECONDS = 15.0
EVENTS, REPLIES, DEAD_LETTERS, LEDGER = "events", "replies", "dead-letters", "ledger"
POISON = "poison"
"""An item with this word in it is refused."""


@dataclass(slots=True)
class Weather:
    """How often what goes wrong: shares of all requests, or seconds. All of it ends when the sky clears."""

    cut_before: float = 0.0
    cut_after: float = 0.0
    late: float = 0.0
    """No answer, and stored later: within what the contract allows."""
    too_late: float = 0.0
    """Stored later than that."""
    own_500: float = 0.0
    gateway: float = 0.0
    throttled: float = 0.0
    locked: float = 0.0
    unreached: float = 0.0
    html: float = 0.0
    slow_connect: float = 0.0
    read_fails: float = 0.0
    sick: float = 0.0
    """How often a request to the first conversation ends in an error of the API's own."""
    other_writers: float = 0.0
    """How often another writer adds an item to a conversation just before a request of ours does."""
    same_words: float = 0.0
    """How often that item is in the words of ours."""
    append_lost: float = 0.0
    """A ledger record is written, and the acknowledgement never comes."""
    append_late: float = 0.0
    """Nor that, and the record is written only after the writer was told that it failed."""
    append_fails: float = 0.0
    append_slow: float = 0.0
    commit_lost: float = 0.0
    commit_fails: float = 0.0
    output_fails: float = 0.0
    question_fails: float = 0.0
    """Reading the ledger, its bounds or the committed position."""


@dataclass(slots=True, frozen=True)
class Append:
    """What happens to one ledger record: when it is written and acknowledged, in seconds; ``None``: never."""

    written: float | None = 0.01
    acknowledged: float | None = 0.01
    placeless: bool = False
    """The broker knows the record and not its place any more."""


@dataclass(slots=True)
class Item:
    id: str
    role: str
    text: str
    tag: str
    """Which event it is a copy of; empty: another writer's."""

    def as_json(self) -> bytes:
        content = [{"type": "input_text", "text": self.text}]
        return json.dumps(
            {"id": self.id, "type": "message", "role": self.role, "content": content, "status": "completed"}
        ).encode()


@dataclass(slots=True)
class Member:
    """A consumer as the group's coordinator sees it."""

    id: str
    seen_at: float
    joined: asyncio.Future[tuple[int, list[int]]] | None = None


@dataclass(slots=True)
class Output:
    """A record of the reply or the dead-letter topic."""

    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


@dataclass(slots=True)
class World:
    loop: VirtualLoop
    chances: random.Random
    partitions: int
    weather: Weather = field(default_factory=Weather)
    keeps_prefix: bool = False
    """Whether the API stores what stands before an item it refuses."""
    names_culprit: bool = False
    broker_time: bool = True
    """Whether the ledger topic is LogAppendTime."""
    session_seconds: float = 6.0
    rebalance_seconds: float = 7.0
    story: list[str] = field(default_factory=list)
    waiting: list[tuple[str, Callable[[], object]]] = field(default_factory=list)
    events: dict[int, list[ConsumerRecord[bytes, bytes] | None]] = field(default_factory=dict)
    ledger: dict[int, list[Stored]] = field(default_factory=dict)
    ledger_begins: dict[int, int] = field(default_factory=dict)
    committed: dict[int, tuple[int, str]] = field(default_factory=dict)
    outputs: dict[str, list[Output]] = field(default_factory=lambda: {REPLIES: [], DEAD_LETTERS: []})
    conversations: dict[str, list[Item]] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)
    generation: int = 0
    rebalancing: bool = False
    requests: list[tuple[float, str, list[str]]] = field(default_factory=list)
    """When a request to write reached the wire, of whom, and the tags in it."""
    next_appends: list[Append] = field(default_factory=list)
    """What happens to the next ledger records, instead of what chance says."""
    landing: int = 0
    """Requests on their way that will be stored."""
    next_fates: list[Fated] = field(default_factory=list)
    """What happens to the next requests to write, instead of what chance says."""
    _context: contextvars.Context = field(default_factory=contextvars.Context)
    _item_numbers: int = 0

    def __post_init__(self) -> None:
        for number in range(self.partitions):
            self.events[number] = []
            self.ledger[number] = []
            self.ledger_begins[number] = 0

    # Time and chance

    @property
    def now(self) -> float:
        return self.loop.time()

    def tell(self, what: str) -> None:
        """Note what happens; whoever waits for it is told."""
        self.story.append(f"{self.now:8.3f}  {what}")
        for words, then in [waiting for waiting in self.waiting if waiting[0] in what]:
            self.waiting.remove((words, then))
            then()

    def when(self, words: str, then: Callable[[], object]) -> None:
        """Do something as soon as something is told in these words, once."""
        self.waiting.append((words, then))

    def happens(self, share: float) -> bool:
        return share > 0 and self.chances.random() < share

    def soon(self) -> float:
        """How long something on the wire takes."""
        return self.chances.uniform(0.001, 0.03)

    def later(self, seconds: float, what: Callable[..., object], *arguments: Any) -> None:
        """Let something happen out here, whoever may have ended by then."""
        self.loop.call_later(seconds, what, *arguments, context=self._context)

    async def ask(self, what: Callable[[], T], *, there: float | None = None, back: float | None = None) -> T:
        """From within a process: let something happen out here and bring its answer back."""
        answer: asyncio.Future[T] = self.loop.create_future()
        way_back = self.soon() if back is None else back

        def deliver(result: T | None, error: Exception | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
                # Whoever asked may have ended.
                answer.exception()
            else:
                answer.set_result(result)  # type: ignore[arg-type]

        def arrive() -> None:
            try:
                result = what()
            except Exception as error:  # noqa: BLE001 - it is the answer
                self.later(way_back, deliver, None, error)
            else:
                self.later(way_back, deliver, result, None)

        self.later(self.soon() if there is None else there, arrive)
        return await answer

    # Events

    def publish(self, number: int, conversation_id: str, text: str, *, at: float = 0.0) -> str:
        """Put an event into the log; returns its tag."""
        tag = f"{number}-{len(self.events[number])}"
        item = {"role": "user", "content": text, "tag": tag}
        self.add_record(
            number, conversation_id, json.dumps({"conversation_id": conversation_id, "item": item}).encode(), at=at
        )
        return tag

    def add_record(self, number: int, key: str, value: bytes | None, *, at: float = 0.0) -> None:
        """Put a record into the log, whatever it is; a tombstone without ``value``."""
        log = self.events[number]
        timestamp = int((1000 + at) * 1000)
        log.append(ConsumerRecord(EVENTS, number, len(log), timestamp, 0, key.encode(), value, None, 0, 0, ()))

    # The ledger topic

    def append(self, number: int, value: bytes) -> tuple[int, int | None]:
        log = self.ledger[number]
        stored = Stored(len(log), int(self.now * 1000) if self.broker_time else None, value)
        log.append(stored)
        return stored.offset, stored.timestamp

    # The group

    def join(self, member_id: str) -> asyncio.Future[tuple[int, list[int]]]:
        member = self.members.setdefault(member_id, Member(member_id, self.now))
        member.seen_at = self.now
        joined = member.joined = self.loop.create_future()
        self._rebalance()
        self._settle_group()
        return joined

    def leave(self, member_id: str) -> None:
        if self.members.pop(member_id, None) is not None:
            self._rebalance()
            self._settle_group()

    def heartbeat(self, member_id: str, generation: int) -> str:
        self._expel()
        member = self.members.get(member_id)
        if member is None:
            return "unknown"
        member.seen_at = self.now
        return "rebalance" if self.rebalancing or generation != self.generation else "ok"

    def commit(self, member_id: str, generation: int, offsets: dict[int, tuple[int, str]]) -> None:
        if member_id not in self.members or generation != self.generation:
            raise CommitFailedError
        self.committed.update(offsets)

    def _rebalance(self) -> None:
        if not self.rebalancing:
            self.rebalancing = True
            self.later(self.rebalance_seconds, self._rebalance_over, self.generation)

    def _rebalance_over(self, generation: int) -> None:
        if self.rebalancing and self.generation == generation:
            for member in [member for member in self.members.values() if member.joined is None]:
                self.tell(f"{member.id} is expelled: it did not rejoin")
                del self.members[member.id]
            self._settle_group()

    def _expel(self) -> None:
        for member in [m for m in self.members.values() if self.now - m.seen_at > self.session_seconds]:
            if member.joined is None:
                self.tell(f"{member.id} is expelled: its session is over")
                del self.members[member.id]
                self._rebalance()
        self._settle_group()

    def _settle_group(self) -> None:
        if not self.rebalancing or not all(member.joined is not None for member in self.members.values()):
            return
        self.rebalancing = False
        self.generation += 1
        members = list(self.members.values())
        shift = self.generation
        for index, member in enumerate(members):
            numbers = [n for n in range(self.partitions) if (n + shift) % len(members) == index]
            joined, member.joined = member.joined, None
            member.seen_at = self.now
            assert joined is not None
            if not joined.done():
                joined.set_result((self.generation, numbers))

    def watch_group(self) -> None:
        """Notice, without being asked, who is silent for too long."""
        self._expel()
        self.later(1.0, self.watch_group)

    # The API

    def store(self, conversation_id: str, items: Sequence[Item]) -> None:
        self.conversations.setdefault(conversation_id, []).extend(items)

    def make_items(self, payloads: Sequence[Buffer]) -> list[Item]:
        made = []
        for payload in payloads:
            value = json.loads(bytes(payload))
            self._item_numbers += 1
            made.append(Item(f"msg_{self._item_numbers}", value["role"], value["content"], value.get("tag", "")))
        return made

    def write_elsewhere(self, conversation_id: str, text: str) -> None:
        """Another writer adds an item."""
        self._item_numbers += 1
        self.store(conversation_id, [Item(f"msg_{self._item_numbers}", "user", text, "")])
