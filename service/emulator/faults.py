"""A fault script as data: what goes wrong, with which requests, and when.

Decides what can be said in a script, in code or in a file, and what is a mistake in one. Must not know how it is
played. A script in TOML:

    lock_busy_conversations = true            # 400 while another write to that conversation is at work

    [[rules]]                                 # rules in order of priority
    name = "cut after storing"                # optional, for the statistics
    match = { operations = ["create_items"], conversation = "conv_a*", text = "hello" }
    when = { probability = 0.03, first = 100, every = 2, from_seconds = 5, until_seconds = 60 }
    effect = { kind = "cut", stores = "all" }

and the same in code: `Rule(Cut(stores="all"), Match(operations=("create_items",)), When(probability=0.03))`.
`match` and `when` may be left out, in part or as a whole: they then hold for every request at any time.

A request walks the rules in order. The first rule with an effect that decides ends the walk; a latency adds up
and passes the request on, and so do a throttle with room and a size limit that is kept. A latency in front of a
throttle therefore also delays what the throttle refuses, one behind it does not.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from service.emulator.contract import OPERATIONS, ErrorForm, Operation

if TYPE_CHECKING:
    from pathlib import Path

Stores: TypeAlias = Literal["none", "all"] | int
"""What of the request is stored before the effect is felt: nothing, everything, or the first so many items."""


class FaultScriptError(ValueError):
    """A fault script that cannot be played; the message names the rule and the field."""


def _check(holds: bool, demand: str, found: Any) -> None:
    if not holds:
        raise ValueError(f"{demand}, not {found}")


def _check_stores(stores: Stores) -> None:
    fits = stores in {"none", "all"} or (isinstance(stores, int) and stores >= 0)
    _check(fits, 'stores must be "none", "all" or a number of items', repr(stores))


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all parts of a script share: a misspelt field is an error, not a fault that never shows."""


class Match(_Part, frozen=True):
    """Which requests: all that fit every field given.

    `operations` empty means every operation of the API; `conversation` is an id or a glob (`conv_a*`); `text`
    has to be contained in the text of at least one item of the request.
    """

    operations: tuple[Operation, ...] = ()
    conversation: str | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        for operation in self.operations:
            if operation not in OPERATIONS:
                raise ValueError(f"operations: {operation!r} is none of {', '.join(OPERATIONS)}")
        if self.text == "":
            raise ValueError("text must not be empty: it would match every item")


class When(_Part, frozen=True):
    """When it applies to the requests that match.

    Seconds count from the moment the script began to play. `first` and `every` count the requests that match
    within these seconds: the first N of them, every Nth of them. `probability` is drawn last.
    """

    probability: float = 1.0
    first: int | None = None
    every: int | None = None
    from_seconds: float = 0.0
    until_seconds: float | None = None

    def __post_init__(self) -> None:
        _check(0 <= self.probability <= 1, "probability must be between 0 and 1", self.probability)
        _check(self.first is None or self.first >= 1, "first must be at least 1", self.first)
        _check(self.every is None or self.every >= 1, "every must be at least 1", self.every)
        _check(self.from_seconds >= 0, "from_seconds must not be negative", self.from_seconds)
        _check(
            self.until_seconds is None or self.until_seconds > self.from_seconds,
            "until_seconds must be later than from_seconds",
            self.until_seconds,
        )


# -- effects that pass the request on ------------------------------------------------------------------------


class _Effect(_Part, frozen=True, tag_field="kind"):
    """What an effect is called in a file is its `kind`."""


class Latency(_Effect, frozen=True, tag="latency"):
    """Wait a fixed time: before the work, or `when_done`, between the work and its answer."""

    seconds: float
    when_done: bool = False

    def __post_init__(self) -> None:
        _check(self.seconds >= 0, "seconds must not be negative", self.seconds)


