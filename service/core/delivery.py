"""What becomes of a batch: again, split, read back, delivered or dead.

Decides the next step of a batch from its state, and its fate from what an attempt or a read-back
showed. Time and randomness are arguments; it sends nothing, waits for nothing and counts no metrics.
The pump carries out what is decided here.

The life of a batch::

    SEND ─┬─ delivered ──────────────────────────────────────────────── outcome
          ├─ busy, throttled, transient, operator ─ wait ─ SEND
          ├─ ambiguous ─ READ_BACK ─┬─ found ────────────────────────── outcome
          │                         ├─ absent, too early to tell ─ wait ─ READ_BACK
          │                         └─ absent ─ SEND what is missing
          └─ refused ─┬─ one item ───────────────────────────────────── dead letter
                      └─ more ─ READ_BACK ─ split ─ SEND each

How a refused batch is split: around the culprit the API names. Else, after a read-back, the first missing item
goes alone: an API that stores up to the culprit has just named it that way; and if it is accepted, though
nothing was stored before, the API refuses as a whole and need not be read again. Else 3 : 5, the cheapest cut
where a refused first part costs one request more (that of the second part) than an accepted one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from service.core.circuit import CircuitReason
from service.core.grouper import AT_ONCE
from service.core.model import Batch, Dead, Reason, Unsettled, item_bytes
from service.core.readback import found, item_id, likeness
from service.core.verdict import Kind, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

    from service.core.circuit import Circuit
    from service.core.flood import FloodGuard
    from service.core.model import Event
    from service.core.readback import Cursors

LOCAL_BACKOFF_MAX_SECONDS = 5.0
"""The longest wait behind a lock or an unproven 403: they end without notice, and only this lane waits."""
HOST_BACKOFF_MAX_SECONDS = 1.0
"""The longest wait of one batch for trouble that the circuit already paces."""
UNREADABLE_READS = 3
"""So many failed read-backs in a row, of a batch that is spent, and its fate is called unknown."""
UNEXPECTED_ANSWERS = 2
"""So many 2xx answers that list nothing, to one batch or to probes, and it is no accident."""

_NO_ID = Verdict(Kind.AMBIGUOUS, "unexpected_answer", "listed an item without an id", 200)

_DEAD_REASONS = {
    Kind.CONVERSATION_NOT_FOUND: Reason.CONVERSATION_NOT_FOUND,
    Kind.FORBIDDEN: Reason.FORBIDDEN,
    Kind.TOO_LARGE: Reason.TOO_LARGE,
    Kind.REJECTED: Reason.REJECTED,
}


class Action(enum.StrEnum):
    """The next step of a batch; the first three are requests and name the ``operation`` in metrics."""

    SEND = "create_items"
    READ_BACK = "list_items"
    READ_CURSOR = "read_cursor"
    SPLIT = "split"


@dataclass(slots=True, frozen=True)
class Policy:
    """How patient delivery is; the settings of group ``DELIVERY__``, resolved."""

    max_attempts: int
    max_age_seconds: float
    backoff_initial_seconds: float
    backoff_max_seconds: float
    settle_seconds: float
    read_cursor_first: bool
    exact: bool = False
    """With the ledger: nothing is given up whose fate is unknown, and each refusal of several is read back."""


@dataclass(slots=True, frozen=True)
class Delivered:
    """These events are stored, each as the item beside it. ``read_back``: learnt by looking."""

    events: Sequence[Event]
    items: Sequence[Buffer]
    batch_size: int
    first_index: int
    attempts: int
    read_back: bool


@dataclass(slots=True, frozen=True)
class DeadLettered:
    """These events are given up."""

    events: Sequence[Event]
    dead: Dead


Outcome = Delivered | DeadLettered


@dataclass(slots=True)
class Result:
    """What a step led to: outcomes decided now, and what is left of the batch.

    ``again_at``: the same batch again, then (`AT_ONCE`: before the other lanes). ``parts``: these instead of it.
    Neither: nothing is left.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    again_at: float | None = None
    parts: list[Batch] = field(default_factory=list)


