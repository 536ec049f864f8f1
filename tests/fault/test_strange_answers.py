"""Answers that are none, say too little, come too late or refuse one conversation alone; the others go on meanwhile."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from fault_run import Message, messages, named
from service_process import until

from service.emulator.faults import (
    Cut,
    Drip,
    FaultScript,
    FewerItems,
    Garbage,
    HalfJson,
    Html,
    Lock,
    Match,
    Rule,
    Silence,
    Status,
    TooLarge,
    When,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fault_run import Ended, MakeRun

    from service.emulator.contract import Operation
    from service.emulator.faults import Effect

TURNS = 30
"""More than a batch for each conversation, so that something waits behind what is in trouble."""
GIVEN_UP_TURNS = 8
TWICE = When(first=2)
OVERCOME: dict[str, Effect] = {
    "silence_nothing_stored": Silence(),
    "silence_all_stored": Silence(stores="all"),
    "silence_landing_late": Silence(stores="all", lands_after_seconds=3.2),
    "drip_beyond_the_deadline": Drip(30),
    "cut_nothing_stored": Cut(),
    "cut_some_stored": Cut(stores=7),
    "cut_all_stored": Cut(stores="all"),
    "cut_landing_late": Cut(stores="all", lands_after_seconds=2.5),
    "cut_some_landing_late": Cut(stores=7, lands_after_seconds=2.5, reset=True),
    "gateway_timeout_landing_late": Status(status=504, form="html", stores="all", lands_after_seconds=3),
    "own_500_some_stored": Status(status=500, stores=7),
    "garbage_nothing_stored": Garbage(stores="none"),
    "garbage_all_stored": Garbage(),
    "page_nothing_stored": Html(),
    "page_all_stored": Html(stores="all"),
    "half_an_answer": HalfJson(),
    "half_an_answer_and_a_cut": HalfJson(cut=True),
    "fewer_listed_all_stored": FewerItems(listed=3),
    "fewer_listed_and_stored": FewerItems(listed=3, stores=3),
    "none_listed_all_stored": FewerItems(listed=0),
    "locked": Lock(),
    "conflict": Status(status=409, code="conflict"),
    "request_timeout": Status(status=408, code="timeout"),
    "named_by_a_setting": Status(status=400, code="Vendor.TryAgain"),
}
"""What goes wrong twice, for a conversation each, and is overcome: every message arrives, once and in order."""
GIVEN_UP: dict[str, Effect] = {
    "conversation_not_found": Status(status=404, code="conversation_not_found", message="No such conversation."),
    "forbidden": Status(status=403, code="access_denied", message="Not yours."),
    "exhausted": Status(status=500),
}
"""What does not end, for a conversation each: by the reason that its dead letters give."""
MAX_ATTEMPTS = 4
BODY_BYTES = 1500
LARGE = "x" * BODY_BYTES
FILLING = "x" * (BODY_BYTES // 8)
LARGE_AT = frozenset({4, 21})
BLOCKED = "' OR 1=1 --"
BLOCKED_AT = frozenset({0, 9, 25})


def script() -> FaultScript:
    """All of it; and as long as the API is at work on a write, or has yet to store it, it locks the conversation."""
    write: tuple[Operation, ...] = ("create_items",)
    return FaultScript(
        rules=(
            *(Rule(effect, Match(write, f"conv_{name}"), TWICE, name) for name, effect in OVERCOME.items()),
            *(Rule(effect, Match(write, f"conv_{name}"), name=name) for name, effect in GIVEN_UP.items()),
            Rule(TooLarge(BODY_BYTES), Match(write, "conv_large"), name="large"),
            Rule(Html(status=403, title="Blocked"), Match(write, "conv_firewalled", text=BLOCKED), name="firewalled"),
        ),
        lock_busy_conversations=True,
    )


def large_messages() -> Iterator[Message]:
    """No twenty of these fit a request, and two fit none."""
    for turn in range(TURNS):
        yield Message("conv_large", f"large {turn} {LARGE if turn in LARGE_AT else FILLING}")


def messages_with_words_a_firewall_blocks() -> Iterator[Message]:
    """What it says, with a page of its own, holds for a request and is meant for an item."""
    for turn in range(TURNS):
        yield Message("conv_firewalled", f"firewalled {turn} {BLOCKED if turn in BLOCKED_AT else ''}")


@pytest.mark.parametrize("read_cursor_first", ["true", "false"])
async def test_what_is_odd_about_one_conversation_is_overcome_or_given_up_alone(
    fault_run: MakeRun, read_cursor_first: str
) -> None:
    settings = {
        "DELIVERY__READ_CURSOR_FIRST": read_cursor_first,
        "DELIVERY__MAX_ATTEMPTS": str(MAX_ATTEMPTS),
        "DELIVERY__MAX_AGE_SECONDS": "1",
        "DELIVERY__VERDICTS": '{"Vendor.TryAgain": "transient"}',
        "DELIVERY__BACKOFF_INITIAL_SECONDS": "0.2",
        "DELIVERY__BACKOFF_MAX_SECONDS": "0.5",
    }
    async with fault_run(script(), settings=settings) as run:
        over = False

        async def all_given_up() -> bool:
            given_up: float = await run.service.metric("dead_letters_total")
            return given_up >= len(GIVEN_UP) * GIVEN_UP_TURNS + len(LARGE_AT) + len(BLOCKED_AT)

        await run.start()
        # Others get through all the while: what is odd is not the host's, and only so it can be given up.
        well = itertools.takewhile(lambda _: not over, messages(named("well", 40), turns=10_000))
        async with run.traffic(well, per_second=100):
            await run.publish(messages([f"conv_{name}" for name in OVERCOME], TURNS))
            await run.publish(messages([f"conv_{name}" for name in GIVEN_UP], GIVEN_UP_TURNS))
            await run.publish(large_messages())
            await run.publish(messages_with_words_a_firewall_blocks())
            await until("the end of all that is to be given up", all_given_up, within_seconds=60)
            over = True
        ended = await run.end(
            "odd answers" + (", cursor read first" if read_cursor_first == "true" else ""),
            kinds=str(len(OVERCOME) + len(GIVEN_UP) + 2),
        )
        ended.assert_sound()

        expected = {(f"large {turn} {LARGE}", "too_large") for turn in LARGE_AT}
        expected |= {(f"firewalled {turn} {BLOCKED}", "forbidden") for turn in BLOCKED_AT}
        for name in GIVEN_UP:
            expected |= {(f"conv_{name} says {turn}", name) for turn in range(GIVEN_UP_TURNS)}
        assert ended.dead() == expected
        for name in OVERCOME:
            assert ended.asked(name) == 2, name
            assert ended.held(f"conv_{name}") == [f"conv_{name} says {turn}" for turn in range(TURNS)]
        assert_given_up_as_it_should_be(ended)


def assert_given_up_as_it_should_be(ended: Ended) -> None:
    letters = [letter for letter in ended.letters if letter.reason == "exhausted"]
    assert min(int(letter.headers["dlq.attempts"]) for letter in letters) >= MAX_ATTEMPTS
    assert {letter.headers["dlq.fate"] for letter in letters} == {"not_stored"}
    assert {letter.headers["dlq.http.status"] for letter in ended.letters if letter.reason == "forbidden"} == {"403"}
    assert ended.asked("conversation_not_found") <= GIVEN_UP_TURNS // 2, "a request a batch"
