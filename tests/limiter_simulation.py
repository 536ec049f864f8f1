"""A model of the API in virtual time, to see what the limiter makes of it.

One run is a discrete-event simulation: replicas, each with its own limiter, send to one API that throttles by
rate, by concurrency, or at random, and whose temper changes over time. Everything is read from a TOML file
(``tests/unit/limiter/*.toml``, one behaviour each); nothing sleeps, so a minute takes a fraction of a second.

A file holds::

    description                 what must be seen, in a sentence
    seconds, replicas, seed     how long, how many, and the dice
    timer_seconds               how late the pump's timer may be
    [limiter]                   the limiter's arguments
    [[api]]   at = seconds      the API from then on: latency, refusal_seconds, rate, concurrency, shares
    [[load]]  at = seconds      attempts offered a second and replica from then on; absent: always more than enough
    [[expect]] from, to         what must hold between these seconds (see Expectation)
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from service.core.limiter import Limiter, Signal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a second: a token bucket that holds ``burst``, or a counter that starts anew each second."""

    per_second: float
    burst: float = 1
    kind: Literal["bucket", "window"] = "bucket"


@dataclass(frozen=True, slots=True)
class Api:
    """The API's temper from ``at`` on."""

    at: float = 0.0
    latency_seconds: float = 0.05
    latency: Literal["constant", "uniform", "exponential", "lognormal"] = "uniform"
    refusal_seconds: float = 0.01
    rate: Rate | None = None
    rate_at_end: float | None = None
    """Where the rate has slid to when the next phase (or the end) comes; None: it stays."""
    concurrency: float = math.inf
    throttled_share: float = 0.0
    overloaded_share: float = 0.0
    retry_after_seconds: float = 0.0

    def service_seconds(self, dice: random.Random) -> float:
        """How long one accepted attempt takes."""
        mean = self.latency_seconds
        match self.latency:
            case "constant":
                return mean
            case "uniform":
                return mean * dice.uniform(0.7, 1.3)
            case "exponential":
                return mean * dice.expovariate(1)
            case "lognormal":
                return mean * dice.lognormvariate(-0.245, 0.7)


@dataclass(frozen=True, slots=True)
class Load:
    """Attempts offered a second and replica from ``at`` on; ``per_second`` infinite: a backlog without end."""

    at: float = 0.0
    per_second: float = math.inf


@dataclass(frozen=True, slots=True)
class Expectation:
    """What must hold of the attempts that start in [from, to). Rates are a second."""

    from_seconds: float
    to_seconds: float
    goodput_at_least: float = 0.0
    goodput_at_most: float = math.inf
    starts_at_most: float = math.inf
    throttled_at_most: float = 1.0
    """Share of the attempts."""
    used_at_least: float = 0.0
    """Attempts in service at the API, on average."""
    replica_share_at_least: float = 0.0
    """The goodput of the least served replica, as a share of all."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One file."""

    name: str
    description: str
    seconds: float
    limiter: dict[str, Any]
    api: list[Api]
    load: list[Load]
    expect: list[Expectation]
    replicas: int = 1
    replica_delay_seconds: float = 0.0
    seed: int = 1
    timer_seconds: float = 0.0

    @classmethod
    def read(cls, path: Path) -> Scenario:
        """Read one file; an unknown key is an error."""
        raw = tomllib.loads(path.read_text())
        phases = [
            Api(**{**phase, "rate": Rate(**phase["rate"]) if "rate" in phase else None}) for phase in raw.pop("api")
        ]
        load = [Load(**entry) for entry in raw.pop("load", [{}])]
        expect = [
            Expectation(from_seconds=entry.pop("from"), to_seconds=entry.pop("to"), **entry)
            for entry in raw.pop("expect")
        ]
        return cls(name=path.stem, api=phases, load=load, expect=expect, limiter=raw.pop("limiter", {}), **raw)