class Delivery:
    """Decides for all batches, with what they share: the circuit and the cursors."""

    __slots__ = ("_flood", "_policy", "_random", "circuit", "cursors")

    def __init__(
        self,
        policy: Policy,
        circuit: Circuit,
        cursors: Cursors,
        random: Callable[[], float],
        flood: FloodGuard | None = None,
    ) -> None:
        self._policy = policy
        self._flood = flood if flood is not None and flood.on else None
        self._random = random
        self.circuit = circuit
        self.cursors = cursors

    def action(self, batch: Batch) -> Action:
        """The next step of a batch that was taken."""
        if batch.unsettled is not None:
            return Action.READ_BACK
        if batch.known_guilty and len(batch.events) > 1:
            return Action.SPLIT
        if self.circuit.asks or (self._policy.read_cursor_first and self._is_cold(batch)):
            return Action.READ_CURSOR
        return Action.SEND

    def began(self, batch: Batch, action: Action, now: float) -> None:
        """Note that the request of ``action`` starts for ``batch``."""
        if action is Action.SEND:
            batch.attempts += 1
            # Now, not when the answer comes: a lane of the same conversation on another partition may move it.
            known = self.cursors.get(batch.conversation_id)
            if known is not None:
                batch.after = known
        if batch.began_at is None:
            self._excuse(batch, now)

    def _is_cold(self, batch: Batch) -> bool:
        return batch.after is None and self.cursors.get(batch.conversation_id) is None

    def wants_cursor(self, conversation_id: str) -> bool:
        """Whether a batch of this conversation would have its cursor read first."""
        return self._policy.read_cursor_first and self.cursors.get(conversation_id) is None

    def looked_ahead(self, conversation_id: str, verdict: Verdict, items: Sequence[Buffer]) -> None:
        """Note the newest item of a conversation that was asked for before any batch needs it.

        A good answer is all that counts: whatever else there is to say, the batch's own read will be told.
        """
        if verdict.kind is Kind.DELIVERED and self.wants_cursor(conversation_id):
            newest = item_id(items[0]) if items else ""
            if newest or not items:
                self.cursors.learn(conversation_id, newest)

    def split_guilty(self, batch: Batch) -> Result:
        """Split a batch that is known to hold the culprit."""
        return Result(parts=self._suspects(batch, batch.events))

    def sent(self, batch: Batch, verdict: Verdict, items: Sequence[Buffer], last_id: str, *, started_at: float,
             now: float) -> Result:  # fmt: skip
        """Decide what an attempt begun at ``started_at`` and judged ``verdict`` leads to."""
        kind = verdict.kind
        if kind is Kind.DELIVERED:
            self.circuit.success(batch.conversation_id, now, started_at=started_at)
            self._learn(batch, last_id)
            if batch.twin is not None:
                batch.twin.known_guilty = True
                batch.twin.atomic_refusal = batch.atomic_refusal
            events = batch.events
            return Result([Delivered(events, items, len(events), 0, batch.attempts, read_back=False)])
        if kind in _DEAD_REASONS:
            if verdict.foreign:
                return self._turned_away(batch, verdict, started_at, now)
            if kind is Kind.FORBIDDEN:
                return self._forbidden(batch, verdict, now)
            self.circuit.success(batch.conversation_id, now, started_at=started_at)
            return self._refused(batch, verdict, started_at)
        if kind is Kind.AMBIGUOUS:
            batch.unsettled = Unsettled(started_at, batch.after, last_word=verdict.last_word)
        return self._put_back(batch, verdict, now)

    def cursor_read(self, batch: Batch, verdict: Verdict, items: Sequence[Buffer], now: float) -> Result:
        """Decide after asking for the newest item, of a cold conversation or to see whether anybody answers."""
        newest = item_id(items[0]) if items else ""
        if items and not newest:
            verdict = _NO_ID
        if verdict.kind not in {Kind.AMBIGUOUS, Kind.TRANSIENT}:
            self.circuit.heard(now)
        cold = self._is_cold(batch)
        if verdict.kind is Kind.FORBIDDEN:
            return self._forbidden(batch, verdict, now)
        if verdict.kind in {Kind.REJECTED, Kind.TOO_LARGE} and not (cold and self._policy.read_cursor_first):
            # An API that can not be asked so; it answers, and what is to be written tells more.
            return Result(again_at=AT_ONCE)
        # Of a conversation that is not there the attempt to write will say so, in the API's own words.
        if verdict.kind is not Kind.DELIVERED and verdict.kind is not Kind.CONVERSATION_NOT_FOUND:
            return self._put_back(batch, verdict, now, reading=True)
        if cold:
            self.cursors.learn(batch.conversation_id, newest)
            # The batch remembers it too: of more conversations than are remembered none would ever be written to.
            batch.after = newest
        self.circuit.reads_work(now)
        # Before the other lanes: where those are cold too, no write would be tried before all of them were read.
        return Result(again_at=AT_ONCE)

    def read_back(self, batch: Batch, verdict: Verdict, items: Sequence[Buffer], *, started_at: float,
                  now: float) -> Result:  # fmt: skip
        """Decide what a read-back begun at ``started_at`` shows; ``items`` are oldest first."""
        unsettled = batch.unsettled
        assert unsettled is not None
        if verdict.kind is not Kind.DELIVERED:
            gone = verdict.kind in {Kind.CONVERSATION_NOT_FOUND, Kind.REJECTED}
            if gone and not verdict.foreign and unsettled.after:
                # The item behind which we read is gone: the newest items have to do.
                self.cursors.forget(batch.conversation_id)
                unsettled.after = batch.after = None
                return Result(again_at=AT_ONCE)
            if verdict.kind is not Kind.CONVERSATION_NOT_FOUND:
                unsettled.reads += 1
                return self._put_back(batch, verdict, now, reading=True)
            items = ()
        self.circuit.reads_work(now)
        events = batch.events
        matches = found([likeness(event.item) for event in events], [likeness(item) for item in items])
        stored = len(matches)
        if items:
            self._learn(batch, item_id(items[-1]))
        can_tell = unsettled.last_word or started_at >= unsettled.started_at + self._policy.settle_seconds
        if stored < len(events) and not can_tell:
            unsettled.reads = 0
            # No setback: looking was too early, nothing failed.
            unsettled.looks += 1
            settled_at = unsettled.started_at + self._policy.settle_seconds
            wait = self._backoff(batch.setbacks + unsettled.looks, self._host_limit())
            return Result(again_at=min(settled_at, now + wait))
        batch.unsettled = None
        result = Result()
        if stored:
            # Written and read: without this the last batch of an outage could leave the circuit open for ever.
            self.circuit.success(batch.conversation_id, now, started_at=unsettled.started_at)
            proof = [items[index] for index in matches]
            result.outcomes.append(Delivered(events[:stored], proof, len(events), 0, batch.attempts, read_back=True))
        missing = events[stored:]
        if not missing:
            return result
        if unsettled.refused is not None:
            result.parts = self._split_refused(batch, missing, stored, unsettled.refused)
            return result
        return self._send_missing(batch, missing, result)

    def _send_missing(self, batch: Batch, missing: Sequence[Event], result: Result) -> Result:
        """Go on with what a settled attempt left unsent."""
        rest = batch if len(missing) == len(batch.events) else self._part(batch, missing)
        if not self._spent(batch):
            result.parts = [rest]
        elif len(batch.events) == 1:
            dead = Dead(Reason.EXHAUSTED, "exhausted", "attempts and time used up", attempts=batch.attempts)
            result.outcomes.append(DeadLettered(missing, dead))
        else:
            result.parts = [self._part(batch, [event], last_chance=True) for event in missing]
        return result

    def _forbidden(self, batch: Batch, verdict: Verdict, now: float) -> Result:
        if self.circuit.forbidden(batch.conversation_id, now, _detail(verdict)):
            return Result([_dead(batch, verdict)])
        return self._unproven(batch, now)

    def _turned_away(self, batch: Batch, verdict: Verdict, started_at: float, now: float) -> Result:
        """Decide on a refusal that the API did not write: of this content, or of whatever anybody sends."""
        circuit = self.circuit
        circuit.turned_away(batch.conversation_id, now, _turned_away_reason(verdict), _detail(verdict))
        if batch.refused_at is None:
            batch.refused_at = now
        if len(batch.events) == 1 and not circuit.accepted_since(batch.refused_at):
            return self._unproven(batch, now)
        # Open or not: a firewall may let parts through that it refuses together.
        return self._refused(batch, verdict, started_at)

    def _unproven(self, batch: Batch, now: float) -> Result:
        """Try what was refused again: nobody else's acceptance shows yet that it is the only one."""
        batch.setbacks += 1
        self._excuse(batch, now)
        limit = min(LOCAL_BACKOFF_MAX_SECONDS, self._host_limit())
        return Result(again_at=now + self._backoff(batch.setbacks, limit))

    def _refused(self, batch: Batch, verdict: Verdict, started_at: float) -> Result:
        if len(batch.events) == 1 or verdict.kind is Kind.CONVERSATION_NOT_FOUND:
            return Result([_dead(batch, verdict)])
        if batch.after is not None and (self._policy.exact or not batch.atomic_refusal):
            # The API may have stored a prefix before it refused. Without a cursor this is not asked: an
            # older message with the same words would be taken for it, and the new one would be lost.
            batch.unsettled = Unsettled(started_at, batch.after, last_word=True, refused=verdict)
            return Result(again_at=AT_ONCE)
        return Result(parts=self._split_refused(batch, batch.events, None, verdict))

    def _split_refused(
        self, batch: Batch, events: Sequence[Event], stored: int | None, verdict: Verdict
    ) -> list[Batch]:
        """Split what a refused attempt left; ``stored`` of its items, ``None`` where nobody looked."""
        if len(events) == 1:
            return [self._part(batch, events)]
        if verdict.kind is Kind.TOO_LARGE:
            middle = len(events) // 2
            return [self._part(batch, events[:middle]), self._part(batch, events[middle:])]
        culprit = verdict.culprit - (stored or 0) if verdict.culprit is not None else -1
        if 0 <= culprit < len(events):
            cuts = (events[:culprit], events[culprit : culprit + 1], events[culprit + 1 :])
            return [self._part(batch, part) for part in cuts if part]
        if stored is None:
            return self._suspects(batch, events)
        first, rest = self._part(batch, events[:1]), self._part(batch, events[1:])
        first.twin = rest
        # Of one item it means nothing; accepted, it hands this on to its twin.
        first.atomic_refusal = stored == 0
        return [first, rest]

    def _suspects(self, batch: Batch, events: Sequence[Event]) -> list[Batch]:
        cut = (len(events) * 3 + 4) // 8
        first, second = self._part(batch, events[:cut]), self._part(batch, events[cut:])
        first.twin = second
        return [first, second]

    def _part(self, batch: Batch, events: Sequence[Event], *, last_chance: bool = False) -> Batch:
        return Batch(
            batch.lane,
            events,
            batch.flush_reason,
            batch.waited_seconds,
            item_bytes(events),
            attempts=batch.attempts,
            troubles=self._policy.max_attempts - 1 if last_chance else batch.troubles,
            troubled_seconds=batch.troubled_seconds,
            setbacks=batch.setbacks,
            began_at=batch.began_at,
            counted_at=batch.counted_at,
            open_when_counted=batch.open_when_counted,
            refused_at=batch.refused_at,
            trace=batch.trace,
            atomic_refusal=batch.atomic_refusal,
        )

    def guard(self, batch: Batch, result: Result, now: float) -> Result:
        """Hold a batch back that would be given up as one of too many; the circuit opens, and probes with it.

        What is given up beside events that were stored passes: that is one item, singled out.
        """
        if self._flood is None:
            return result
        for outcome in result.outcomes:
            if isinstance(outcome, Delivered):
                self._flood.delivered(len(outcome.events), now)
            elif self._flood.would_flood(batch.conversation_id, len(outcome.events), now):
                if len(result.outcomes) > 1 or result.parts:
                    continue
                self.circuit.trip(now, CircuitReason.FLOOD_GUARD, outcome.dead.reason.value)
                batch.setbacks += 1
                return Result(again_at=now + self._backoff(batch.setbacks, self._host_limit()))
        if self._flood.flooded and not self.circuit.is_open:
            # A refusal or a lock shows the host at work; that is not what was asked.
            self.circuit.trip(now, CircuitReason.FLOOD_GUARD, "nothing delivered since")
        return result

    def flood_over(self, now: float) -> bool:
        """Go on because a person says so; what floods again is held back again. False: nothing was held back."""
        held = self.circuit.reason is CircuitReason.FLOOD_GUARD
        if self._flood is not None:
            self._flood.forget()
        if held:
            self.circuit.close(now)
        return held

    def refused_record(self, conversation: str, now: float) -> None:
        """Count a record that is no event, where such are to count."""
        if self._flood is not None and self._flood.would_flood(conversation, 1, now):
            self.circuit.trip(now, CircuitReason.FLOOD_GUARD, "invalid_event")

    def _put_back(self, batch: Batch, verdict: Verdict, now: float, *, reading: bool = False) -> Result:
        """Wait and try again, or give up where the trouble is this conversation's alone."""
        batch.setbacks += 1
        kind = verdict.kind
        if kind is Kind.BUSY:
            self.circuit.success(batch.conversation_id, now)
            self._excuse(batch, now)
            return Result(again_at=now + self._backoff(batch.setbacks, LOCAL_BACKOFF_MAX_SECONDS))
        if kind is Kind.THROTTLED:
            self._excuse(batch, now)
        elif kind is Kind.OPERATOR:
            self.circuit.trip(now, operator_reason(verdict), _detail(verdict))
        elif (
            self._trouble(batch, verdict, now, reading=reading)
            and (batch.unsettled is None or self._is_unreadable(batch.unsettled, now))
            and self._spent(batch)
        ):
            return self._exhaust(batch, verdict)
        return Result(again_at=now + self._backoff(batch.setbacks, self._host_limit()))

    def _trouble(self, batch: Batch, verdict: Verdict, now: float, *, reading: bool) -> bool:
        """Tell the circuit; returns whether it is this conversation's own trouble, and counts it if so."""
        circuit, conversation_id = self.circuit, batch.conversation_id
        others_too = circuit.others_failing(conversation_id)
        if verdict.code == "unexpected_answer":
            batch.unexpected_answers += 1
            healthy = batch.began_at is not None and circuit.healthy_for_others(conversation_id, batch.began_at)
            repeated = circuit.is_open or batch.unexpected_answers >= UNEXPECTED_ANSWERS
            if repeated and (others_too or not healthy):
                circuit.trip(now, CircuitReason.UNEXPECTED_ANSWER, _detail(verdict))
                return False
        if verdict.foreign or verdict.kind is Kind.FORBIDDEN:
            circuit.turned_away(conversation_id, now, _turned_away_reason(verdict), _detail(verdict))
        else:
            circuit.trouble(conversation_id, now, _detail(verdict), reading=reading)
        if verdict.kind is Kind.TRANSIENT and verdict.status is None:
            # Whom nobody reaches is not to blame.
            self._excuse(batch, now)
            return False
        others_got_through = circuit.healthy_for_others(conversation_id, batch.counted_at)
        open_seconds = circuit.open_seconds(now)
        if others_got_through:
            batch.troubles += 1
            batch.troubled_seconds += now - batch.counted_at - (open_seconds - batch.open_when_counted)
        batch.counted_at, batch.open_when_counted = now, open_seconds
        return others_got_through

    def _excuse(self, batch: Batch, now: float) -> None:
        """Start anew: what passed until now was not its conversation's trouble."""
        batch.began_at = batch.counted_at = now
        batch.open_when_counted = self.circuit.open_seconds(now)

    def _spent(self, batch: Batch) -> bool:
        """Whether attempts and time are used up, all of them while others got through."""
        policy = self._policy
        return (
            not self.circuit.is_open
            and batch.troubles >= policy.max_attempts
            and batch.troubled_seconds >= policy.max_age_seconds
        )

    def _learn(self, batch: Batch, newest: str) -> None:
        """Note the newest item of a conversation; without an id nothing is known of it any more."""
        if newest:
            self.cursors.learn(batch.conversation_id, newest)
        else:
            self.cursors.forget(batch.conversation_id)

    def _exhaust(self, batch: Batch, verdict: Verdict) -> Result:
        if batch.unsettled is None and len(batch.events) > 1:
            return Result(parts=[self._part(batch, [event], last_chance=True) for event in batch.events])
        fate = "not_stored"
        if batch.unsettled is not None:
            fate = "unknown"
            # What may lie behind the cursor is not another writer's: in the same words it would be taken for the next.
            self.cursors.forget(batch.conversation_id)
        dead = Dead(Reason.EXHAUSTED, verdict.code, verdict.message, verdict.status, batch.attempts, fate)
        return Result([DeadLettered(batch.events, dead)])

    def _is_unreadable(self, unsettled: Unsettled, now: float) -> bool:
        """Whether reading was tried in vain often enough, and what was sent can not land any more."""
        if self._policy.exact:
            return False
        over = unsettled.last_word or now >= unsettled.started_at + self._policy.settle_seconds
        return over and unsettled.reads >= UNREADABLE_READS

    def _host_limit(self) -> float:
        """The longest wait where no other rule says so: what waits for the host is at hand when a probe is due."""
        return HOST_BACKOFF_MAX_SECONDS if self.circuit.is_open else self._policy.backoff_max_seconds

    def _backoff(self, setbacks: int, limit: float) -> float:
        """Exponential back-off with full jitter, in seconds."""
        ceiling = min(
            self._policy.backoff_initial_seconds * 2.0 ** min(setbacks - 1, 30),
            self._policy.backoff_max_seconds,
            limit,
        )
        return self._random() * ceiling


