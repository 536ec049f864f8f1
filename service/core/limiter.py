"""Decides how many attempts may be in flight and how fast they may start.

It must not know what an attempt is, nor what time it is: ``now`` is an argument, seconds of a monotonic clock.

An API bears so many attempts *at once*, or so many *a second*; it tells neither, it refuses. So two bounds are
learned side by side, the window (in flight) and the pace (starts a second, evenly spaced), by one law:

- **Slow start** (RFC 9438 §4.10): each answer opens the window by one, so it doubles a round trip, until the first
  refusal. There is no pace yet.
- **Growth** in the shape of CUBIC (RFC 9438 §4.2) without its clock: a bound climbs by its distance from the level
  last found bad: fast back to it, slowly past it, then ever faster. Only a bound that is used grows, that is one
  of which the last second carried 70 %; so neither silence nor light load inflates it, and the one of the two
  that does not bind floats above the one that does.
- **One cut a round trip** (AIMD): refusals of attempts started before the last cut are its echo. What to cut is
  told by how many were in flight: more than the API has borne of late, then the window; else the pace, to just
  beneath what was accepted around the refusal.
- **Refusals that cuts do not cure are noise.** Singles that come although the pace is well below the last bad
  level say nothing about load. When most are such, single refusals are forgiven up to some 12 % of the answers;
  failures (5xx, no answer) always are, up to 20 %. That is the idea of gradient limiters and of Vector's adaptive
  concurrency, to compare with what was normal before, put into two counters.

Where a refusal costs a whole hold (``Retry-After``), probing is as much slower as the hold is long. When nothing
at all is accepted, the pace halves with each refusal down to one start a second, and slow start begins anew.
"""

from __future__ import annotations

import enum
import math


class Signal(enum.Enum):
    """What an answer says about the load the API bears."""

    OK = "ok"
    THROTTLED = "throttled"
    """429 and its kin: too many at once, or too many a second."""
    OVERLOADED = "overloaded"
    """5xx, no answer in time, a cut connection."""
    NEUTRAL = "neutral"
    """Other refusals and locks: nothing."""


_OK, _THROTTLED, _OVERLOADED = Signal.OK, Signal.THROTTLED, Signal.OVERLOADED
_CATCH_UP_SECONDS = 0.01  # timers are late by this much; what is lost by that is caught up, and no more
_LOOK_SECONDS = 0.1  # how often bounds grow
_USED = 0.7  # the share of a bound that must be carried for it to grow


class _Bound:
    """One learned limit: its value, and the level last found too high."""

    __slots__ = ("bad", "keep", "value")

    def __init__(self, value: float, *, keep: float) -> None:
        self.value = value
        self.bad = 0.0
        self.keep = keep

    @property
    def safe(self) -> bool:
        """Whether it is well below the last bad level."""
        return self.value < 0.99 * self.bad

    def grow(self, share: float, carried: float) -> None:
        """Climb by ``share`` of the distance from the bad level (and 1 % of that, to leave it), if used."""
        if carried >= _USED * self.value:
            self.value += share * (abs(self.value - self.bad) + 0.01 * self.bad)

    def cut(self, accepted: float) -> None:
        """Go just beneath ``accepted``, at most down to the half, at least to one."""
        if self.keep * accepted < self.value:
            self.bad = max(1.0, accepted)
            self.value = max(1.0, self.value / 2, self.keep * accepted)


class _Second:
    """What the last second brought: a sliding second made of two halves, the one running and the one before."""

    __slots__ = ("_before", "_began", "answered", "busy", "refused")

    def __init__(self) -> None:
        self._began = -math.inf
        self._before = (0, 0.0, 0)
        self.answered = 0
        self.busy = 0.0
        self.refused = 0

    def rates(self, now: float) -> tuple[float, float, float]:
        """Answers a second, seconds of service a second (that is: in service, on average), refusals a second."""
        passed = now - self._began
        if passed >= 1:
            stale = passed >= 2
            self._before = (0, 0.0, 0) if stale else (self.answered, self.busy, self.refused)
            self.answered, self.busy, self.refused = 0, 0.0, 0
            self._began = now if stale else self._began + 1
            passed = now - self._began
        rest = 1 - passed
        answered, busy, refused = self._before
        return self.answered + rest * answered, self.busy + rest * busy, self.refused + rest * refused


