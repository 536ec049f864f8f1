"""Schedules: what happens to whom and when, all of it drawn from a seed, and what is said of the end.

A run goes through trouble until the sky clears, then on until everything is settled and committed. It is judged by
the project's own audit, and by the tags of the items, which tell copies apart even where texts repeat.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from model.process import SimulatedProcess
from model.virtual_time import Life, VirtualLoop
from model.world import CONNECT_SECONDS, DEAD_LETTERS, EVENTS, LEDGER, POISON, REPLIES, TOTAL_SECONDS, Weather, World

from service.audit import HeldItem, Place, PublishedEvent, SeenDeadLetter, SeenReply, audit
from service.settings import (
    ApiSettings,
    BatchSettings,
    DeliverySettings,
    KafkaSettings,
    Settings,
    ShutdownSettings,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.audit import Report

    Trouble = Callable[["Run", random.Random, SimulatedProcess], None]

CLEARS_AT = 40.0
PATIENCE_SECONDS = 600.0
"""Within so long after the sky has cleared everything must be committed."""
WORDS = ("ok", "yes", "thanks")


def settings_of(*, max_items: int = 3, window_seconds: float = 0.1, **delivery: Any) -> Settings:
    """Settings in which nothing takes long."""
    return Settings(
        _env_file=None,
        kafka=KafkaSettings(
            events_topic=EVENTS,
            reply_topic=REPLIES,
            dead_letter_topic=DEAD_LETTERS,
            ledger_topic=LEDGER,
            session_timeout_seconds=6,
            heartbeat_seconds=1,
            rebalance_timeout_seconds=7,
        ),
        api=ApiSettings(
            base_url="http://api.test", total_timeout_seconds=TOTAL_SECONDS, connect_timeout_seconds=CONNECT_SECONDS
        ),
        batch=BatchSettings(max_items=max_items, window_seconds=window_seconds),
        delivery=DeliverySettings(backoff_initial_seconds=0.1, backoff_max_seconds=2, **delivery),
        shutdown=ShutdownSettings(drain_seconds=5),
    )


@dataclass
class Run:
    """One run: a world, the processes in it, and what became of everything."""

    seed: int
    partitions: int = 1
    settings: Settings = field(default_factory=settings_of)
    known_conversations: int = 1000
    leased: bool = True

    def __post_init__(self) -> None:
        self.chances = random.Random(self.seed)
        self.loop = VirtualLoop()
        self.world = World(self.loop, self.chances, self.partitions)
        self.processes: list[SimulatedProcess] = []

    def start(self) -> SimulatedProcess:
        """Start one process more."""
        life = Life(f"P{len(self.processes)}", self.loop)
        process = SimulatedProcess(
            self.world, self.settings, life, known_conversations=self.known_conversations, leased=self.leased
        )
        self.processes.append(process)
        process.start()
        return process

    def kill(self, process: SimulatedProcess) -> None:
        if not process.life.ended:
            self.world.tell(f"{process.life.name} is killed at step {process.life.steps}")
            process.life.end()

    def pause(self, process: SimulatedProcess, seconds: float) -> None:
        life = process.life
        if not life.ended and not life.stopped:
            self.world.tell(f"{life.name} is stopped for {seconds:.1f} s")
            life.stop()
            self.world.later(seconds, self._wake, life)

    def _wake(self, life: Life) -> None:
        if not life.ended:
            self.world.tell(f"{life.name} wakes")
        life.wake()

    @property
    def living(self) -> list[SimulatedProcess]:
        return [process for process in self.processes if not process.life.ended and not process.left]

    def go(self, until: Callable[[], bool], within_seconds: float) -> bool:
        """Let time pass until something is so; false when it never was."""

        async def watch() -> bool:
            end = self.loop.time() + within_seconds
            while not until():
                if self.loop.time() >= end or any(process.errors for process in self.processes):
                    return False
                await asyncio.sleep(0.5)
            return True

        return self.loop.run_until_complete(watch())

    def settled(self) -> bool:
        """Whether everything published is committed."""
        return all(self.world.committed.get(number, (0,))[0] >= len(log) for number, log in self.world.events.items())

    def finish(self) -> Verdict:
        """Clear the sky, let everything settle, and judge."""
        self.world.weather = Weather()
        self.world.next_fates.clear()
        if not self.living:
            self.start()
        done = self.go(self.settled, PATIENCE_SECONDS)
        self.go(lambda: not self.world.landing, PATIENCE_SECONDS)
        verdict = judge(self, done=done)
        self.loop.close()
        return verdict


@dataclass
class Verdict:
    """What the end of a run shows."""

    report: Report
    done: bool
    lost: list[str]
    doubled: list[str]
    reordered: list[str]
    dead_and_stored: list[str]
    errors: list[str]
    counts: Counter[tuple[str, ...]]

    @property
    def sound(self) -> bool:
        return self.done and self.report.content and not self.complaints()

    def complaints(self) -> list[str]:
        """What is wrong, a line each."""
        lines = [
            f"{name.replace('_', ' ')}: {getattr(self, name)}"
            for name in ("lost", "doubled", "reordered", "dead_and_stored", "errors")
            if getattr(self, name)
        ]
        if not self.done:
            lines.append("never done")
        if not self.report.content:
            lines += [f"audit: {name}: {found}" for name, found in self.report.lines() if not found.startswith("0")]
        return lines


def judge(run: Run, *, done: bool) -> Verdict:
    world = run.world
    dead = {letter.place for letter in _dead_letters(world)}
    copies: Counter[str] = Counter()
    newest: dict[str, int] = {}
    reordered = []
    for conversation_id, items in world.conversations.items():
        for item in items:
            if not item.tag:
                continue
            copies[item.tag] += 1
            number, offset = map(int, item.tag.split("-"))
            lane = f"{conversation_id} {number}"
            if copies[item.tag] == 1 and newest.get(lane, -1) > offset:
                reordered.append(item.tag)
            newest[lane] = max(newest.get(lane, -1), offset)
    published = _published(world)
    tags = {f"{event.place.partition}-{event.place.offset}": event.place for event in published}
    counts: Counter[tuple[str, ...]] = Counter()
    for process in run.processes:
        counts.update(process.noted.counts)
    return Verdict(
        audit(
            published,
            {
                conversation_id: [HeldItem(item.id, (item.role, item.text)) for item in items if item.tag]
                for conversation_id, items in world.conversations.items()
            },
            _replies(world),
            _dead_letters(world),
            {number: position for number, (position, _) in world.committed.items()},
        ),
        done,
        lost=[tag for tag, place in tags.items() if not copies[tag] and place not in dead],
        doubled=[tag for tag, count in copies.items() if count > 1],
        reordered=reordered,
        dead_and_stored=[tag for tag, place in tags.items() if copies[tag] and place in dead],
        errors=[repr(error) for process in run.processes for error in process.errors],
        counts=counts,
    )


def _published(world: World) -> list[PublishedEvent]:
    events = []
    for record in itertools.chain.from_iterable(world.events.values()):
        if record is None or record.value is None:
            continue
        place = Place(record.partition, record.offset)
        try:
            value = json.loads(record.value)
        except json.JSONDecodeError:
            events.append(PublishedEvent(place, None))
        else:
            content = (value["item"]["role"], value["item"]["content"])
            events.append(PublishedEvent(place, value["conversation_id"], content))
    return events


def _replies(world: World) -> list[SeenReply]:
    replies = []
    for output in world.outputs[REPLIES]:
        value = json.loads(output.value or b"")
        place = Place(value["source"]["partition"], value["source"]["offset"])
        item = value.get("item") or {}
        replies.append(SeenReply(place, value["conversation_id"], value["status"], item.get("id", "")))
    return replies


def _dead_letters(world: World) -> list[SeenDeadLetter]:
    letters = []
    for output in world.outputs[DEAD_LETTERS]:
        headers = {name: (value or b"").decode() for name, value in output.headers}
        place = Place(int(headers["dlq.original.partition"]), int(headers["dlq.original.offset"]))
        letters.append(SeenDeadLetter(place, headers["dlq.reason"]))
    return letters


# Drawn from a seed


def draw_weather(chances: random.Random, *, beyond: bool) -> Weather:
    """A few kinds of trouble at a time; what the contract leaves open only where ``beyond``."""
    weather = Weather()
    kinds = [
        entry.name for entry in fields(Weather) if entry.name not in {"too_late", "same_words", "other_writers", "sick"}
    ]
    for name in chances.sample(kinds, chances.randint(0, 5)):
        setattr(weather, name, chances.choice([0.02, 0.1, 0.3]))
    if chances.random() < 0.3:
        weather.other_writers = chances.choice([0.1, 0.5])
    if chances.random() < 0.15:
        weather.sick = 0.9
    if beyond:
        weather.too_late = 0.1
        weather.same_words = chances.choice([0.0, 0.3])
    return weather


def draw(seed: int, *, beyond: bool = False) -> Run:
    """A run with everything drawn from ``seed``, up to where the sky clears."""
    chances = random.Random(f"schedule {seed}")
    settings = settings_of(
        max_items=chances.randint(1, 4),
        window_seconds=chances.choice([0.0, 0.1, 0.5]),
        # Impatient, so that some are given up: what failed while others got through is not much here.
        max_attempts=chances.choice([1, 1, 8]),
        max_age_seconds=chances.choice([0.1, 0.1, 900]),
        start_concurrency=chances.choice([1, 2, 32]),
    )
    run = Run(
        seed,
        partitions=chances.choice([1, 1, 2, 3]),
        settings=settings,
        known_conversations=chances.choice([0, 1, 2, 1000, 1000, 1000]),
        leased=chances.random() < 0.3,
    )
    world = run.world
    world.weather = draw_weather(chances, beyond=beyond)
    world.keeps_prefix = chances.random() < 0.5
    world.names_culprit = chances.random() < 0.3
    world.broker_time = chances.random() < 0.9
    _publish(run, chances)
    for _ in range(chances.choice([1, 1, 2, 3])):
        world.later(chances.choice([0.0, chances.uniform(0, 10)]), run.start)
    _trouble(run, chances)
    world.later(0.0, world.watch_group)
    return run


def _publish(run: Run, chances: random.Random) -> None:
    world = run.world
    repeats = chances.random() < 0.4
    poisoned = chances.choice([0.0, 0.0, 0.1, 0.3])
    lanes: dict[int, list[str]] = defaultdict(list)
    for index in range(chances.randint(1, 4)):
        lanes[index % run.partitions].append(f"conv_{index}")

    def publish(number: int, conversation_id: str, text: str) -> None:
        kind = chances.random()
        if kind < 0.1:
            # Compacted away, or a transaction's marker.
            world.events[number].append(None)
        elif kind < 0.14:
            world.add_record(number, conversation_id, None)
        elif kind < 0.18:
            world.add_record(number, conversation_id, b"no event")
        world.publish(number, conversation_id, text)

    early = chances.random() < 0.5
    for index in range(chances.randint(4, 24)):
        number = chances.choice(sorted(lanes))
        conversation_id = chances.choice(lanes[number])
        text = chances.choice(WORDS) if repeats else f"message {index}"
        if chances.random() < poisoned:
            text = f"{text} {POISON}"
        at = 0.0 if early else chances.uniform(0, CLEARS_AT * 0.7)
        world.later(at, publish, number, conversation_id, text)


def _trouble(run: Run, chances: random.Random) -> None:
    for _ in range(chances.randint(0, 5)):
        what = chances.choice([_kill, _kill, _kill, _pause, _pause, _replace, _join])
        run.world.later(chances.uniform(0, CLEARS_AT * 0.8), _to_someone, run, chances, what)


def _to_someone(run: Run, chances: random.Random, what: Trouble) -> None:
    if run.living:
        what(run, chances, chances.choice(run.living))


def _at_a_step(process: SimulatedProcess, chances: random.Random, then: Callable[[], None]) -> None:
    """Not at a moment only, which is mostly one of waiting, but between two steps."""
    process.life.at_step[process.life.steps + int(chances.expovariate(1 / 60))] = then


def _kill(run: Run, chances: random.Random, process: SimulatedProcess) -> None:
    def killed() -> None:
        run.kill(process)
        run.world.later(chances.choice([0.1, 2.0, 10.0]), run.start)

    _at_a_step(process, chances, killed)


def _pause(run: Run, chances: random.Random, process: SimulatedProcess) -> None:
    seconds = chances.choice([1.0, 3.0, 8.0, 20.0])
    _at_a_step(process, chances, lambda: run.pause(process, seconds))


def _replace(run: Run, chances: random.Random, process: SimulatedProcess) -> None:
    process.stop()
    run.world.later(chances.choice([0.1, 5.0]), run.start)


def _join(run: Run, chances: random.Random, process: SimulatedProcess) -> None:
    if len(run.living) < 3:
        run.start()


def play(seed: int, *, beyond: bool = False) -> tuple[Run, Verdict]:
    """Draw a run and play it to its end."""
    run = draw(seed, beyond=beyond)
    run.go(lambda: False, CLEARS_AT)
    return run, run.finish()