def operator_reason(verdict: Verdict) -> CircuitReason:
    """Which of the things that an operator mends this is."""
    code = verdict.code.lower()
    if code == "tls_error":
        return CircuitReason.TLS
    if "quota" in code or "bill" in code or code in {"arrearage", "commoditynotpurchased"}:
        return CircuitReason.UNPAID_OR_QUOTA
    if verdict.status in {402, 429}:
        return CircuitReason.UNPAID_OR_QUOTA
    if verdict.status in {401, 407} or "key" in code:
        return CircuitReason.KEY_REJECTED
    if verdict.status == 403:
        return CircuitReason.FORBIDDEN
    return CircuitReason.WRONG_URL


def _turned_away_reason(verdict: Verdict) -> CircuitReason:
    return CircuitReason.FORBIDDEN if verdict.kind is Kind.FORBIDDEN else CircuitReason.UNEXPECTED_ANSWER


def _dead(batch: Batch, verdict: Verdict) -> DeadLettered:
    reason = _DEAD_REASONS[verdict.kind]
    return DeadLettered(batch.events, Dead(reason, verdict.code, verdict.message, verdict.status, batch.attempts))


def _detail(verdict: Verdict) -> str:
    # It is logged: what is said of an account or an address is told, what is said of a message may repeat its words.
    return f"{verdict.code}: {verdict.message}" if verdict.message and verdict.kind is Kind.OPERATOR else verdict.code