class _Peak:
    """The most in flight that was borne of late, and what became of the attempts started above it."""

    __slots__ = ("_highest", "_proof", "borne", "since", "until")

    def __init__(self) -> None:
        self.borne = 1.0
        self.since = math.inf
        """When more came to be in flight; infinite while no such time is under judgement."""
        self.until = math.inf
        self._highest = 0
        self._proof = 0

    def exceed(self, now: float, in_flight: int) -> None:
        """Note that an attempt starts while more are in flight than was borne so far."""
        if self.since > now:
            self.since, self._highest, self._proof = now, 0, 0
        self.until = math.inf
        if in_flight > self._highest:  # noqa: PLR1730 - a call a request costs more than the comparison
            self._highest = in_flight

    def accepted(self, now: float, started_at: float, latency: float) -> None:
        """Note that an attempt was accepted; a round trip later, those started above it have been judged."""
        if started_at < self.until:
            self._proof += 1
        if now - self.until >= latency or (self._proof >= 10 and now - self.since >= latency):
            if self._proof > 0:
                self.borne = self._highest
            self.since = self.until = math.inf

    def refused(self, started_at: float) -> bool:
        """Note that an attempt was refused; whether because of those in flight."""
        if not self.since <= started_at < self.until:
            return False
        self._proof -= 10
        return self._proof < 0


