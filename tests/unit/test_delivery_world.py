"""A host that may do anything, and a pump in virtual time: what the tests of delivery are played on.

`Host` is a small model of the Conversations API: it stores, refuses, and meets a request with whatever `Fault`
the test names: what the caller sees, how much is stored all the same, and when. `World` plays batches through
`Grouper` and `Delivery` exactly as the pump does, but with a heap of due times in the place of an event loop:
no sockets, no tasks, no waiting. It knows which event each stored item is (a tag the API forwards and the code
under test never looks at), so `World.audit` can tell a lost event from a doubled one.

The tests at the end hold the model itself to what it claims.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

from service.core.circuit import PROBE_MAX_SECONDS, Circuit
from service.core.delivery import Action, DeadLettered, Delivered, Delivery, Policy, Result
from service.core.grouper import Grouper
from service.core.model import Answered, ErrorBody, ErrorForm, Event, Fate, Reason, Unanswered
from service.core.readback import Cursors, likeness
from service.core.verdict import Kind, judge
from service.pump import SILENT_READ_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from typing_extensions import Buffer

    from service.core.delivery import Outcome
    from service.core.grouper import Partition
    from service.core.model import Answer, Batch
    from service.core.verdict import Verdict

TOTAL_SECONDS: Final = 2.0
"""How long an attempt may take, silence included."""
SETTLE_SECONDS: Final = 9.0
LATENCY_SECONDS: Final = 0.05
ALL: Final = 1000
"""More items than any request has."""
FOREVER: Final = 1_000_000.0
STEPS: Final = 60_000
"""A test that needs more steps of the loop than this makes no progress."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One request gone wrong.

    ``answer`` is what the caller sees, ``None``: the truth. ``stores`` says what happens all the same: so many
    of the request's items (counted from the first) are stored so many seconds after it began.
    """

    name: str
    answer: Answer | None
    stores: tuple[tuple[int, float], ...] = ()
    seconds: float = LATENCY_SECONDS

    def __repr__(self) -> str:
        return f"{self.name}{self.stores or ''}"


def nested(code: str, message: str = "no", culprit: int | None = None) -> ErrorBody:
    return ErrorBody(ErrorForm.NESTED, code, message, culprit)


def cut(*stores: tuple[int, float]) -> Fault:
    return Fault("cut", Unanswered(Fate.UNKNOWN, "connection_cut", "peer closed"), stores)


def silence(*stores: tuple[int, float]) -> Fault:
    return Fault("silence", Unanswered(Fate.UNKNOWN, "timeout", "no answer"), stores, TOTAL_SECONDS)


def own_500(stored: int = 0) -> Fault:
    stores = ((stored, 0.02),) if stored else ()
    return Fault("own_500", Answered(500, error=nested("server_error", "The server had an error")), stores)


def gateway_503(*stores: tuple[int, float]) -> Fault:
    return Fault("gateway_503", Answered(503), stores)


def relayed_502(*stores: tuple[int, float]) -> Fault:
    return Fault("relayed_502", Answered(502, error=nested("502", "Bad gateway.")), stores)


def html(*stores: tuple[int, float]) -> Fault:
    return Fault("html", Answered(200), stores)


def throttled(retry_after: float | None = None) -> Fault:
    error = ErrorBody(ErrorForm.DASHSCOPE, "Throttling.RateQuota", "Requests rate limit exceeded")
    return Fault("throttled", Answered(429, error=error, retry_after_seconds=retry_after))


UNREACHED: Final = Fault("unreached", Unanswered(Fate.NOT_SENT, "connect_error", "refused"))
LOCKED: Final = Fault("locked", Answered(400, error=nested("conversation_locked")))
KEY_REJECTED: Final = Fault("key_rejected", Answered(401, error=nested("invalid_api_key")))
WRONG_URL: Final = Fault("wrong_url", Answered(404))
WRONG_DASHSCOPE_URL: Final = Fault(
    "wrong_dashscope_url",
    Answered(400, error=ErrorBody(ErrorForm.DASHSCOPE, "InvalidParameter", "url error, please check url！")),  # noqa: RUF001 - theirs
)
FORBIDDEN: Final = Fault("forbidden", Answered(403, error=nested("no_access", "not yours")))
FIREWALL: Final = Fault("firewall", Answered(400))
FIREWALL_403: Final = Fault("firewall_403", Answered(403))
NOT_FOUND: Final = Fault("not_found", Answered(404, error=nested("", "Conversation with id 'c' not found.")))


@dataclass(slots=True)
class Request:
    """One request as it was made."""

    action: Action
    conversation_id: str
    tags: tuple[int, ...]
    texts: tuple[str, ...]
    started_at: float
    probe: bool
    fault: Fault | None = None
    answered_at: float = math.inf


Weather = Callable[[Request], Fault | None]


def fine(request: Request) -> Fault | None:
    return None


def outage(fault: Fault, start: float, end: float) -> Weather:
    return lambda request: fault if start <= request.started_at < end else None


def in_turn(*plan: Fault | None) -> Weather:
    """These meet the requests in the order they are made; then the weather is fine."""
    turns = iter(plan)
    return lambda request: next(turns, None)


@dataclass(frozen=True, slots=True)
class Item:
    """One item as it is stored. ``tag`` names the event it came from; another writer's has none."""

    id: str
    document: bytes
    tag: int | None


