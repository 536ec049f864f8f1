"""Whether anything may be sent at all: the health of the one host everybody's messages go to.

Decides when trouble is the host's and not a conversation's: failures on three or more conversations
with no success between (a read that failed is made up for by one that did not), or one answer that only an
operator can mend (a rejected key, an unpaid account, a wrong address). While open, one probe at a time asks
whether it has healed; one that is not answered within `PROBE_MAX_SECONDS` does not keep the next from asking. Where
an attempt may be of unknown fate a probe is a read: what it asks can be asked again at once, while a conversation
that was written to in vain would have to settle long after the host has healed. A deployment with a single
conversation never gets three, so it keeps trying by its own back-off.
"""

from __future__ import annotations

import enum
import math

FAILING_CONVERSATIONS = 3
PROBE_INITIAL_SECONDS = 0.5
PROBE_MAX_SECONDS = 3.0
"""From a probe to the next; small enough that a healed host is used again within five seconds."""
READS_BEFORE_A_WRITE = 100
"""So many reads in vain, and a probe writes: a host that can not list may yet store."""
READS_THAT_CLOSE = 3
"""So many good reads in a row, and writing is worth a trial by more than probes: every batch at hand may be
waiting for its unheard attempt to settle, so that there is nothing to probe with. Once; then only a write counts."""
FORBIDDEN_KEPT = 1000
FORBIDDEN_MEMORY_SECONDS = 60.0
"""A conversation not refused for so long was given up or moved away; a new refusal of it stands alone."""


class CircuitReason(enum.StrEnum):
    """Why the circuit is open; the label of ``convoy_circuit_state``."""

    API_UNAVAILABLE = "api_unavailable"
    KEY_REJECTED = "key_rejected"
    UNPAID_OR_QUOTA = "unpaid_or_quota"
    WRONG_URL = "wrong_url"
    TLS = "tls"
    FORBIDDEN = "forbidden"
    UNEXPECTED_ANSWER = "unexpected_answer"
    FLOOD_GUARD = "flood_guard"
    """Too much would be dead-lettered; a person should look."""


_SILENT = frozenset({CircuitReason.API_UNAVAILABLE, CircuitReason.UNEXPECTED_ANSWER})
"""Reasons for which what is written may be of unknown fate; the others refuse, and nothing is stored."""