class Limiter:
    """Learns what the API bears from the answers it gives.

    Args:
        start_concurrency: how many attempts may be in flight before anything is known.
        max_concurrency: how many may ever be in flight.
        max_requests_per_second: a pace that is never exceeded, whatever the API bears; None: there is none.
    """

    __slots__ = (
        "_cut_at",
        "_due",
        "_fixed_interval",
        "_in_a_row",
        "_interval",
        "_latency",
        "_look_at",
        "_looked_at",
        "_max",
        "_narrowed",
        "_noise",
        "_overload",
        "_pace",
        "_peak",
        "_second",
        "_slots",
        "_slow_start",
        "_trouble",
        "_window",
        "held_until",
        "in_flight",
    )

    def __init__(
        self, *, start_concurrency: int, max_concurrency: int, max_requests_per_second: float | None = None
    ) -> None:
        self.in_flight = 0
        self.held_until = -math.inf
        self._max = max(1, max_concurrency)
        self._window = _Bound(float(max(1, min(start_concurrency, self._max))), keep=0.9)
        self._pace = _Bound(math.inf, keep=0.95)
        self._fixed_interval = 1 / max_requests_per_second if max_requests_per_second else 0.0
        self._slow_start = True
        self._narrowed = False
        self._due = -math.inf
        self._cut_at = -math.inf
        self._look_at = self._looked_at = -math.inf
        self._latency = 0.0
        self._second = _Second()
        self._peak = _Peak()
        self._in_a_row = 0  # accepted since the last refusal
        self._trouble = self._overload = 0.0  # at one: cut
        self._noise = 0.0  # share of the single refusals that cuts did not cure
        self._apply()

    @property
    def concurrency_limit(self) -> int:
        """How many attempts may be in flight now."""
        return self._slots

    @property
    def pace(self) -> float | None:
        """How many attempts may start a second; None until the API first throttles."""
        return 1 / self._interval if self._interval else None

    @property
    def due(self) -> float:
        """Earliest time another attempt may start, were there always a slot for it."""
        return self._due

    def next_start(self, now: float) -> float:  # noqa: ARG002
        """Earliest time another attempt may start: at once if that is past; infinity while every slot is taken."""
        if self.in_flight >= self._slots:
            return math.inf
        return self._due

    def started(self, now: float) -> None:
        """Count an attempt that starts now."""
        self.in_flight = in_flight = self.in_flight + 1
        peak = self._peak
        if in_flight > peak.borne:
            peak.exceed(now, in_flight)
        elif peak.since <= now < peak.until:
            peak.until = now
        if self._interval:
            earliest = now - _CATCH_UP_SECONDS
            self._due = (self._due if self._due > earliest else earliest) + self._interval  # noqa: FURB136 - as above

    def finished(self, now: float, *, started_at: float, signal: Signal) -> None:  # noqa: C901 - the control law, whole, in one place
        """Learn from the answer to an attempt that started at ``started_at``."""
        in_flight = self.in_flight
        self.in_flight = in_flight - 1 if in_flight else 0
        if signal is _THROTTLED:
            crowded = self._peak.refused(started_at)
            if started_at >= self._cut_at:
                self._refused(now, crowded=crowded)
            self._second.refused += 1
            return
        second = self._second
        second.answered += 1
        second.busy += now - started_at
        if signal is _OK:
            self._in_a_row += 1
            if started_at >= self._peak.since:
                self._peak.accepted(now, started_at, self._latency)
            if self._trouble > 0:
                self._trouble -= 1 / 100
            if self._overload > 0:
                self._overload -= 1 / 80
            if self._slow_start:
                self._double(in_flight, now - started_at)
            if now >= self._look_at:
                self._look(now)
        elif signal is _OVERLOADED and started_at >= self._cut_at:
            self._overload += 1 / 16
            if self._overload >= 1:
                self._cut(now, crowded=False)

    def hold_until(self, at: float) -> None:
        """Start nothing before ``at``: the API named a time."""
        self.held_until = max(self.held_until, at)
        self._due = max(self._due, at)

    def _apply(self) -> None:
        self._slots = int(self._window.value)
        self._interval = max(self._fixed_interval, 1 / self._pace.value)

    def _double(self, in_flight: int, latency: float) -> None:
        """Slow start: one more for each answer, of the window and (after a black-out) of the pace, if used."""
        window, pace = self._window, self._pace
        if in_flight >= window.value / 2:
            window.value = min(self._max, window.value + 1)
        if in_flight + 1 >= pace.value * latency / 2:
            pace.value += min(pace.value, 1 / max(latency, 0.001))
        self._apply()

    def _look(self, now: float) -> None:
        """Grow what is used, and forget slowly what was borne."""
        seconds = min(1.0, now - self._looked_at)
        self._looked_at = now
        self._look_at = now + _LOOK_SECONDS
        rate, busy, _ = self._second.rates(now)
        if rate:
            self._latency = busy / rate
        # Long round trips prove slowly, so they forget slowly.
        forgotten = 0.1 * seconds * min(1.0, 0.25 / max(self._latency, 0.001))
        self._peak.borne = max(1.0, busy, self._peak.borne * (1 - forgotten))
        if self._slow_start:
            return
        # Up to once a second; rarer where a probe would cost many of few requests, or a long hold.
        held = min(10.0, max(0.1, self.held_until - self._cut_at))
        share = seconds * min(1.0, rate / 25, 0.15 / held)
        self._pace.grow(share, rate)
        self._window.grow(share, busy)
        self._window.value = min(self._window.value, self._max)
        self._apply()

    def _refused(self, now: float, *, crowded: bool) -> None:
        held = self.held_until > self._cut_at
        if self._in_a_row >= 16 and self._pace.safe and not crowded and not held:
            self._noise += (1 - self._noise) / 6
        self._trouble += 1 / 8 if self._noise > 0.8 else 1
        if self._trouble >= 1:
            self._cut(now, crowded=crowded)
        self._in_a_row = 0

    def _cut(self, now: float, *, crowded: bool) -> None:
        window, pace = self._window, self._pace
        rate, busy, refused = self._second.rates(now)
        held = self.held_until > self._cut_at
        again = now - max(self._cut_at, self.held_until) < 1
        slow_start = self._slow_start
        self._cut_at = now
        self._slow_start = not (rate or self._in_a_row)
        self._trouble = self._overload = 0.0
        if crowded or not pace.safe:
            self._noise -= self._noise / 6
        if pace.value == math.inf:
            pace.value = window.value / (self._latency or 0.1)
        # A cut of the pace that cured nothing was the wrong one.
        wrong = again and not self._narrowed and refused > max(2, rate / 20)
        self._narrowed = crowded and rate > 0 and (wrong or not again) and not slow_start
        if self._narrowed:
            window.cut(max(self._peak.borne + 1, busy))
            self._peak.since = self._peak.until = math.inf
            if not again:
                pace.value = max(1.0, pace.value / 2, min(pace.value, rate / _USED))
        else:
            if slow_start:
                self._peak.borne = max(1.0, busy)
            accepted = pace.value * rate / (rate + refused - 1) if refused > 1 else pace.value
            if again:
                # The last second tells it better than the share of refusals: in a fixed window, these come all at once.
                accepted = max(rate, 0.85 * accepted if held else accepted)
            pace.cut(accepted)
        self._apply()
