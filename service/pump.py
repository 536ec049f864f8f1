"""The loop: what travels from a lane to the API and back to Kafka reads off here.

take a permit → take a due batch → (seam: before an attempt) → attempt → judge → decide:
again | split | outcome → (seam: after an outcome) → reply or dead letter → stored → settle →
only then may the position move.

It decides nothing: which batch is the grouper's business, how many at once the limiter's, whether at all
the circuit's, what an answer leads to the delivery's. It carries out, counts and times.
"""

from __future__ import annotations

import asyncio
import logging
import math
import operator
import time
from functools import partial
from typing import TYPE_CHECKING, Protocol

from service.conversations.client import WITHDRAWN
from service.core.circuit import CircuitReason
from service.core.delivery import Action, DeadLettered, Delivered, Result
from service.core.grouper import AT_ONCE, LaneState
from service.core.limiter import Signal
from service.core.model import Answered, Dead, Fate, Reason, Unanswered
from service.core.verdict import Kind, judge
from service.kafka import codec, dead_letters
from service.kafka.codec import OutgoingRecord
from service.kafka.outlet import Outgoing, single
from service.kafka.routing import Router

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence

    from service.conversations.client import Conversations
    from service.core.delivery import Delivery, Outcome
    from service.core.grouper import Grouper, Lane, Partition
    from service.core.ledger import Settled
    from service.core.limiter import Limiter
    from service.core.model import Answer, Batch, Event, Refusal
    from service.core.verdict import Verdict
    from service.kafka.outlet import Outlet
    from service.kafka.routing import Destination
    from service.ops.health import Health
    from service.ops.metrics import Metrics
    from service.ops.tracing import AttemptTrace, BatchTrace, Tracing
    from service.settings import Settings

    _Write = Callable[[int, int], Iterable[codec.Reply]]
    """Writes the replies of the events ``[start, end)`` of an outcome."""

log = logging.getLogger(__name__)
_headers_of = operator.attrgetter("headers")

ROUND_SECONDS = 1.0
"""The loop goes round at least this often, so that a probe can tell waiting from hanging."""
SENDING_SHARE = 0.25
"""Of the buffer limit in bytes: what requests in flight carry is in memory a second time."""
LOOKING_SHARE = 0.5
"""Of the attempts that may be in flight: the most that look ahead, so that what becomes due finds room."""
DRAIN_MARGIN_SECONDS = 5.0
"""Of the drain budget, kept for storing and committing."""
SILENT_READ_SECONDS = 1.0
"""A read without an answer for so long when the host is found at work again is made anew."""


