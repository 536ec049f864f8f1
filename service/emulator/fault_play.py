"""Plays a fault script: what becomes of each request that arrives.

Decides for one request which effect it meets, and keeps what that takes: counts, chances, token buckets, requests
in flight. Must not know the socket, the store or the clock: the time is an argument, and every rule draws its
chances from a seeded stream of its own, so that a run can be repeated and a rule added at the end changes nothing
for those before it.

Rules can be switched on and off while the script plays, and beside them a list of everyday faults, which are off
until somebody wants one; those that are on come before the script's.
"""

from __future__ import annotations

import random
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from service.emulator import contract
from service.emulator.contract import WRITES, Answer, ErrorForm, Operation, Refusal
from service.emulator.faults import (
    ConcurrencyThrottle,
    Cut,
    Drip,
    FaultScript,
    FewerItems,
    Garbage,
    HalfJson,
    Html,
    Latency,
    Lock,
    LognormalLatency,
    Match,
    Moderation,
    RateThrottle,
    Rule,
    Silence,
    Status,
    Stores,
    TooLarge,
    Unauthorized,
    UniformLatency,
    Unpaid,
    WrongPath,
)
from service.emulator.store import text_of

if TYPE_CHECKING:
    from collections.abc import Sequence


class Arrival(msgspec.Struct, frozen=True):
    """What the script is told about a request. `busy`: a write to the same conversation is still at work."""

    operation: Operation
    conversation_id: str
    items: Sequence[Any] = ()
    body_bytes: int = 0
    busy: bool = False
    request_id: str = ""


class Scripted(msgspec.Struct, frozen=True):
    """An answer the script gives in the API's place, after storing what it says."""

    answer: Answer
    stores: Stores = "none"
    lands_after_seconds: float = 0.0


DecidingEffect: TypeAlias = Scripted | Cut | Silence | Drip | HalfJson | FewerItems


class Decision(msgspec.Struct, frozen=True):
    """What is to happen to one request: waits, and at most one effect instead of the plain answer."""

    effect: DecidingEffect | None = None
    wait_before_seconds: float = 0.0
    wait_when_done_seconds: float = 0.0
    admitted_by: tuple[_Playing, ...] = ()
    rule: str = ""
    """The name of the rule whose effect it is."""


class Switch(msgspec.Struct, frozen=True):
    """One thing that can be switched on and off, and how much came of it."""

    id: str
    name: str
    on: bool
    matched: int
    applied: int


_NOTHING: Final = Decision()
LOCK_BUSY: Final = "lock-busy"
"""The switch of `lock_busy_conversations`."""