@dataclass(slots=True)
class Attempt:
    """What became of one attempt."""

    replica: int
    started_at: float
    finished_at: float
    signal: Signal


@dataclass(slots=True)
class _Server:
    """The API: one for all replicas."""

    scenario: Scenario
    dice: random.Random
    phase: Api = field(init=False)
    in_service: int = 0
    _tokens: float = 0.0
    _tokens_at: float = 0.0
    _window: int = -1
    _in_window: int = 0
    _started: bool = False

    def __post_init__(self) -> None:
        self.phase = self.scenario.api[0]
        self._tokens = self.phase.rate.burst if self.phase.rate else 0.0

    def rate_now(self, now: float) -> float:
        """The rate that holds now, slid or not."""
        phase = self.phase
        assert phase.rate
        if phase.rate_at_end is None:
            return phase.rate.per_second
        later = (entry.at for entry in self.scenario.api if entry.at > phase.at)
        share = (now - phase.at) / (next(later, self.scenario.seconds) - phase.at)
        return phase.rate.per_second + share * (phase.rate_at_end - phase.rate.per_second)

    def _within_rate(self, now: float) -> bool:
        rate = self.phase.rate
        if rate is None:
            return True
        per_second = self.rate_now(now)
        if rate.kind == "window":
            if int(now) != self._window:
                self._window, self._in_window = int(now), 0
            self._in_window += 1
            return self._in_window <= per_second
        self._tokens = min(rate.burst, self._tokens + (now - self._tokens_at) * per_second)
        self._tokens_at = now
        if self._tokens < 1 - 1e-9:
            return False
        self._tokens -= 1
        return True

    def receive(self, now: float) -> tuple[Signal, float]:
        """Judge one attempt: the signal, and after how many seconds the answer comes."""
        phase = self.phase
        fate = self.dice.random()
        if fate < phase.throttled_share or self.in_service >= phase.concurrency or not self._within_rate(now):
            return Signal.THROTTLED, phase.refusal_seconds
        seconds = phase.service_seconds(self.dice)
        if fate < phase.throttled_share + phase.overloaded_share:
            return Signal.OVERLOADED, seconds
        return Signal.OK, seconds