class Journal(Protocol):
    """What may stand at the pump's two seams; the ledger does."""

    async def before_attempt(self, batch: Batch) -> Callable[[], bool] | None:
        """Record that ``batch`` is about to be sent.

        Returns what to ask before the first byte leaves (false: too late, record it anew), or ``None``: it must
        not be sent, its partition is lost.
        """

    async def after_outcome(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        """Record what became of events, or end the partition: of what is not recorded nothing may be said."""


class Pump:
    """Carries batches from the grouper to the API and outcomes to the outlet."""

    def __init__(
        self,
        settings: Settings,
        grouper: Grouper,
        limiter: Limiter,
        delivery: Delivery,
        conversations: Conversations,
        outlet: Outlet,
        metrics: Metrics,
        health: Health,
        *,
        lease: Callable[[], bool],
        circuit_changed: Callable[[], None],
        fatal: Callable[[BaseException], None],
        clock: Callable[[], float],
        journal: Journal | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._kafka = settings.kafka
        self._failed_replies = settings.reply.failures
        self._invalid_floods = settings.dead_letter.flood_counts_invalid
        self._header_style = settings.dead_letter.header_style
        self._router = Router(self._kafka.reply_topic, settings.allowed_reply_topics, outlet, metrics)
        self._drain_seconds = settings.shutdown.drain_seconds
        self._sending_bytes = 0
        self._max_sending_bytes = int(settings.limits.max_buffered_bytes * SENDING_SHARE)
        self._overrides: Mapping[str, Kind] = {code: Kind(kind) for code, kind in settings.delivery.verdicts.items()}
        self._grouper = grouper
        self._limiter = limiter
        self._delivery = delivery
        self._circuit = delivery.circuit
        self._circuit_reason: CircuitReason | None = None
        self._conversations = conversations
        self._outlet = outlet
        self._metrics = metrics
        self._health = health
        self._lease = lease
        self._lease_missed = False
        self._circuit_changed = circuit_changed
        self._fatal = fatal
        self._clock = clock
        self._journal = journal
        self._tracing = tracing
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()
        self._reading: dict[Batch, tuple[float, asyncio.Timeout]] = {}
        self._looking: dict[str, Lane] = {}
        """Lanes whose cursor is being read ahead, by conversation, until one of its batches is taken."""
        self._window_seconds = settings.batch.window_seconds
        self._delivered = metrics.counter("delivered_items_total")
        self._batch_items = metrics.histogram("batch_items")
        self._batch_wait = metrics.histogram("batch_wait_seconds")
        self._lateness = metrics.histogram("event_to_delivery_seconds")

    def flood_over(self) -> None:
        """Let dead letters through again, as an operator who has looked says."""
        held = self._delivery.flood_over(self._clock())
        log.warning("told that the flood is over", extra={"held_back": held})
        self._watch_circuit()
        self.wake()

    def wake(self) -> None:
        """Look again: something arrived or changed."""
        self._wake.set()

    async def run(self) -> None:
        """Go round until cancelled."""
        while True:
            self._wake.clear()
            now = self._clock()
            self._health.looked()
            until = self._start_due(now)
            timer = asyncio.get_running_loop().call_at(min(until, now + ROUND_SECONDS), self._wake.set)
            await self._wake.wait()
            timer.cancel()

    def _start_due(self, now: float) -> float:
        """Start what is due as far as permits go; returns when to look again."""
        if not self._leased():
            return math.inf
        while True:
            permitted_at = self._permitted_at(now)
            if permitted_at > now:
                return permitted_at
            batch = self._grouper.take(now)
            if batch is None:
                self._look_ahead(now)
                deadline = self._grouper.deadline()
                return math.inf if deadline is None else deadline
            # From here on it writes: what a look ahead answers now may be older than what it has written.
            self._looking.pop(batch.conversation_id, None)
            action = self._delivery.action(batch)
            if action is Action.SPLIT:
                self._carry_on(batch, self._delivery.split_guilty(batch), now)
                continue
            if batch.began_at is None:
                self._metrics.counter("batches_total", batch.flush_reason).inc()
                self._batch_items.observe(len(batch.events))
                self._batch_wait.observe(batch.waited_seconds)
                if self._tracing is not None:
                    batch.trace = self._tracing.begin(batch, now)
            self._run(self._work(batch, action, self._begin(batch, action, now)))

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._finished)

    def _look_ahead(self, now: float) -> None:
        """Use the window that cold conversations wait for: what has to be read before they are written to is read now.

        Nothing rests on it. Batches that are due go first, and one whose answer is not there yet asks for itself.
        """
        begun = self._grouper.begun
        while begun and not self._circuit.is_open and self._permitted_at(now) <= now:
            if len(self._looking) >= LOOKING_SHARE * self._limiter.concurrency_limit:
                return
            lane = begun.popleft()
            partition, conversation_id = lane.partition, lane.conversation_id
            waits = partition.alive and not partition.draining and lane.state is LaneState.WAITING and not lane.parts
            if waits and self._delivery.wants_cursor(conversation_id) and conversation_id not in self._looking:
                self._looking[conversation_id] = lane
                self._limiter.started(now)
                self._run(self._look(lane, now))

    async def _look(self, lane: Lane, started_at: float) -> None:
        """Read the cursor of a lane that waits, if that is done before its window ends."""
        conversation_id = lane.conversation_id
        signal = Signal.NEUTRAL
        try:
            async with asyncio.timeout(self._window_seconds):
                answer = await self._conversations.list_items(conversation_id, limit=1, newest_first=True)
            now = self._clock()
            items = (answer.items or ()) if isinstance(answer, Answered) else ()
            verdict = judge(answer, len(items), self._overrides)
            # Of a partition that was lost others write to it, and a batch that was taken has asked for itself.
            if self._looking.get(conversation_id) is lane and lane.partition.alive:
                self._delivery.looked_ahead(conversation_id, verdict, items)
            self._count(Action.READ_CURSOR, verdict, Result(), now - started_at)
            signal = _signal(verdict)
            if verdict.retry_after_seconds is not None:
                self._limiter.hold_until(now + verdict.retry_after_seconds)
        except TimeoutError:
            pass  # its batch is due, and asks in its own time
        except Exception as error:  # fenced as a delivery's is: the batch's own read will meet it too
            log.exception("looking ahead failed unforeseen", extra={"error": type(error).__name__})
        finally:
            self._limiter.finished(self._clock(), started_at=started_at, signal=signal)
            if self._looking.get(conversation_id) is lane:
                del self._looking[conversation_id]
            self._wake.set()

    def _begin(self, batch: Batch, action: Action, now: float) -> int:
        """Count a request before its task runs: what is known of the conversation may be forgotten by then."""
        self._delivery.began(batch, action, now)
        self._limiter.started(now)
        self._sending_bytes += batch.item_bytes
        return self._circuit.started(now)

    def _permitted_at(self, now: float) -> float:
        """The earliest time an attempt may start."""
        circuit = self._circuit
        if circuit.is_open:
            # Probes are few, and wait for no slot: those who hold them may be waiting for a host that says nothing.
            return max(circuit.next_attempt(now), self._limiter.due)
        if self._sending_bytes >= self._max_sending_bytes:
            return math.inf
        return self._limiter.next_start(now)

    def _leased(self) -> bool:
        """Whether the partitions are surely ours still; told once when that keeps something from being sent."""
        if self._lease():
            self._lease_missed = False
            return True
        if not self._lease_missed and self._grouper.deadline() is not None:
            self._lease_missed = True
            log.warning("the group may have given the partitions to others: nothing is sent until it answers")
        return False

    async def _work(self, batch: Batch, action: Action, probe: int) -> None:
        """Make one request for a batch, and those that follow from its answer at once."""
        while (result := await self._step(batch, action, probe)) is not None:
            # In the same task: a cursor that was just read need not find its lane again.
            now = self._clock()
            action = self._delivery.action(batch)
            if action is Action.SPLIT or not self._leased() or self._permitted_at(now) > now:
                self._carry_on(batch, result, now)
                return
            probe = self._begin(batch, action, now)

    async def _step(self, batch: Batch, action: Action, probe: int) -> Result | None:
        """Make one request and carry out what follows; where that is the next request, return what says so."""
        signal = Signal.NEUTRAL
        started_at = self._clock()
        permitted = True
        try:
            still = None
            if action is Action.SEND and self._journal is not None:
                still = await self._journal.before_attempt(batch)
                if still is None:
                    self._grouper.done(batch, self._clock())
                    return None
            # Not sooner: what is absent so long after an attempt began is taken never to come.
            started_at = self._clock()
            result, signal = await self._attempt(batch, action, still, started_at)
            now = self._clock()
            if result.outcomes and self._journal is not None:
                # The API is done with it: how long a record takes is no latency of its.
                self._limiter.finished(now, started_at=started_at, signal=signal)
                permitted = False
                self._wake.set()
                # Where that fails the partition is lost, and nothing is carried on.
                await self._journal.after_outcome(batch, result.outcomes)
                now = self._clock()
            partition = batch.lane.partition
            goes_on = partition.alive and (batch.unsettled or not partition.draining)
            if goes_on and result.again_at == AT_ONCE and not result.outcomes:
                return result
            self._carry_on(batch, result, now)
            return None
        finally:
            now = self._clock()
            self._sending_bytes -= batch.item_bytes
            if permitted:
                self._limiter.finished(now, started_at=started_at, signal=signal)
            self._circuit.ended(now, probe)
            self._watch_circuit()
            if batch.lane.partition.draining:
                self._drained.set()
            self._wake.set()

    async def _attempt(
        self, batch: Batch, action: Action, still: Callable[[], bool] | None, started_at: float
    ) -> tuple[Result, Signal]:
        """Make the request and judge its answer; returns what follows, and what it says of the load."""
        trace: AttemptTrace | None = None if batch.trace is None else batch.trace.attempt(action)
        try:
            answer = await self._request(batch, action, still)
            now = self._clock()
            verdict = judge(answer, self._expected(batch, action, answer), self._overrides)
            result = Result()
            # An answer that comes after its partition was lost is its next owner's to find out.
            if batch.lane.partition.alive:
                result = self._decide(batch, action, answer, verdict, started_at, now)
                result = self._delivery.guard(batch, result, now)
        except Exception as error:  # one delivery's bug is fenced: it ends in dead letters, the others go on
            log.exception("a delivery failed unforeseen", extra={"error": type(error).__name__})
            if trace is not None:
                trace.failed(error)
            # Nobody knows what is stored: behind the old cursor the next message in the same words would be found.
            self._delivery.cursors.forget(batch.conversation_id)
            return _internal_error(batch, error), Signal.NEUTRAL
        if trace is not None:
            trace.answered(verdict)
        self._count(action, verdict, result, now - started_at)
        if verdict.retry_after_seconds is not None:
            self._limiter.hold_until(now + verdict.retry_after_seconds)
        return result, _signal(verdict)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fatal(error)

    def _watch_circuit(self) -> None:
        """Tell people, and the intake, when the circuit opens, closes or changes its reason."""
        reason = self._circuit.reason
        if reason is self._circuit_reason:
            return
        for changed, state in ((self._circuit_reason, 0), (reason, 1)):
            if changed is not None:
                self._metrics.gauge("circuit_state", changed).set(state)
                if changed is CircuitReason.FLOOD_GUARD:
                    self._metrics.gauge("flood_guard_state").set(state)
        if reason is None:
            log.warning("circuit closed, consumption goes on", extra={"was": self._circuit_reason})
            self._abandon_silent_reads()
        else:
            log.error("circuit open, consumption pauses", extra={"reason": reason, "detail": self._circuit.detail})
        self._circuit_reason = reason
        self._circuit_changed()

    def _abandon_silent_reads(self) -> None:
        """Ask anew what the host, working again, has left unanswered for long: that answer may never come."""
        now = self._clock()
        for began, reading in self._reading.values():
            if now - began >= SILENT_READ_SECONDS:
                reading.reschedule(now)

    async def _request(self, batch: Batch, action: Action, still: Callable[[], bool] | None) -> Answer:
        conversation_id = batch.conversation_id
        if action is Action.SEND:
            partition = batch.lane.partition

            def wanted() -> bool:
                return partition.alive and self._lease() and (still is None or still())

            items = [event.item for event in batch.events]
            return await self._conversations.create_items(conversation_id, items, still=wanted)
        try:
            async with asyncio.timeout(None) as reading:
                self._reading[batch] = self._clock(), reading
                return await self._read(batch, conversation_id)
        except TimeoutError:
            return Unanswered(Fate.NOT_SENT, WITHDRAWN, "read anew")
        finally:
            del self._reading[batch]

    async def _read(self, batch: Batch, conversation_id: str) -> Answer:
        unsettled = batch.unsettled
        if unsettled is None:
            return await self._conversations.list_items(conversation_id, limit=1, newest_first=True)
        if unsettled.after is None:
            return await self._conversations.list_newest(conversation_id, 2 * len(batch.events))
        return await self._conversations.list_all_items(conversation_id, after=unsettled.after)

    @staticmethod
    def _expected(batch: Batch, action: Action, answer: Answer) -> int:
        """How many items a good answer lists: those sent, or as many as there are."""
        if action is not Action.SEND and isinstance(answer, Answered) and answer.items is not None:
            return len(answer.items)
        return len(batch.events)

    def _decide(
        self, batch: Batch, action: Action, answer: Answer, verdict: Verdict, started_at: float, now: float
    ) -> Result:
        if isinstance(answer, Unanswered) and answer.code == WITHDRAWN:
            return Result(again_at=now)
        items = (answer.items or ()) if isinstance(answer, Answered) else ()
        if action is Action.SEND:
            last_id = answer.last_id if isinstance(answer, Answered) else ""
            return self._delivery.sent(batch, verdict, items, last_id, started_at=started_at, now=now)
        if action is Action.READ_CURSOR:
            return self._delivery.cursor_read(batch, verdict, items, now)
        return self._delivery.read_back(batch, verdict, items, started_at=started_at, now=now)

    def _carry_on(self, batch: Batch, result: Result, now: float) -> None:
        """Hand outcomes over to be stored, and the rest of the batch back to its lane."""
        if not batch.lane.partition.alive:
            # Its partition was lost meanwhile: what came of it is its next owner's to say.
            self._grouper.done(batch, now)
            if batch.trace is not None:
                batch.trace.lost()
            return
        self._conclude(batch.lane.partition, result.outcomes, batch.trace)
        if result.again_at is not None:
            self._grouper.again(batch, result.again_at)
        elif result.parts:
            self._grouper.split(batch, result.parts, now)
        else:
            self._grouper.done(batch, now)

    # Outcomes

    def refuse(self, partition: Partition, refusal: Refusal) -> None:
        """Dead-letter a record that is no event."""
        partition.watermark.received(refusal.offset)
        partition.unstored += 1
        # It waits in memory as an event does, until its dead letter is stored.
        size = codec.size_of(refusal.source)
        partition.buffered_events += 1
        partition.buffered_bytes += size
        dead = Dead(Reason.INVALID_EVENT, "invalid_event", refusal.message)

        def stored() -> None:
            partition.watermark.settle(refusal.offset)
            partition.buffered_events -= 1
            partition.buffered_bytes -= size
            self._stored(partition, 1)

        self._dead_letter(refusal.source, dead, stored)
        if self._invalid_floods:
            # Without a key that could be told apart, the partition stands for the conversation.
            key = refusal.source.key or b"%d" % partition.number
            self._delivery.refused_record(key.decode("utf-8", "replace"), self._clock())
            self._watch_circuit()

    def repeat(self, partition: Partition, event: Event, settled: Settled) -> None:
        """Say again what became of an event that an earlier owner settled: it may not have come to say it."""
        if settled.dead is not None:
            outcome: Outcome = DeadLettered([event], settled.dead)
        else:
            item = b'{"id":%b,"status":"completed",%b' % (
                codec.json_text(settled.item_id),
                bytes(event.item)[1:].lstrip(),
            )
            outcome = Delivered([event], [item], settled.batch_size, settled.index, settled.attempts, read_back=False)
        self._conclude(partition, [outcome])

    def _conclude(self, partition: Partition, outcomes: Sequence[Outcome], trace: BatchTrace | None = None) -> None:
        for outcome in outcomes:
            partition.unstored += len(outcome.events)
            if isinstance(outcome, Delivered):
                self._reply(partition, outcome, trace)
            else:
                self._give_up(partition, outcome, trace)

    def _reply(self, partition: Partition, outcome: Delivered, trace: BatchTrace | None) -> None:
        events = outcome.events
        wall_clock = time.time()
        self._delivered.inc(len(events))
        if outcome.read_back:
            self._metrics.counter("duplicates_prevented_total").inc(len(events))
        self._lateness.observe(max(0.0, wall_clock - events[0].timestamp / 1000))
        key = events[0].conversation_id.encode()
        write: _Write = partial(codec.replies, outcome, self._kafka.events_topic, wall_clock)
        told = None
        if trace is not None:
            sending = trace.outcome(outcome, events, self._kafka.reply_topic)
            told = sending.stored
            traced = list(write(0, len(events)))
            for event, (_, headers) in zip(events, traced, strict=True):
                sending.carry(event, headers)
            write = partial(_part, traced)
        runs = self._runs(events)
        stored = self._settler(partition, events, writes=len(runs), told=told)
        for destination, start, end in runs:
            self._send(destination, Outgoing(key, end - start, _from(write, start, end), codec.make_lean, stored))

    def _runs(self, events: Sequence[Event]) -> list[tuple[Destination, int, int]]:
        """Events that follow each other and whose replies go to the same place: where, first and behind the last."""
        if not any(map(_headers_of, events)):
            return [(self._router.default, 0, len(events))]
        runs: list[tuple[Destination, int, int]] = []
        for index, event in enumerate(events):
            destination = self._router.destination(event.headers)
            if runs and runs[-1][0] == destination:
                runs[-1] = (destination, runs[-1][1], index + 1)
            else:
                runs.append((destination, index, index + 1))
        return runs

    def _send(self, destination: Destination, outgoing: Outgoing) -> None:
        partition = destination.partition
        if partition is None:
            partition = self._outlet.partition_for(destination.topic, outgoing.key)
        self._outlet.store(destination.topic, partition, outgoing)

    def _give_up(self, partition: Partition, outcome: DeadLettered, trace: BatchTrace | None) -> None:
        for event in outcome.events:
            sending = None if trace is None else trace.outcome(outcome, [event], self._kafka.dead_letter_topic)
            told = None if sending is None else sending.stored
            stored = self._settler(partition, [event], writes=2 if self._failed_replies else 1, told=told)
            self._dead_letter(event, outcome.dead, stored)
            if self._failed_replies:
                key = event.conversation_id.encode()
                value = codec.failed_reply(event, outcome.dead, self._kafka.events_topic, time.time())
                record = OutgoingRecord(key, value, codec.reply_headers(event))
                if sending is not None:
                    sending.carry(event, record.headers)
                self._send(self._router.destination(event.headers), single(record, codec.make_lean, stored))

    def _dead_letter(self, source: codec.Record, dead: Dead, stored: Callable[[], None]) -> None:
        self._metrics.counter("dead_letters_total", dead.reason).inc()
        headers = dead_letters.dead_letter_headers(
            source, dead, group=self._kafka.group_id, wall_clock=time.time(), style=self._header_style
        )
        record = OutgoingRecord(source.key, source.value, headers)
        topic = self._kafka.dead_letter_topic
        place = self._outlet.partition_for(topic, source.key)
        self._outlet.store(topic, place, single(record, dead_letters.make_lean, stored))

    def _settler(
        self, partition: Partition, events: Sequence[Event], *, writes: int = 1, told: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        """What to call when a write is stored; the last of ``writes`` settles the events, and is told if asked."""
        left = writes

        def stored() -> None:
            nonlocal left
            left -= 1
            if not left:
                partition.settle(events)
                if told is not None:
                    told()
                self._stored(partition, len(events))

        return stored

    def _stored(self, partition: Partition, count: int) -> None:
        partition.unstored -= count
        self._health.progressed()
        if partition.draining:
            self._drained.set()

    # The end

    async def drain(self, partitions: Sequence[Partition]) -> None:
        """Wait until nothing of ``partitions`` is under way or unstored, or the budget is used up."""
        deadline = self._clock() + self._drain_seconds - min(DRAIN_MARGIN_SECONDS, self._drain_seconds / 4)
        self._wake.set()
        while any(partition.alive and (partition.busy or partition.unstored) for partition in partitions):
            left = deadline - self._clock()
            if left <= 0:
                log.warning("drain budget used up; what is in flight will be read again")
                return
            self._drained.clear()
            timer = asyncio.get_running_loop().call_later(left, self._drained.set)
            await self._drained.wait()
            timer.cancel()

    async def stop(self) -> None:
        """End the attempts that a drain left behind."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _count(self, action: Action, verdict: Verdict, result: Result, seconds: float) -> None:
        metrics = self._metrics
        code = str(verdict.status) if verdict.status is not None else verdict.code
        metrics.counter("attempts_total", action, code, verdict.kind).inc()
        metrics.histogram("attempt_duration_seconds", action).observe(seconds)
        if result.again_at not in {None, AT_ONCE} and verdict.kind is not Kind.DELIVERED:
            metrics.counter("retries_total", verdict.kind).inc()
        if action is Action.READ_BACK:
            if verdict.kind is not Kind.DELIVERED:
                shown = "failed"
            elif result.again_at is not None:
                shown = "too_early"
            elif not any(isinstance(outcome, Delivered) for outcome in result.outcomes):
                shown = "absent"
            else:
                shown = "prefix" if result.parts else "found"
            metrics.counter("readbacks_total", shown).inc()


def _part(replies: Sequence[codec.Reply], start: int, end: int) -> Sequence[codec.Reply]:
    return replies[start:end]


def _from(write: _Write, start: int, end: int) -> Callable[[int], Iterable[codec.Reply]]:
    """What writes the replies ``[start, end)``, those left out that are done."""
    return lambda done: write(start + done, end)


def _internal_error(batch: Batch, error: Exception) -> Result:
    batch.unsettled = None
    dead = Dead(Reason.INTERNAL_ERROR, type(error).__name__, attempts=batch.attempts, fate="unknown")
    return Result([DeadLettered(batch.events, dead)])


def _signal(verdict: Verdict) -> Signal:
    """What an answer says about load."""
    if verdict.code == WITHDRAWN:
        return Signal.NEUTRAL
    if verdict.kind is Kind.DELIVERED:
        return Signal.OK
    if verdict.kind is Kind.THROTTLED:
        return Signal.THROTTLED
    if verdict.kind in {Kind.AMBIGUOUS, Kind.TRANSIENT} and verdict.code != "unexpected_answer":
        return Signal.OVERLOADED
    return Signal.NEUTRAL