class UniformLatency(_Effect, frozen=True, tag="uniform_latency"):
    """Wait a time drawn evenly from a range."""

    low_seconds: float
    high_seconds: float
    when_done: bool = False

    def __post_init__(self) -> None:
        _check(self.low_seconds >= 0, "low_seconds must not be negative", self.low_seconds)
        _check(
            self.high_seconds >= self.low_seconds,
            "high_seconds must be at least low_seconds",
            self.high_seconds,
        )


class LognormalLatency(_Effect, frozen=True, tag="lognormal_latency"):
    """Wait as real services do: half of the time less than the median, now and then very long.

    `sigma` 0.5 puts the 99th percentile at 3.2 times the median, 1.0 at 10 times.
    """

    median_seconds: float
    sigma: float = 0.5
    max_seconds: float = 60.0
    when_done: bool = False

    def __post_init__(self) -> None:
        _check(self.median_seconds >= 0, "median_seconds must not be negative", self.median_seconds)
        _check(self.sigma >= 0, "sigma must not be negative", self.sigma)
        _check(self.max_seconds >= 0, "max_seconds must not be negative", self.max_seconds)


# -- effects that decide -------------------------------------------------------------------------------------


class _Storing(_Effect, frozen=True):
    """Shared by effects that hide or falsify an answer: what is stored all the same, and how late.

    With `lands_after_seconds` the effect is felt at once and the items are stored that much later, whoever has
    written to the conversation in the meantime.
    """

    stores: Stores = "none"
    lands_after_seconds: float = 0.0

    def __post_init__(self) -> None:
        _check_stores(self.stores)
        _check(self.lands_after_seconds >= 0, "lands_after_seconds must not be negative", self.lands_after_seconds)
        if self.lands_after_seconds and self.stores == "none":
            raise ValueError('lands_after_seconds says when something is stored, but stores is "none"')


class Status(_Storing, frozen=True, kw_only=True, tag="status"):
    """Answer with a status and an error body in one of the forms, or with `body` as it stands."""

    status: int
    code: str | None = None
    message: str | None = None
    param: str | None = None
    type: str | None = None
    form: ErrorForm = "openai"
    headers: dict[str, str] = {}
    body: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(200 <= self.status <= 599, "status must be from 200 to 599", self.status)


class Cut(_Storing, frozen=True, tag="cut"):
    """End the connection without a byte of an answer, in order (FIN) or, with `reset`, abruptly (RST)."""

    reset: bool = False


class Silence(_Storing, frozen=True, tag="silence"):
    """Never answer; the connection stays open until the client leaves."""


class Html(_Storing, frozen=True, tag="html"):
    """Answer with a page, as a captive portal or a gateway's welcome would."""

    status: int = 200
    title: str = "Welcome"


class Garbage(_Storing, frozen=True, kw_only=True, tag="garbage"):
    """Answer 200, and `application/json`, with random bytes."""

    length_bytes: int = 64
    stores: Stores = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.length_bytes >= 1, "length_bytes must be at least 1", self.length_bytes)


class Drip(_Effect, frozen=True, tag="drip"):
    """Give the true answer, its body byte by byte, spread over some seconds."""

    seconds: float

    def __post_init__(self) -> None:
        _check(self.seconds >= 0, "seconds must not be negative", self.seconds)


class HalfJson(_Effect, frozen=True, tag="half_json"):
    """Store, then give the first half of the true answer.

    The content-length tells the truth about the half; with `cut` it promises the whole and the connection ends.
    """

    cut: bool = False


class FewerItems(_Effect, frozen=True, kw_only=True, tag="fewer_items"):
    """Answer 200 with only the first `listed` of the items; `stores` says how many of them are stored."""

    listed: int
    stores: Literal["all"] | int = "all"

    def __post_init__(self) -> None:
        _check(self.listed >= 0, "listed must not be negative", self.listed)
        _check_stores(self.stores)


class _Throttling(_Effect, frozen=True, kw_only=True):
    """How a throttled request is refused: 429, in DashScope's form and code unless another form is named."""

    form: ErrorForm = "dashscope"
    retry_after_seconds: float | None = None
    retry_after_ms: int | None = None


