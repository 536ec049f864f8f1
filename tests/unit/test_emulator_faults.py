"""Fault scripts: what can be said in one, and what becomes of each request. Time is an argument, chance is seeded."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from service.emulator.fault_play import LOCK_BUSY, Arrival, Decision, FaultPlay, Scripted
from service.emulator.faults import (
    ConcurrencyThrottle,
    Cut,
    Effect,
    FaultScript,
    FaultScriptError,
    FewerItems,
    Latency,
    LognormalLatency,
    Match,
    Moderation,
    RateThrottle,
    Rule,
    Silence,
    Status,
    TooLarge,
    UniformLatency,
    Unpaid,
    When,
    load_faults,
    read_faults,
)

if TYPE_CHECKING:
    from pathlib import Path

    from service.emulator.contract import Operation


def play(*rules: Rule, lock_busy: bool = False, seed: int = 0) -> FaultPlay:
    return FaultPlay(FaultScript(rules, lock_busy), seed=seed, now=100.0)


def arrival(*texts: str, conversation_id: str = "conv_a", operation: Operation = "create_items") -> Arrival:
    items = [{"type": "message", "role": "user", "content": text} for text in texts]
    return Arrival(operation, conversation_id, items)


def decide(played: FaultPlay, arrived: Arrival | None = None, *, after: float = 0.0) -> Decision:
    return played.decide(arrived or arrival("hello"), now=100.0 + after)


def status_of(decision: Decision) -> int | None:
    return decision.effect.answer.status if isinstance(decision.effect, Scripted) else None


def error_of(decision: Decision) -> dict[str, Any]:
    assert isinstance(decision.effect, Scripted)
    error: dict[str, Any] = json.loads(decision.effect.answer.body)["error"]
    return error


def test_without_a_script_nothing_happens() -> None:
    assert decide(play()) == Decision()


@pytest.mark.parametrize(
    ("match", "fits"),
    [
        (Match(), True),
        (Match(operations=("create_items", "list_items")), True),
        (Match(operations=("list_items",)), False),
        (Match(conversation="conv_a"), True),
        (Match(conversation="conv_*"), True),
        (Match(conversation="conv"), False),
        (Match(conversation="CONV_A"), False),
        (Match(text="ell"), True),
        (Match(text="nothing of it"), False),
        (Match(operations=("create_items",), conversation="conv_b", text="ell"), False),
    ],
)
def test_a_rule_concerns_what_fits_all_of_its_match(match: Match, fits: bool) -> None:
    assert (decide(play(Rule(Cut(), match))).effect is not None) == fits


def test_text_is_found_in_structured_content() -> None:
    parts = [{"type": "input_text", "text": "good"}, {"type": "input_text", "text": "a bad word"}]
    arrived = Arrival("create_items", "conv_a", [None, {"content": 5}, {"content": parts}])
    assert decide(play(Rule(Cut(), Match(text="bad"))), arrived).effect == Cut()


def test_the_first_rule_that_decides_wins_and_the_later_ones_count_nothing() -> None:
    played = play(Rule(Cut(), when=When(every=2)), Rule(Silence()))
    assert [type(decide(played).effect) for _ in range(4)] == [Silence, Cut, Silence, Cut]
    assert [count["matched"] for count in played.counts()] == [4, 2]
    assert [count["applied"] for count in played.counts()] == [2, 2]


def test_the_first_so_many_matching_requests() -> None:
    played = play(Rule(Cut(), Match(conversation="conv_b"), When(first=2)))
    other = arrival("x", conversation_id="conv_b")
    effects = [decide(played, arrived).effect for arrived in (arrival(), other, arrival(), other, other)]
    assert effects == [None, Cut(), None, Cut(), None]


def test_a_window_counts_from_the_moment_the_script_began() -> None:
    played = play(Rule(Cut(), when=When(from_seconds=10, until_seconds=20)))
    assert [decide(played, after=after).effect for after in (0, 9.9, 10, 19.9, 20)] == [
        None,
        None,
        Cut(),
        Cut(),
        None,
    ]
    played.play(played.script, now=200.0)
    assert decide(played, after=105).effect is None
    assert decide(played, after=110).effect == Cut()


def test_chance_repeats_with_the_seed_and_is_a_rules_own() -> None:
    def hits(*rules: Rule, seed: int = 0) -> list[bool]:
        played = play(*rules, seed=seed)
        return [isinstance(decide(played).effect, Cut) for _ in range(2000)]

    one = Rule(Cut(), when=When(probability=0.1))
    assert hits(one) == hits(one)
    assert hits(one) != hits(one, seed=1)
    assert 150 < sum(hits(one)) < 250
    assert hits(one, Rule(Silence(), when=When(probability=0.5))) == hits(one)


def test_latencies_add_up_and_pass_the_request_on() -> None:
    played = play(Rule(Latency(0.5)), Rule(Latency(0.25)), Rule(Latency(2.0, when_done=True)), Rule(Cut(), name="cut"))
    assert decide(played) == Decision(Cut(), 0.75, 2.0, rule="cut")


def test_latencies_are_drawn_from_their_distribution() -> None:
    uniform = play(Rule(UniformLatency(0.1, 0.3)))
    drawn = [decide(uniform).wait_before_seconds for _ in range(2000)]
    assert 0.1 <= min(drawn) < 0.11
    assert 0.29 < max(drawn) <= 0.3
    lognormal = play(Rule(LognormalLatency(0.1, sigma=1.0, max_seconds=1.0)))
    drawn = [decide(lognormal).wait_before_seconds for _ in range(2000)]
    assert 0.09 < statistics.median(drawn) < 0.11
    assert max(drawn) == 1.0


def test_a_rate_throttle_lets_through_its_burst_and_then_its_rate() -> None:
    played = play(Rule(RateThrottle(requests_per_second=8, burst=3)))
    assert [status_of(decide(played)) for _ in range(4)] == [None, None, None, 429]
    assert status_of(decide(played, after=1 / 16)) == 429
    assert status_of(decide(played, after=1 / 8)) is None
    assert status_of(decide(played, after=1 / 8)) == 429
    # Ten seconds of a hundred requests a second: the burst that has gathered, and then the rate.
    through = sum(status_of(decide(played, after=1 + tick / 128)) is None for tick in range(1280))
    assert through == 3 + 79


def test_a_concurrency_throttle_counts_what_it_let_in_until_released() -> None:
    played = play(Rule(ConcurrencyThrottle(in_flight=2), Match(operations=("create_items",))))
    first, second, third = decide(played), decide(played), decide(played)
    assert (status_of(first), status_of(second), status_of(third)) == (None, None, 429)
    played.release(third)
    assert status_of(decide(played)) == 429
    assert status_of(decide(played, arrival(operation="list_items"))) is None
    played.release(first)
    assert status_of(decide(played)) is None


def test_a_request_outlives_its_script() -> None:
    played = play(Rule(ConcurrencyThrottle(in_flight=1)))
    before = decide(played)
    played.play(played.script, now=100.0)
    played.release(before)
    assert status_of(decide(played)) is None
    assert status_of(decide(played)) == 429


def test_a_throttle_refuses_in_the_vendors_form_and_says_when_to_come_back_only_if_told_to() -> None:
    silent = decide(play(Rule(ConcurrencyThrottle(in_flight=0)))).effect
    assert isinstance(silent, Scripted)
    assert json.loads(silent.answer.body)["code"] == "Throttling.RateQuota"
    assert silent.answer.headers == ()
    telling = play(
        Rule(
            ConcurrencyThrottle(in_flight=0, form="openai", retry_after_seconds=2, retry_after_ms=1500),
        )
    )
    assert error_of(decide(telling))["code"] == "rate_limit_exceeded"
    effect = decide(telling).effect
    assert isinstance(effect, Scripted)
    assert effect.answer.headers == ((b"retry-after", b"2"), (b"retry-after-ms", b"1500"))


def test_moderation_names_the_first_item_that_contains_the_text_if_asked_to() -> None:
    arrived = arrival("good", "fine", "bad thing", "bad too")
    named = error_of(decide(play(Rule(Moderation(names_item=True), Match(text="bad"))), arrived))
    assert (named["code"], named["param"]) == ("DataInspectionFailed", "items[2].content")
    unnamed = error_of(decide(play(Rule(Moderation(), Match(text="bad"))), arrived))
    assert unnamed["param"] is None
    assert decide(play(Rule(Moderation(), Match(text="bad"))), arrival("good")).effect is None


def test_a_size_limit_that_is_kept_passes_the_request_on() -> None:
    played = play(Rule(TooLarge(max_bytes=10)), Rule(Unpaid()))
    assert status_of(decide(played, Arrival("create_items", "conv_a", body_bytes=10))) == 400
    assert status_of(decide(played, Arrival("create_items", "conv_a", body_bytes=11))) == 413


def test_a_busy_conversation_refuses_writes_before_any_rule_is_asked() -> None:
    played = play(Rule(Cut()), lock_busy=True)
    busy_write = Arrival("create_items", "conv_a", busy=True)
    assert error_of(decide(played, busy_write))["code"] == "conversation_locked"
    assert decide(played, Arrival("list_items", "conv_a", busy=True)).effect == Cut()
    assert decide(played, Arrival("create_items", "conv_a")).effect == Cut()


# -- scripts as files ----------------------------------------------------------------------------------------

TOML = """
lock_busy_conversations = true

