"""Whether this process is alive and ready: facts noted by the parts, read by the probes.

Alive: the loop makes progress. An API or a broker that is away is no reason to be killed: a restart mends
neither and loses what is in flight. Ready: started, joined the group (owning no partition counts: a surge
pod has none) and not draining.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

STALLED_SECONDS = 60.0
"""The pump looks at least every second; the consumer polls at least every few. Longer is a hang, not a load."""


class Health:
    """What the probes need to know."""

    def __init__(self, clock: Callable[[], float], *, ready_needs_api: bool) -> None:
        self._clock = clock
        self._ready_needs_api = ready_needs_api
        self._looked = clock()
        self.last_progress = 0.0
        """When an outcome was last stored, Unix time; 0 before the first."""
        self.waiting_for: str | None = "start"
        """What keeps it from being ready, for people; ``None`` once it has joined the group."""
        self.draining = False
        self._troubles: dict[str, str] = {}
        self.circuit_reason: Callable[[], str | None] = lambda: None
        self.problem: Callable[[], str | None] = lambda: None
        """What an operator has to decide before everything is read that should be; ``None`` while nothing is."""
        self.idle_seconds: Callable[[float], float] = lambda _: 0.0
        """How long, at a time, the consumer has not been polled although nothing stood in its way."""

    def started(self) -> None:
        """Note that the process begins to run: what came before it was not a stall."""
        self._looked = self._clock()

    def looked(self) -> None:
        """Note that the pump went round."""
        self._looked = self._clock()

    def progressed(self) -> None:
        """Note that an outcome was stored."""
        self.last_progress = time.time()

    def trouble(self, what: str, words: str) -> bool:
        """Note what keeps a part of it from its work, until `mended`; returns whether that is news, of any part."""
        news = words not in self._troubles.values()
        self._troubles[what] = words
        return news

    def mended(self, what: str) -> bool:
        """Note that this part is at work again; returns whether it was not."""
        return self._troubles.pop(what, None) is not None

    def alive(self) -> tuple[bool, dict[str, Any]]:
        """The answer of ``/livez``."""
        now = self._clock()
        idle = max(now - self._looked, self.idle_seconds(now))
        alive = idle < STALLED_SECONDS
        return alive, {"status": "alive" if alive else "stalled", "seconds_since_progress": round(idle, 3)}

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """The answer of ``/readyz``."""
        circuit = self.circuit_reason()
        if self.draining:
            status = "draining"
        elif self.waiting_for:
            status = f"waiting for {self.waiting_for}"
        elif problem := self.problem() or next(iter(self._troubles.values()), None):
            status = problem
        elif circuit is not None and self._ready_needs_api:
            status = "circuit open"
        else:
            status = "ready"
        return status == "ready", {"status": status, "circuit": circuit or "closed"}
