"""Decides how many attempts may be in flight and how fast they may start.

Knows neither what an attempt is nor what time it is: ``now`` is an argument, seconds of a monotonic clock.

Slow start doubles the concurrency a round trip until the API first complains; from then on it is additive
increase, multiplicative decrease (AIMD), with one decrease a round trip.
"""

import enum
import math


class Signal(enum.Enum):
    """What an answer says about the load the API bears."""

    OK = "ok"
    THROTTLED = "throttled"
    OVERLOADED = "overloaded"
    NEUTRAL = "neutral"


class Limiter:
    """Learns what the API bears from the answers it gives.

    Args:
        start_concurrency: how many attempts may be in flight before anything is known.
        max_concurrency: how many may ever be in flight.
        max_requests_per_second: a fixed pace that is never exceeded; None when there is none.
    """

    __slots__ = (
        "_decreased_at",
        "_fixed_interval",
        "_limit",
        "_max",
        "_next_start",
        "_slow_start",
        "held_until",
        "in_flight",
    )

    def __init__(
        self, *, start_concurrency: int, max_concurrency: int, max_requests_per_second: float | None = None
    ) -> None:
        self._limit = float(max(1, min(start_concurrency, max_concurrency)))
        self._max = float(max(1, max_concurrency))
        self._fixed_interval = 1 / max_requests_per_second if max_requests_per_second else 0.0
        self._next_start = -math.inf
        self._decreased_at = -math.inf
        self._slow_start = True
        self.held_until = -math.inf
        self.in_flight = 0

    @property
    def concurrency_limit(self) -> int:
        """How many attempts may be in flight now."""
        return int(self._limit)

    @property
    def pace(self) -> float | None:
        """How many attempts may start a second; None while that is not what limits."""
        return 1 / self._fixed_interval if self._fixed_interval else None

    def next_start(self, now: float) -> float:  # noqa: ARG002
        """Earliest time another attempt may start; infinity while every slot is taken."""
        if self.in_flight >= int(self._limit):
            return math.inf
        return max(self.held_until, self._next_start)

    def started(self, now: float) -> None:
        """Count an attempt that starts now."""
        self.in_flight += 1
        if self._fixed_interval:
            self._next_start = max(now, self._next_start) + self._fixed_interval

    def finished(self, now: float, *, started_at: float, signal: Signal) -> None:
        """Learn from the answer to an attempt that started at ``started_at``."""
        used = self.in_flight * 2 >= self._limit
        self.in_flight -= 1
        if signal is Signal.OK:
            if used:
                self._limit = min(self._max, self._limit + (1.0 if self._slow_start else 1 / self._limit))
        elif signal is not Signal.NEUTRAL and started_at > self._decreased_at:
            self._decreased_at = now
            self._slow_start = False
            self._limit = max(1.0, self._limit * 0.7)

    def hold_until(self, at: float) -> None:
        """Start nothing before ``at``: the API named a time."""
        self.held_until = max(self.held_until, at)