class Simulation:
    """Runs one scenario; afterwards ``attempts`` and ``limiters`` tell what happened."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.attempts: list[Attempt] = []
        arguments = {"start_concurrency": 32, "max_concurrency": 256} | scenario.limiter
        self.limiters = [Limiter(**arguments) for _ in range(scenario.replicas)]
        self.paces: list[tuple[float, int, int, float | None]] = []
        """Once every virtual second: time, replica, concurrency limit, pace."""
        self._dice = random.Random(scenario.seed)
        self._server = _Server(scenario, self._dice)
        self._load = [scenario.load[0]] * scenario.replicas
        self._waiting = [0] * scenario.replicas
        self._wakes = [math.inf] * scenario.replicas
        self._order = itertools.count()
        self._events: list[tuple[float, int, str, Any]] = []

    def run(self) -> Simulation:  # noqa: C901 - one event loop
        """Run to the end."""
        scenario = self.scenario
        for phase in scenario.api:
            self._at(phase.at, "api", phase)
        for replica in range(scenario.replicas):
            delay = replica * scenario.replica_delay_seconds
            for load in scenario.load:
                self._at(load.at + delay, "load", (replica, load))
        for second in range(int(scenario.seconds)):
            self._at(second, "look", None)
        for now, kind, what in self._due():
            match kind:
                case "api":
                    self._server.phase = what
                case "load":
                    self._offer(now, *what)
                case "arrival":
                    self._arrive(now, *what)
                case "answer":
                    self._answer(now, what)
                case "wake":
                    if self._wakes[what] <= now:
                        self._wakes[what] = math.inf
                        self._pump(now, what)
                case "look":
                    self.paces.extend(
                        (now, at, each.concurrency_limit, each.pace) for at, each in enumerate(self.limiters)
                    )
        return self

    def _at(self, at: float, kind: str, what: Any) -> None:
        heapq.heappush(self._events, (at, next(self._order), kind, what))

    def _due(self) -> Iterator[tuple[float, str, Any]]:
        while self._events and self._events[0][0] < self.scenario.seconds:
            at, _, kind, what = heapq.heappop(self._events)
            yield at, kind, what

    def _offer(self, now: float, replica: int, load: Load) -> None:
        self._load[replica] = load
        if math.isinf(load.per_second):
            self._waiting[replica] = 1 << 60
        else:
            self._waiting[replica] = 0
            self._arrive(now, replica, load)
        self._pump(now, replica)

    def _arrive(self, now: float, replica: int, load: Load) -> None:
        if self._load[replica] is load and load.per_second > 0:
            self._waiting[replica] += 1
            self._at(now + self._dice.expovariate(load.per_second), "arrival", (replica, load))
            self._pump(now, replica)

    def _answer(self, now: float, attempt: Attempt) -> None:
        limiter = self.limiters[attempt.replica]
        self.attempts.append(attempt)
        if attempt.signal is Signal.THROTTLED:
            if self._server.phase.retry_after_seconds:
                limiter.hold_until(now + self._server.phase.retry_after_seconds)
        else:
            self._server.in_service -= 1
        limiter.finished(now, started_at=attempt.started_at, signal=attempt.signal)
        self._pump(now, attempt.replica)

    def _pump(self, now: float, replica: int) -> None:
        limiter = self.limiters[replica]
        while self._waiting[replica]:
            at = limiter.next_start(now)
            if at > now:
                if at + self.scenario.timer_seconds < self._wakes[replica]:
                    self._wakes[replica] = at + self._dice.random() * self.scenario.timer_seconds
                    self._at(self._wakes[replica], "wake", replica)
                return
            self._waiting[replica] -= 1
            limiter.started(now)
            signal, seconds = self._server.receive(now)
            if signal is not Signal.THROTTLED:
                self._server.in_service += 1
            self._at(now + seconds, "answer", Attempt(replica, now, now + seconds, signal))


@dataclass(frozen=True, slots=True)
class Measured:
    """What was seen between two seconds; the names are those of Expectation."""

    goodput: float
    starts: float
    throttled: float
    used: float
    replica_share: float

    @classmethod
    def of(cls, simulation: Simulation, from_seconds: float, to_seconds: float) -> Measured:
        """Measure the attempts that started in [from, to)."""
        seconds = to_seconds - from_seconds
        attempts = [a for a in simulation.attempts if from_seconds <= a.started_at < to_seconds]
        delivered = [a for a in attempts if a.signal is Signal.OK]
        throttled = sum(a.signal is Signal.THROTTLED for a in attempts)
        per_replica = [0] * simulation.scenario.replicas
        for attempt in delivered:
            per_replica[attempt.replica] += 1
        served = (a for a in attempts if a.signal is not Signal.THROTTLED)
        return cls(
            goodput=len(delivered) / seconds,
            starts=len(attempts) / seconds,
            throttled=throttled / max(1, len(attempts)),
            used=sum(a.finished_at - a.started_at for a in served) / seconds,
            replica_share=min(per_replica) / max(1, len(delivered)),
        )

    def misses(self, expected: Expectation) -> list[str]:
        """Name what was not met, in words."""
        bounds = (
            ("goodput", self.goodput, expected.goodput_at_least, expected.goodput_at_most),
            ("starts", self.starts, 0.0, expected.starts_at_most),
            ("throttled", self.throttled, 0.0, expected.throttled_at_most),
            ("used", self.used, expected.used_at_least, math.inf),
            ("replica_share", self.replica_share, expected.replica_share_at_least, 1.0),
        )
        return [
            f"{expected.from_seconds:g}-{expected.to_seconds:g} s: {name} {value:.3f} is not within [{low:g}, {high:g}]"
            for name, value, low, high in bounds
            if not low <= value <= high
        ]