class Host:
    """What is stored, and how requests are met."""

    def __init__(self, *, stores_prefix: bool = False, names_culprit: bool = False) -> None:
        self.stores_prefix = stores_prefix
        self.names_culprit = names_culprit
        self.weather: Weather = fine
        self.interrupted: Iterator[bool] = itertools.repeat(False)
        """Asked before each item is stored: whether another writer comes between."""
        self.conversations: dict[str, list[Item]] = {}
        self._ids = itertools.count(1)

    def write(self, conversation_id: str, text: str, tag: int | None = None) -> None:
        stored = self.conversations.setdefault(conversation_id, [])
        if tag is not None and next(self.interrupted, False):
            self.write(conversation_id, "of another writer")
        item_id = f"msg_{next(self._ids)}"
        # Not byte for byte what was sent: a list of parts, with fields of the API's own.
        document = {
            "id": item_id,
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_text", "text": text, "annotations": []}],
        }
        stored.append(Item(item_id, json.dumps(document).encode(), tag))

    def take_in(self, conversation_id: str, items: Sequence[bytes], already: int, upto: int) -> int:
        """Store items ``already`` to ``upto`` of a request, as far as the API lets them in; returns how many now."""
        documents = [json.loads(item) for item in items]
        refused = next((at for at, document in enumerate(documents) if is_bad(document["content"])), None)
        if refused is not None:
            upto = min(upto, refused) if self.stores_prefix else 0
        for document in documents[already:upto]:
            self.write(conversation_id, document["content"], document["tag"])
        return max(already, min(upto, len(items)))

    def answer_to(self, conversation_id: str, items: Sequence[bytes]) -> Answer:
        """Store a request's items, or refuse it."""
        count = self.take_in(conversation_id, items, 0, len(items))
        if count == len(items):
            stored = self.conversations[conversation_id]
            mine = [item for item in stored if item.tag is not None][-count:]
            return Answered(200, [item.document for item in mine], mine[-1].id)
        culprit = next(at for at, item in enumerate(items) if is_bad(json.loads(item)["content"]))
        named = culprit if self.names_culprit else None
        error = ErrorBody(ErrorForm.DASHSCOPE, "DataInspectionFailed", "inappropriate content", named)
        return Answered(400, error=error)

    def listing(self, conversation_id: str, after: str | None, newest: int) -> Answer:
        """What the client of the pump gives: all behind ``after``, or the ``newest``; oldest first."""
        stored = self.conversations.get(conversation_id, [])
        if after is None:
            page = stored[-newest:]
        elif after == "":
            page = stored
        else:
            known = next((at for at, item in enumerate(stored) if item.id == after), None)
            if known is None:
                return Answered(400, error=nested("invalid_value", "no such item"))
            page = stored[known + 1 :]
        return Answered(200, [item.document for item in page], page[-1].id if page else "")