class _Playing:
    """A rule while it is played: its counts, its chances, its bucket and the requests it let in."""

    def __init__(self, rule: Rule, *, id_: str, name: str, chances: random.Random, now: float, on: bool) -> None:
        self.rule = rule
        self.id = id_
        self.name = name
        self.on = on
        self.matched = 0
        self.applied = 0
        self.in_flight = 0
        self.chances = chances
        self._tokens = float(rule.effect.burst) if isinstance(rule.effect, RateThrottle) else 0.0
        self._filled_at = now
        self._began = now

    def concerns(self, arrival: Arrival, now: float) -> bool:
        """Say whether the rule applies to this request, and count it."""
        when = self.rule.when
        elapsed = now - self._began
        if elapsed < when.from_seconds or (when.until_seconds is not None and elapsed >= when.until_seconds):
            return False
        if not _matches(self.rule.match, arrival):
            return False
        self.matched += 1
        if when.first is not None and self.matched > when.first:
            return False
        if when.every is not None and self.matched % when.every:
            return False
        return when.probability >= 1 or self.chances.random() < when.probability

    def effect_on(self, arrival: Arrival, now: float) -> DecidingEffect | None:
        """Return what becomes of the request, or None where the rule lets it pass."""
        match self.rule.effect:
            case Cut() | Silence() | Drip() | HalfJson() | FewerItems() as as_it_is:
                return as_it_is
            case RateThrottle() as limit:
                return None if self._take_token(limit, now) else _throttled(limit, arrival)
            case ConcurrencyThrottle() as limit:
                return _throttled(limit, arrival)
            case Latency() | UniformLatency() | LognormalLatency():
                return None
            case other:
                return _scripted(other, self, arrival)

    def _take_token(self, limit: RateThrottle, now: float) -> bool:
        gained = (now - self._filled_at) * limit.requests_per_second
        self._tokens = min(float(limit.burst), self._tokens + gained)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class FaultPlay:
    """The script being played."""

    def __init__(
        self,
        script: FaultScript = FaultScript(),  # noqa: B008 - frozen
        *,
        seed: int = 0,
        now: float = 0.0,
        everyday: Sequence[Rule] = (),
    ) -> None:
        self._seed = seed
        self._rules_for_every_day = everyday
        self.play(script, now=now)

    def play(self, script: FaultScript, *, now: float) -> None:
        """Play this script from its beginning, and nothing but it. `now` is in seconds, of any clock."""
        self.script = script
        self._lock_busy = script.lock_busy_conversations
        self._scripted = [
            self._start(rule, str(index), rule.name or f"rules[{index}]", now=now, on=True)
            for index, rule in enumerate(script.rules)
        ]
        self._everyday = [
            self._start(rule, f"everyday-{index}", rule.name, now=now, on=False)
            for index, rule in enumerate(self._rules_for_every_day)
        ]
        self._choose()

    def switch(self, switch_id: str, *, on: bool, now: float) -> None:
        """Switch a rule on or off; raises LookupError where there is none of this id.

        A rule of the script that comes back goes on where it would be; an everyday fault begins anew.
        """
        if switch_id == LOCK_BUSY:
            self._lock_busy = on
            return
        for rules in (self._scripted, self._everyday):
            for index, playing in enumerate(rules):
                if playing.id == switch_id:
                    if on and not playing.on and rules is self._everyday:
                        rules[index] = self._start(playing.rule, playing.id, playing.name, now=now, on=True)
                    else:
                        playing.on = on
                    self._choose()
                    return
        raise LookupError(f"no fault {switch_id!r}")

    def switches(self) -> tuple[list[Switch], list[Switch]]:
        """Return what can be switched: of the script (the lock of busy conversations first), and for every day."""
        lock = Switch(LOCK_BUSY, "lock busy conversations", self._lock_busy, 0, 0)
        return [lock, *map(_switch, self._scripted)], list(map(_switch, self._everyday))

    def counts(self) -> list[dict[str, Any]]:
        """Return for every rule how many requests it matched and how many it did something to.

        All rules of the script, and of the everyday faults those that were ever on.
        """
        return [
            {"rule": playing.name, "matched": playing.matched, "applied": playing.applied}
            for playing in (*self._scripted, *(used for used in self._everyday if used.on or used.matched))
        ]

    def decide(self, arrival: Arrival, *, now: float) -> Decision:
        """Walk the rules with one request. Whoever asks has to `release` the decision when the request ends."""
        if self._lock_busy and arrival.busy and arrival.operation in WRITES:
            return Decision(effect=_refused(_locked(), "openai", arrival), rule="lock busy conversations")
        if not self._playing:
            return _NOTHING
        waits = [0.0, 0.0]
        admitted_by: list[_Playing] = []
        effect = None
        rule = ""
        for playing in self._playing:
            if not playing.concerns(arrival, now):
                continue
            match playing.rule.effect:
                case Latency() | UniformLatency() | LognormalLatency() as latency:
                    waits[latency.when_done] += _draw_seconds(latency, playing.chances)
                    playing.applied += 1
                    rule = playing.name
                    continue
                case ConcurrencyThrottle() as limit if playing.in_flight < limit.in_flight:
                    playing.in_flight += 1
                    admitted_by.append(playing)
                    continue
            effect = playing.effect_on(arrival, now)
            if effect is not None:
                playing.applied += 1
                rule = playing.name
                break
        return Decision(effect, waits[False], waits[True], tuple(admitted_by), rule)

    def _start(self, rule: Rule, id_: str, name: str, *, now: float, on: bool) -> _Playing:
        chances = random.Random(f"{self._seed}/{id_}")  # noqa: S311 - repeatable on purpose
        return _Playing(rule, id_=id_, name=name, chances=chances, now=now, on=on)

    def _choose(self) -> None:
        self._playing = [playing for playing in (*self._everyday, *self._scripted) if playing.on]

    @staticmethod
    def release(decision: Decision) -> None:
        """Give back what the request held while it was in flight."""
        for playing in decision.admitted_by:
            playing.in_flight -= 1


def _switch(playing: _Playing) -> Switch:
    return Switch(playing.id, playing.name, playing.on, playing.matched, playing.applied)


def _matches(match: Match, arrival: Arrival) -> bool:
    if match.operations and arrival.operation not in match.operations:
        return False
    if match.conversation is not None and not fnmatchcase(arrival.conversation_id, match.conversation):
        return False
    return match.text is None or _first_with_text(arrival.items, match.text) is not None