[[rules]]
name = "slow"
effect = { kind = "lognormal_latency", median_seconds = 0.05, sigma = 1 }

[[rules]]
match = { operations = ["create_items"], conversation = "conv_a*", text = "hello" }
when = { probability = 0.03, first = 100, every = 2, from_seconds = 5, until_seconds = 60 }
effect = { kind = "cut", stores = 3, reset = true }

[[rules]]
effect = { kind = "status", status = 503, form = "html", headers = { Retry-After = "1" } }
"""
SCRIPT = FaultScript(
    (
        Rule(LognormalLatency(0.05, 1.0), name="slow"),
        Rule(
            Cut(stores=3, reset=True),
            Match(("create_items",), "conv_a*", "hello"),
            When(0.03, 100, 2, 5.0, 60.0),
        ),
        Rule(Status(status=503, form="html", headers={"Retry-After": "1"})),
    ),
    lock_busy_conversations=True,
)


def test_a_script_reads_the_same_from_toml_from_json_and_from_code(tmp_path: Path) -> None:
    toml, as_json = tmp_path / "faults.toml", tmp_path / "faults.json"
    toml.write_text(TOML)
    as_json.write_bytes(msgspec.json.encode(SCRIPT))
    assert load_faults(toml) == load_faults(as_json) == SCRIPT


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ([{}], "rules[0]: Object missing required field `effect`"),
        ([{"effect": {}}], "rules[0].effect: Object missing required field `kind`"),
        ([{"effect": {"kind": "cut"}}, {"effect": {"kind": "cat"}}], "rules[1].effect.kind: Invalid value 'cat'"),
        ([{"effect": {"kind": "cut", "store": 1}}], "rules[0].effect: Object contains unknown field `store`"),
        ([{"effect": {"kind": "cut", "stores": -1}}], 'rules[0].effect: stores must be "none", "all" or'),
        ([{"effect": {"kind": "cut", "lands_after_seconds": 2}}], "rules[0].effect: lands_after_seconds says"),
        ([{"effect": {"kind": "latency", "seconds": "1"}}], "rules[0].effect.seconds: Expected `float`"),
        ([{"effect": {"kind": "moderation"}}], "rules[0]: match.text is missing"),
        ([{"effect": {"kind": "cut"}, "when": {"probability": 2}}], "rules[0].when: probability must be"),
        ([{"effect": {"kind": "cut"}, "when": {"every": 0}}], "rules[0].when: every must be"),
        ([{"effect": {"kind": "cut"}, "when": {"from_seconds": 2, "until_seconds": 1}}], "until_seconds must be"),
        ([{"effect": {"kind": "cut"}, "match": {"operations": ["x"]}}], "rules[0].match.operations[0]: "),
    ],
)
def test_a_mistake_is_named_with_its_rule_and_its_field(rules: Any, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text(json.dumps({"rules": rules}))
    with pytest.raises(FaultScriptError) as raised:
        load_faults(path)
    assert complaint in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing, broken = tmp_path / "missing.toml", tmp_path / "broken.toml"
    broken.write_text("rules = [")
    for path in (missing, broken):
        with pytest.raises(FaultScriptError, match=path.name):
            load_faults(path)
    with pytest.raises(FaultScriptError, match="Expected `object`"):
        read_faults([])


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: When(probability=-0.1), "probability"),
        (lambda: When(first=0), "first"),
        (lambda: Match(operations=("create_item",)), "create_item"),  # type: ignore[arg-type]
        (lambda: Match(text=""), "text"),
        (lambda: Latency(-1), "seconds"),
        (lambda: UniformLatency(2, 1), "high_seconds"),
        (lambda: Status(status=99), "status"),
        (lambda: Cut(stores="some"), "stores"),  # type: ignore[arg-type]
        (lambda: Silence(lands_after_seconds=1), "lands_after_seconds"),
        (lambda: FewerItems(listed=-1), "listed"),
        (lambda: RateThrottle(requests_per_second=0), "requests_per_second"),
        (lambda: ConcurrencyThrottle(in_flight=-1), "in_flight"),
        (lambda: TooLarge(max_bytes=-1), "max_bytes"),
        (lambda: Rule(Moderation()), "match.text"),
    ],
)
def test_a_mistake_in_code_is_named_too(make: Any, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        make()


def test_every_effect_can_be_written_in_a_file() -> None:
    for effect in Effect.__args__:
        assert msgspec.inspect.type_info(effect).tag_field == "kind"  # type: ignore[attr-defined]


def on(played: FaultPlay) -> list[str]:
    return [switch.id for switches in played.switches() for switch in switches if switch.on]


def test_a_rule_that_is_switched_off_is_no_rule_and_goes_on_where_it_would_be() -> None:
    played = play(Rule(Status(status=500), when=When(first=2)), Rule(Status(status=503)))
    assert status_of(decide(played)) == 500
    played.switch("0", on=False, now=101.0)
    assert [status_of(decide(played)) for _ in range(3)] == [503] * 3
    assert on(played) == ["1"]
    played.switch("0", on=True, now=102.0)
    assert [status_of(decide(played)) for _ in range(2)] == [500, 503]


def test_an_everyday_fault_is_off_until_wanted_comes_first_and_begins_anew() -> None:
    everyday = [Rule(Status(status=429), when=When(first=1), name="once"), Rule(Latency(1.0), name="slow")]
    played = FaultPlay(FaultScript((Rule(Status(status=500)),)), now=100.0, everyday=everyday)
    assert status_of(decide(played)) == 500
    for _ in range(2):
        played.switch("everyday-0", on=True, now=100.0)
        assert [status_of(decide(played)) for _ in range(2)] == [429, 500]
        assert decide(played).rule == "rules[0]"
        played.switch("everyday-0", on=False, now=100.0)
        assert status_of(decide(played)) == 500
    assert [count["rule"] for count in played.counts()] == ["rules[0]", "once"]


def test_switching_on_what_is_on_changes_nothing() -> None:
    played = FaultPlay(now=100.0, everyday=[Rule(Status(status=429), when=When(first=1), name="once")])
    played.switch("everyday-0", on=True, now=100.0)
    assert status_of(decide(played)) == 429
    played.switch("everyday-0", on=True, now=100.0)
    assert status_of(decide(played)) is None


def test_another_script_switches_everything_else_off() -> None:
    played = FaultPlay(now=100.0, everyday=[Rule(Status(status=429), name="x")])
    played.switch("everyday-0", on=True, now=100.0)
    played.switch(LOCK_BUSY, on=True, now=100.0)
    assert on(played) == [LOCK_BUSY, "everyday-0"]
    played.play(FaultScript(), now=101.0)
    assert on(played) == []
    assert decide(played) == Decision()


def test_locking_busy_conversations_can_be_switched() -> None:
    busy = Arrival("create_items", "conv_a", busy=True)
    played = play(lock_busy=True)
    assert error_of(decide(played, busy))["code"] == "conversation_locked"
    played.switch(LOCK_BUSY, on=False, now=101.0)
    assert decide(played, busy) == Decision()


def test_there_is_no_switch_of_another_name() -> None:
    with pytest.raises(LookupError):
        play().switch("everyday-0", on=True, now=100.0)