class RateThrottle(_Throttling, frozen=True, kw_only=True, tag="rate_throttle"):
    """Refuse what goes beyond so many requests a second (a token bucket that holds `burst`)."""

    requests_per_second: float
    burst: int = 1

    def __post_init__(self) -> None:
        _check(self.requests_per_second > 0, "requests_per_second must be positive", self.requests_per_second)
        _check(self.burst >= 1, "burst must be at least 1", self.burst)


class ConcurrencyThrottle(_Throttling, frozen=True, kw_only=True, tag="concurrency_throttle"):
    """Refuse what goes beyond so many requests in flight, counted over the requests this rule matches."""

    in_flight: int

    def __post_init__(self) -> None:
        _check(self.in_flight >= 0, "in_flight must not be negative", self.in_flight)


class Lock(_Effect, frozen=True, tag="lock"):
    """Refuse with 400 `conversation_locked`; `match.conversation` and `when` say which and how long."""

    form: ErrorForm = "openai"


class Moderation(_Effect, frozen=True, tag="moderation"):
    """Refuse the whole request with 400 `DataInspectionFailed` because one item contains `match.text`.

    With `names_item` the error's `param` says which one is the first, as in `items[3].content`.
    """

    names_item: bool = False
    form: ErrorForm = "openai"


class Unpaid(_Effect, frozen=True, tag="unpaid"):
    """Refuse with 400 `Arrearage`: the account is overdue."""

    form: ErrorForm = "openai"


class Unauthorized(_Effect, frozen=True, tag="unauthorized"):
    """Refuse with 401, whatever the key."""

    form: ErrorForm = "openai"


class WrongPath(_Effect, frozen=True, tag="wrong_path"):
    """Answer as a gateway that knows no such path: 404, in no form of the API's."""


class TooLarge(_Effect, frozen=True, tag="too_large"):
    """Refuse a body of more than so many bytes with 413."""

    max_bytes: int
    form: ErrorForm = "openai"

    def __post_init__(self) -> None:
        _check(self.max_bytes >= 0, "max_bytes must not be negative", self.max_bytes)


Effect: TypeAlias = (
    Latency
    | UniformLatency
    | LognormalLatency
    | Status
    | Cut
    | Silence
    | Html
    | Garbage
    | Drip
    | HalfJson
    | FewerItems
    | RateThrottle
    | ConcurrencyThrottle
    | Lock
    | Moderation
    | Unpaid
    | Unauthorized
    | WrongPath
    | TooLarge
)


class Rule(_Part, frozen=True):
    """One thing that goes wrong. `name` is for the reader and the statistics."""

    effect: Effect
    match: Match = Match()
    when: When = When()
    name: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.effect, Moderation) and self.match.text is None:
            raise ValueError("match.text is missing: moderation refuses items by their text")


class FaultScript(_Part, frozen=True):
    """All rules, in order of priority.

    `lock_busy_conversations` refuses a write with 400 `conversation_locked` while another write to that same
    conversation is at work, before any rule is asked.
    """

    rules: tuple[Rule, ...] = ()
    lock_busy_conversations: bool = False


def load_faults(path: Path) -> FaultScript:
    """Read a script from a `.toml` or `.json` file; raises FaultScriptError naming file, rule and field."""
    try:
        if path.suffix == ".toml":
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        else:
            document = msgspec.json.decode(path.read_bytes())
    except (OSError, tomllib.TOMLDecodeError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FaultScriptError(f"{path}: {error}") from error
    try:
        return read_faults(document)
    except FaultScriptError as error:
        raise FaultScriptError(f"{path}: {error}") from error


def read_faults(document: Any) -> FaultScript:
    """Turn a decoded JSON or TOML document into a script; raises FaultScriptError naming rule and field."""
    try:
        return msgspec.convert(document, FaultScript)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        place = where.rstrip("`").removeprefix(".")
        raise FaultScriptError(f"{place}: {what}" if place else what) from error