def _first_with_text(items: Sequence[Any], text: str) -> int | None:
    for index, item in enumerate(items):
        if isinstance(item, dict) and text in text_of(item.get("content")):
            return index
    return None


def _draw_seconds(latency: Latency | UniformLatency | LognormalLatency, chances: random.Random) -> float:
    match latency:
        case Latency():
            return latency.seconds
        case UniformLatency():
            return chances.uniform(latency.low_seconds, latency.high_seconds)
        case LognormalLatency():
            factor = chances.lognormvariate(0.0, latency.sigma)
            return min(latency.max_seconds, latency.median_seconds * factor)


def _scripted(
    effect: Status | Html | Garbage | Lock | Moderation | Unpaid | Unauthorized | WrongPath | TooLarge,
    playing: _Playing,
    arrival: Arrival,
) -> Scripted | None:
    match effect:
        case Status():
            return Scripted(_status_answer(effect, arrival), effect.stores, effect.lands_after_seconds)
        case Html():
            page = Answer(effect.status, contract.html_page(effect.title), b"text/html; charset=utf-8")
            return Scripted(page, effect.stores, effect.lands_after_seconds)
        case Garbage():
            garbage = Answer(200, playing.chances.randbytes(effect.length_bytes))
            return Scripted(garbage, effect.stores, effect.lands_after_seconds)
        case WrongPath():
            return Scripted(contract.gateway_not_found())
        case TooLarge() if arrival.body_bytes <= effect.max_bytes:
            return None
        case _:
            return _refused(_refusal(effect, playing.rule.match, arrival), effect.form, arrival)


def _refusal(effect: Lock | Moderation | Unpaid | Unauthorized | TooLarge, match: Match, arrival: Arrival) -> Refusal:
    match effect:
        case Lock():
            return _locked()
        case Moderation():
            culprit = _first_with_text(arrival.items, match.text or "")
            return Refusal(
                400,
                "Input data may contain inappropriate content.",
                "DataInspectionFailed",
                f"items[{culprit}].content" if effect.names_item else None,
                "data_inspection_failed",
            )
        case Unpaid():
            message = "Access denied, please make sure your account is in good standing."
            return Refusal(400, message, "Arrearage", type="Arrearage")
        case Unauthorized():
            return Refusal(401, "Incorrect API key provided.", "invalid_api_key")
        case TooLarge():
            return contract.body_too_large(effect.max_bytes)


def _locked() -> Refusal:
    message = "Another process is currently operating on this conversation. Please retry in a few seconds."
    return Refusal(400, message, "conversation_locked", "conversation")


def _throttled(limit: RateThrottle | ConcurrencyThrottle, arrival: Arrival) -> Scripted:
    if limit.form == "dashscope":
        message = "Requests rate limit exceeded, please try again later."
        refusal = Refusal(429, message, "Throttling.RateQuota")
    else:
        refusal = Refusal(429, "Rate limit reached.", "rate_limit_exceeded", type="requests")
    headers = []
    if limit.retry_after_seconds is not None:
        headers.append((b"retry-after", f"{limit.retry_after_seconds:g}".encode()))
    if limit.retry_after_ms is not None:
        headers.append((b"retry-after-ms", str(limit.retry_after_ms).encode()))
    return _refused(refusal, limit.form, arrival, tuple(headers))


def _refused(
    refusal: Refusal, form: ErrorForm, arrival: Arrival, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> Scripted:
    return Scripted(contract.refusal_answer(refusal, form=form, request_id=arrival.request_id, headers=headers))


def _status_answer(effect: Status, arrival: Arrival) -> Answer:
    headers = tuple((name.lower().encode(), value.encode()) for name, value in effect.headers.items())
    if effect.body is not None:
        # A vendor's body copied into a script is most often JSON; what it is, is told by how it begins.
        is_json = effect.body.lstrip().startswith(("{", "["))
        content_type = b"application/json" if is_json else b"text/plain; charset=utf-8"
        return Answer(effect.status, effect.body.encode(), content_type, headers)
    refusal = Refusal(
        effect.status,
        effect.message or ("The server had an error." if effect.status >= 500 else "The request was refused."),
        effect.code,
        effect.param,
        effect.type or ("server_error" if effect.status >= 500 else "invalid_request_error"),
    )
    return contract.refusal_answer(refusal, form=effect.form, request_id=arrival.request_id, headers=headers)