def is_bad(text: str) -> bool:
    return text.startswith("bad")


@dataclass(slots=True)
class Audit:
    """What the outside sees of one conversation in the end."""

    sent: list[int]
    delivered: list[int]
    stored: list[int]
    dead: dict[int, DeadLettered]


PATIENT: Final = Policy(
    max_attempts=1_000_000,
    max_age_seconds=1e12,
    backoff_initial_seconds=0.5,
    backoff_max_seconds=60.0,
    settle_seconds=SETTLE_SECONDS,
    read_cursor_first=False,
)
USUAL: Final = Policy(
    max_attempts=8,
    max_age_seconds=900.0,
    backoff_initial_seconds=0.5,
    backoff_max_seconds=60.0,
    settle_seconds=SETTLE_SECONDS,
    read_cursor_first=False,
)


@dataclass
class World:
    """The pump's loop over a host, in virtual time."""

    host: Host = field(default_factory=Host)
    policy: Policy = PATIENT
    max_items: int = 20
    concurrency: int = 8
    random: Callable[[], float] = lambda: 0.7
    known_conversations: int = 1000
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.grouper = Grouper(max_items=self.max_items, max_bytes=1 << 20, window_seconds=0.0)
        self.circuit = Circuit()
        self.cursors = Cursors(self.known_conversations)
        self.delivery = Delivery(self.policy, self.circuit, self.cursors, self.random)
        self.events: dict[int, Event] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.order: list[tuple[float, int]] = []
        self.requests: list[Request] = []
        self.open_spans: list[tuple[float, float]] = []
        self.held_until = -math.inf
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._sequence = itertools.count()
        self._in_flight = 0
        self._open_since: float | None = None
        self._busy: set[int] = set()
        self._reading: dict[Batch, Request] = {}
        self._heard_at = -math.inf

    # What happens to it

    def assign(self, number: int = 0) -> Partition:
        found = self.grouper.partitions.get(number)
        return self.grouper.assign(number) if found is None else found

    def add(self, conversation_id: str, *texts: str, partition: int = 0) -> list[int]:
        """Events arrive; returns their tags."""
        state = self.assign(partition)
        tags = []
        for text in texts:
            tag = len(self.events)
            document = {"type": "message", "role": "user", "content": text, "tag": tag}
            item = json.dumps(document).encode()
            event = Event(partition, tag, conversation_id, f"e{tag}", item, len(item))
            self.events[tag] = event
            self.grouper.add(state, event, self.now)
            tags.append(tag)
        return tags

    def read_again(self, number: int, tags: Sequence[int]) -> None:
        """The partition is assigned anew, and the events that had not been committed are read again."""
        state = self.grouper.assign(number)
        for tag in tags:
            old = self.events[tag]
            self.outcomes.pop(tag, None)
            self.events[tag] = Event(number, tag, old.conversation_id, old.event_id, old.item, old.size)
            self.grouper.add(state, self.events[tag], self.now)

    def know(self, *conversation_ids: str) -> None:
        """The cursor of these conversations is known."""
        for conversation_id in conversation_ids:
            stored = self.host.conversations.get(conversation_id)
            self.cursors.learn(conversation_id, stored[-1].id if stored else "")

    def text(self, tag: int) -> str:
        content: str = json.loads(bytes(self.events[tag].item))["content"]
        return content

    def keep_adding(self, seconds: float, every: float, *conversation_ids: str) -> None:
        """Traffic: an event for each of these conversations, now and every so often."""
        for index in range(int(seconds / every) + 1):
            for conversation_id in conversation_ids:
                self.at(self.now + index * every, partial(self.add, conversation_id, "hello"))

    def at(self, time: float, happens: Callable[[], object]) -> None:
        heapq.heappush(self._due, (time, next(self._sequence), happens))

    # The loop

    def run(self, seconds: float = FOREVER, until: Callable[[], bool] | None = None) -> None:
        """Go on until nothing is left to do, the time is over or ``until`` holds."""
        end = self.now + seconds
        for _ in range(STEPS):
            if until is not None and until():
                return
            again = self._start_due()
            wake = min(self._due[0][0] if self._due else math.inf, again)
            if wake > end or wake == math.inf:
                self.now = self.now if wake == math.inf and seconds == FOREVER else end
                return
            self.now = max(self.now, wake)
            while self._due and self._due[0][0] <= self.now:
                heapq.heappop(self._due)[2]()
        raise AssertionError(f"no end after {STEPS} steps; at {self.now}, circuit {self.circuit.reason}")

    def _start_due(self) -> float:
        for _ in range(STEPS):
            if self._in_flight >= self.concurrency and not self.circuit.is_open:
                return math.inf
            permitted_at = max(self.circuit.next_attempt(self.now), self.held_until)
            if permitted_at > self.now:
                return permitted_at
            batch = self.grouper.take(self.now)
            if batch is None:
                deadline = self.grouper.deadline()
                return math.inf if deadline is None else deadline
            action = self.delivery.action(batch)
            if action is Action.SPLIT:
                self._carry_on(batch, self.delivery.split_guilty(batch))
            else:
                self._start(batch, action)
        raise AssertionError("splitting does not end")

    def _start(self, batch: Batch, action: Action) -> None:
        lane = id(batch.lane)
        assert lane not in self._busy, "two requests of one lane at once"
        self._busy.add(lane)
        conversation_id = batch.conversation_id
        tags = tuple(event.offset for event in batch.events)
        texts = tuple(json.loads(bytes(event.item))["content"] for event in batch.events)
        request = Request(action, conversation_id, tags, texts, self.now, self.circuit.is_open)
        fault = request.fault = self.host.weather(request)
        if request.probe:
            recent = [made for made in self.requests[-50:] if made.probe and made.answered_at > self.now]
            # A read that was answered is worth a write at once, and one closed and opened again begins anew; else they
            # keep their distance.
            since = max(self._heard_at, self._open_since or -math.inf, self.now - PROBE_MAX_SECONDS)
            recent = [made for made in recent if made.started_at > since]
            assert not recent, f"probe while {recent} is under way"
        self.requests.append(request)
        probe = self.circuit.started(self.now)
        self.delivery.began(batch, action, self.now)
        self._in_flight += 1
        seconds = fault.seconds if fault else LATENCY_SECONDS
        truth: list[Answer] = []
        if fault is None or fault.answer is None:
            self.at(self.now + seconds / 2, lambda: self._reach(batch, request, truth))
        elif action is Action.SEND:
            self._land(batch, fault)
        if action is not Action.SEND:
            self._reading[batch] = request
        self.at(self.now + seconds, lambda: self._ended(batch, request, probe, truth))

    def _land(self, batch: Batch, fault: Fault) -> None:
        items = [event.item for event in batch.events]
        done = 0

        def land(count: int) -> None:
            nonlocal done
            done = self.host.take_in(batch.conversation_id, items, done, count)

        for count, after in fault.stores:
            self.at(self.now + after, partial(land, count))

    def _reach(self, batch: Batch, request: Request, truth: list[Answer]) -> None:
        if request.answered_at > self.now:
            truth.append(self._truth(batch, request.action))

    def _truth(self, batch: Batch, action: Action) -> Answer:
        conversation_id = batch.conversation_id
        if action is Action.SEND:
            return self.host.answer_to(conversation_id, [event.item for event in batch.events])
        unsettled = batch.unsettled
        if unsettled is None:
            return self.host.listing(conversation_id, None, 1)
        return self.host.listing(conversation_id, unsettled.after, 2 * len(batch.events))

    def _over(self, batch: Batch, request: Request) -> None:
        request.answered_at = self.now
        self._busy.discard(id(batch.lane))
        self._in_flight -= 1
        self._reading.pop(batch, None)

    def _abandon(self, batch: Batch, request: Request) -> None:
        self._over(batch, request)
        self._carry_on(batch, Result(again_at=self.now))

    def _ended(self, batch: Batch, request: Request, probe: int, truth: list[Answer]) -> None:
        if request.answered_at <= self.now:
            return
        answer = truth[0] if truth else request.fault.answer if request.fault else None
        assert answer is not None
        now, action = self.now, request.action
        self._over(batch, request)
        items: Sequence[Buffer] = (answer.items or ()) if isinstance(answer, Answered) else ()
        good = isinstance(answer, Answered) and answer.items is not None and action is not Action.SEND
        verdict = judge(answer, len(items) if good else len(batch.events))
        if action is not Action.SEND and verdict.kind not in {Kind.AMBIGUOUS, Kind.TRANSIENT}:
            self._heard_at = now
        result = self._decide(batch, action, verdict, items, answer, request.started_at)
        if verdict.retry_after_seconds is not None:
            self.held_until = max(self.held_until, now + verdict.retry_after_seconds)
        self._carry_on(batch, result)
        self.circuit.ended(now, probe)
        self._watch()

    def _decide(
        self,
        batch: Batch,
        action: Action,
        verdict: Verdict,
        items: Sequence[Buffer],
        answer: Answer,
        started_at: float,
    ) -> Result:
        if action is Action.SEND:
            last_id = answer.last_id if isinstance(answer, Answered) else ""
            return self.delivery.sent(batch, verdict, items, last_id, started_at=started_at, now=self.now)
        if action is Action.READ_CURSOR:
            return self.delivery.cursor_read(batch, verdict, items, self.now)
        return self.delivery.read_back(batch, verdict, items, started_at=started_at, now=self.now)

    def _carry_on(self, batch: Batch, result: Result) -> None:
        concluded = [event for outcome in result.outcomes for event in outcome.events]
        kept = [event for part in result.parts for event in part.events]
        if result.again_at is not None:
            assert not concluded, "an outcome, and again"
            assert not kept, "parts, and again"
        else:
            assert concluded + kept == list(batch.events), "what comes of a batch is all of it, in order, once"
        if not batch.lane.partition.alive:
            self.grouper.done(batch, self.now)
            return
        for outcome in result.outcomes:
            self._conclude(outcome)
            batch.lane.partition.settle(outcome.events)
        if result.again_at is not None:
            self.grouper.again(batch, result.again_at)
        elif result.parts:
            self.grouper.split(batch, result.parts, self.now)
        else:
            self.grouper.done(batch, self.now)

    def _conclude(self, outcome: Outcome) -> None:
        for at, event in enumerate(outcome.events):
            tag = event.offset
            assert tag not in self.outcomes, f"a second outcome of event {tag}"
            self.outcomes[tag] = outcome
            self.order.append((self.now, tag))
            if isinstance(outcome, Delivered):
                assert likeness(outcome.items[at]) == likeness(event.item), "a reply that shows another item"
        if isinstance(outcome, Delivered):
            assert len(outcome.items) == len(outcome.events)

    def _watch(self) -> None:
        if self.circuit.is_open and self._open_since is None:
            self._open_since = self.now
        elif not self.circuit.is_open and self._open_since is not None:
            self.open_spans.append((self._open_since, self.now))
            self._open_since = None
            for batch, request in list(self._reading.items()):
                if self.now - request.started_at >= SILENT_READ_SECONDS:
                    self._abandon(batch, request)

    # What is seen in the end

    @property
    def all_done(self) -> bool:
        return len(self.outcomes) == len(self.events)

    @property
    def idle(self) -> bool:
        return all(not partition.lanes and not partition.busy for partition in self.grouper.partitions.values())

    @property
    def dead(self) -> dict[int, DeadLettered]:
        return {tag: outcome for tag, outcome in self.outcomes.items() if isinstance(outcome, DeadLettered)}

    def count(self, action: Action) -> int:
        return sum(request.action is action for request in self.requests)

    def audit(self) -> Mapping[str, Audit]:
        found: dict[str, Audit] = {}
        for tag, event in self.events.items():
            audit = found.setdefault(event.conversation_id, Audit([], [], [], {}))
            audit.sent.append(tag)
            outcome = self.outcomes.get(tag)
            if isinstance(outcome, Delivered):
                audit.delivered.append(tag)
            elif outcome is not None:
                audit.dead[tag] = outcome
        for conversation_id, audit in found.items():
            stored = self.host.conversations.get(conversation_id, [])
            audit.stored = [item.tag for item in stored if item.tag is not None]
        return found

    def check_exactly_once(self) -> None:
        """Every event has an outcome; what was delivered is stored once, in order; what is dead is not stored."""
        assert self.all_done, f"without outcome: {self.events.keys() - self.outcomes.keys()}"
        assert self.idle
        for conversation_id, audit in self.audit().items():
            assert audit.stored == audit.delivered, f"{conversation_id}: stored as against delivered"
            decided = [tag for _, tag in self.order if self.events[tag].conversation_id == conversation_id]
            assert decided == audit.sent, f"{conversation_id}: outcomes out of order"

    def check_dead(self, *tags: int, reason: Reason = Reason.REJECTED) -> None:
        """Exactly these events are dead letters, for this reason."""
        assert {tag: outcome.dead.reason for tag, outcome in self.dead.items()} == dict.fromkeys(tags, reason)