class Circuit:
    """Closed, or open for a reason."""

    __slots__ = (
        "_accepted_start", "_before_last_success", "_failing", "_forbidden", "_good_reads", "_heard", "_interval",
        "_last_success", "_last_success_of", "_latest_probe", "_open_seconds", "_opened_at", "_opened_by_reads",
        "_probe_at", "_probes", "_read_worked", "_reads_in_vain", "_reads_trusted", "_unread", "detail", "reason",
    )  # fmt: skip

    def __init__(self) -> None:
        self.reason: CircuitReason | None = None
        """``None`` while closed."""
        self.detail = ""
        """The code and message of the answer that opened it, for people."""
        self._failing: set[str] = set()
        """Conversations whose attempts failed, with no success since."""
        self._unread: set[str] = set()
        """Those that only could not be read, with no good read since."""
        self._opened_by_reads = False
        """Open, but not without those: as where many cold conversations are asked for their cursors at once."""
        self._forbidden: dict[str, tuple[float, float]] = {}
        self._accepted_start = -math.inf
        self._last_success = -math.inf
        self._last_success_of = ""
        self._before_last_success = -math.inf
        self._opened_at = 0.0
        self._open_seconds = 0.0
        self._interval = PROBE_INITIAL_SECONDS
        self._probe_at = 0.0
        self._probes = 0
        self._latest_probe = 0
        self._heard = False
        """A read was answered since anything failed: the next probe may write."""
        self._reads_in_vain = 0
        self._read_worked = False
        self._good_reads = 0
        self._reads_trusted = True

    @property
    def is_open(self) -> bool:
        """Whether the host is held to be in trouble."""
        return self.reason is not None

    def next_attempt(self, now: float) -> float:
        """The earliest time an attempt may start: ``now`` while closed, when the next probe is due while open."""
        return now if self.reason is None else self._probe_at

    @property
    def asks(self) -> bool:
        """Whether a probe should read, and not write."""
        return self.reason in _SILENT and not self._heard and self._reads_in_vain < READS_BEFORE_A_WRITE

    def started(self, now: float) -> int:
        """Note that an attempt starts; while open it is a probe, and its number is returned, else zero."""
        if self.reason is None:
            return 0
        self._probes += 1
        self._latest_probe = self._probes
        self._probe_at = now + PROBE_MAX_SECONDS
        self._read_worked = False
        return self._probes

    def ended(self, now: float, probe: int) -> None:
        """Note that an attempt is over, whatever it said; ``probe`` is what `started` returned."""
        if not probe or probe != self._latest_probe or self.reason is None or self._read_worked:
            return
        self._interval = min(self._interval * 2, PROBE_MAX_SECONDS)
        self._probe_at = min(self._probe_at, now + self._interval)

    def heard(self, now: float) -> None:
        """Note that a read was answered, whatever was said: somebody is there, and a write at once tells more."""
        self._probe_at = now
        self._read_worked = True
        self._heard = True

    def reads_work(self, now: float) -> None:
        """Note that a read succeeded while open: worth trying a write at once, but no proof of health."""
        self.heard(now)
        self._unread.clear()
        if self._opened_by_reads and len(self._failing) < FAILING_CONVERSATIONS:
            self.close(now)
        self._good_reads += 1
        if self._reads_trusted and self.reason is not None and self._good_reads >= READS_THAT_CLOSE:
            self._reads_trusted = False
            self.close(now)

    def success(self, conversation_id: str, now: float, *, started_at: float = -math.inf) -> None:
        """Note an answer that shows the host at work: it closes the circuit.

        ``started_at`` is when the attempt began, where the answer also shows that the key may write.
        """
        self._accepted_start = max(self._accepted_start, started_at)
        self._forbidden.pop(conversation_id, None)
        if conversation_id != self._last_success_of:
            self._before_last_success = self._last_success
            self._last_success_of = conversation_id
        self._last_success = now
        if self._failing or self._unread:
            self._failing.clear()
            self._unread.clear()
        self._reads_trusted = True
        if self.reason is not None:
            self.close(now)

    def trouble(self, conversation_id: str, now: float, detail: str, *, reading: bool = False) -> None:
        """Note a failure that may be the host's; ``reading``: of a read."""
        self._good_reads = 0
        self._heard = False
        self._reads_in_vain = self._reads_in_vain + 1 if reading else 0
        (self._unread if reading else self._failing).add(conversation_id)
        if len(self._failing | self._unread) >= FAILING_CONVERSATIONS:
            self.trip(now, CircuitReason.API_UNAVAILABLE, detail)
            self._opened_by_reads = len(self._failing) < FAILING_CONVERSATIONS

    def trip(self, now: float, reason: CircuitReason, detail: str) -> None:
        """Open the circuit, or keep it open for a reason better known."""
        self._good_reads = 0
        self._opened_by_reads = False
        if self.reason is None:
            self._opened_at = now
            self._interval = PROBE_INITIAL_SECONDS
            self._probe_at = now + self._interval
            self._latest_probe = 0
            self._heard = False
            self._reads_in_vain = 0
        self.reason = reason
        self.detail = detail

    def others_failing(self, conversation_id: str) -> bool:
        """Whether another conversation is in trouble too, with no success since."""
        failing = self._failing | self._unread
        return len(failing) > (conversation_id in failing)

    def forbidden(self, conversation_id: str, now: float, detail: str) -> bool:
        """Judge a 403: whether it is this conversation's alone.

        Alone: another was accepted in an attempt begun after this one was first refused; an answer to an
        earlier attempt may date from before the key lost its rights. Another one refused with nothing accepted
        since: the key has no rights, and the circuit opens. Neither yet, or open: it has to be tried again.
        """
        first, last = self._forbidden.get(conversation_id, (now, now))
        if now - last > FORBIDDEN_MEMORY_SECONDS:
            first = now
        if self.reason is None and self._accepted_start > first:
            self._forbidden.pop(conversation_id, None)
            return True
        self._turned_away(conversation_id, first, now, CircuitReason.FORBIDDEN, detail)
        return False

    def turned_away(self, conversation_id: str, now: float, reason: CircuitReason, detail: str) -> None:
        """Note a refusal in words that are not the API's: of another one too, with nothing accepted since, it opens."""
        first, _ = self._forbidden.get(conversation_id, (now, now))
        self._turned_away(conversation_id, first, now, reason, detail)

    def accepted_since(self, moment: float) -> bool:
        """Whether an attempt begun after ``moment`` was accepted."""
        return self._accepted_start > moment

    def _turned_away(self, conversation_id: str, first: float, now: float, reason: CircuitReason, detail: str) -> None:
        self._forbidden[conversation_id] = (first, now)
        if any(
            last >= self._accepted_start for other, (_, last) in self._forbidden.items() if other != conversation_id
        ):
            self.trip(now, reason, detail)
        while len(self._forbidden) > FORBIDDEN_KEPT:
            del self._forbidden[next(iter(self._forbidden))]

    def healthy_for_others(self, conversation_id: str, since: float) -> bool:
        """Whether a conversation other than this one succeeded after ``since`` and the circuit is closed."""
        if self.reason is not None:
            return False
        if self._last_success_of == conversation_id:
            return self._before_last_success > since
        return self._last_success > since

    def open_seconds(self, now: float) -> float:
        """How long it has been open, all times added up."""
        return self._open_seconds + (now - self._opened_at if self.reason is not None else 0.0)

    def close(self, now: float) -> None:
        """Close it; open before."""
        self._open_seconds += now - self._opened_at
        self.reason = None
        self.detail = ""
        self._opened_by_reads = False