def world_of(**changes: Any) -> World:
    """A world whose conversation ``c`` is known to be empty."""
    world = World(**changes)
    world.know("c")
    return world


# The model itself


def test_in_fine_weather_everything_is_stored_once_in_full_batches() -> None:
    world = world_of()
    world.add("c", *"abcdefghijklmnopqrstuvwxyz")
    world.run()
    world.check_exactly_once()
    assert [len(request.tags) for request in world.requests] == [20, 6]


def test_a_fault_shows_one_thing_and_stores_another() -> None:
    world = world_of()
    world.add("c", "a", "b")
    world.host.weather = in_turn(cut((1, 0.01), (2, 5.0)))
    world.run(1.0)
    assert [item.tag for item in world.host.conversations["c"]] == [0]
    world.run(5.0)
    assert [item.tag for item in world.host.conversations["c"]] == [0, 1]


def test_another_writer_comes_between_the_items_of_one_request() -> None:
    world = world_of()
    world.host.interrupted = itertools.cycle([False, True])
    world.add("c", "a", "b")
    world.run()
    assert [item.tag for item in world.host.conversations["c"]] == [0, None, 1]
    world.check_exactly_once()


@pytest.mark.parametrize(("stores_prefix", "kept"), [(False, []), (True, [0, 1])])
def test_a_refusal_keeps_nothing_or_what_stood_before_the_culprit(stores_prefix: bool, kept: list[int]) -> None:
    host = Host(stores_prefix=stores_prefix, names_culprit=True)
    items = [json.dumps({"content": text, "tag": tag}).encode() for tag, text in enumerate(["a", "b", "bad", "c"])]
    answer = host.answer_to("c", items)
    assert isinstance(answer, Answered)
    assert answer.error is not None
    assert answer.error.culprit == 2
    assert [item.tag for item in host.conversations.get("c", [])] == kept


def test_the_audit_sees_a_loss_a_double_and_a_swap() -> None:
    world = world_of()
    world.add("c", "a", "b")
    world.run()
    stored = world.host.conversations["c"]
    for broken in (stored[:1], [*stored, stored[0]], stored[::-1]):
        world.host.conversations["c"] = broken
        with pytest.raises(AssertionError, match="stored as against delivered"):
            world.check_exactly_once()


def test_the_counts_of_requests_are_by_what_they_were_for() -> None:
    world = world_of()
    world.add("c", "a")
    world.run()
    assert Counter(request.action for request in world.requests) == {Action.SEND: 1}
    assert world.count(Action.SEND) == 1
    assert world.count(Action.READ_BACK) == 0
