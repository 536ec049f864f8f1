"""Every place where an owner may end, or stand still, and what its successor makes of it.

The places are named by what the world sees; two sweeps at the end go through every step of a small run.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from model.api import CUT, SILENCE, Fated, error
from model.process import without_faststream
from model.schedules import PATIENCE_SECONDS, Run, Verdict, settings_of
from model.world import LANDING_SECONDS, POISON, REPLIES, TOTAL_SECONDS, Append, Item

from service.kafka import above

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from model.process import SimulatedProcess

SETTLE_SECONDS = 2 + TOTAL_SECONDS + LANDING_SECONDS
GOOD = Fated("good")
LATE = Fated("late", SILENCE, 1000, TOTAL_SECONDS + LANDING_SECONDS - 0.1, TOTAL_SECONDS)
LOST_ON_THE_WAY = Fated("lost on the way", SILENCE, 0, 0.0, TOTAL_SECONDS)
STORED_AND_CUT = Fated("stored and cut", CUT)
PREFIX_OF_ONE = Fated("500 of its own", error(500, "server_error"), 1)
AWAY = 20.0
"""Longer than a session."""


@pytest.fixture(autouse=True)
def _virtual_world() -> Iterator[None]:
    with without_faststream():
        yield


def scene(texts: Sequence[str], *fates: Fated, conversations: int = 1, **settings: Any) -> Run:
    """A run with these events, one after the other in so many conversations, and these fates of the first requests.

    Nobody has a lease: nothing but the ledger stands between the processes.
    """
    run = Run(1, settings=settings_of(**settings), leased=False)
    run.world.next_fates.extend(fates)
    for index, text in enumerate(texts):
        run.world.publish(0, f"conv_{index % conversations}", text)
    run.world.later(0.0, run.world.watch_group)
    return run


def until(run: Run, words: str, within_seconds: float = 120.0) -> None:
    """Let time pass until something is told in these words."""
    told: list[bool] = []
    run.world.when(words, lambda: told.append(True))
    in_time = run.go(lambda: bool(told), within_seconds)
    assert in_time, f"never: {words}"


def killed_when(run: Run, words: str, *, times: int = 1) -> tuple[float, SimulatedProcess]:
    """Start one process, kill it when this is told (the last of so many times), start another; returns when."""
    first = run.start()
    at: list[float] = []

    def told(left: int) -> None:
        if left > 1:
            run.world.when(words, lambda: told(left - 1))
            return
        run.kill(first)
        at.append(run.world.now)

    run.world.when(words, lambda: told(times))
    assert run.go(lambda: bool(at), 120), f"never: {words}"
    return at[0], run.start()


def stopped_when(run: Run, words: str) -> tuple[SimulatedProcess, SimulatedProcess]:
    """Start two processes, and stop the first for longer than its session when this is told of it."""
    first = run.start()
    run.world.when(words, lambda: run.pause(first, AWAY))
    until(run, words)
    return first, run.start()


def sent(run: Run, who: str) -> list[tuple[float, list[str]]]:
    return [(at, tags) for at, by, tags in run.world.requests if by == who]


def end(run: Run) -> Verdict:
    verdict = run.finish()
    assert verdict.sound, "\n".join([*run.world.story, *verdict.complaints()])
    return verdict


def begun_and_committed(run: Run) -> bool:
    """Whether the first conversation's attempt is open, and a commit was made after the second one was answered."""
    return run.world.committed.get(0, (-1, ""))[1].startswith("1:1:0 0:")


def owns(process: SimulatedProcess, number: int = 0) -> bool:
    """Whether a process has taken a partition over."""
    partition = process.grouper.partitions.get(number)
    return partition is not None and partition.ownership is not None


# An owner ends


def test_a_claim_without_a_commit_costs_a_claim_more() -> None:
    run = scene(["a", "b"])
    _, second = killed_when(run, '"k":"claim"')
    end(run)
    assert len(sent(run, second.life.name)) == 1


def test_an_intent_that_was_not_sent_waits_until_it_would_have_landed() -> None:
    run = scene(["a", "b"])
    at, second = killed_when(run, '"k":"intent"')
    end(run)
    assert not sent(run, "P0")
    ((again_at, tags),) = sent(run, second.life.name)
    assert tags == ["0-0", "0-1"]
    assert again_at >= at + SETTLE_SECONDS - 0.1


def test_an_attempt_that_was_stored_is_found_and_answered_at_once() -> None:
    run = scene(["a", "b"], STORED_AND_CUT)
    at, second = killed_when(run, "stored")
    assert run.go(lambda: len(run.world.outputs["replies"]) == 2, 60)
    assert run.world.now < at + SETTLE_SECONDS
    end(run)
    assert not sent(run, second.life.name)


@pytest.mark.parametrize("fate", [LATE, LOST_ON_THE_WAY], ids=lambda fate: fate.name)
def test_an_attempt_that_lands_late_is_waited_for(fate: Fated) -> None:
    run = scene(["a", "b"], fate)
    killed_when(run, "P0 sends")
    verdict = end(run)
    assert len(run.world.requests) == (1 if fate is LATE else 2)
    assert verdict.report.replies == 2


@pytest.mark.parametrize("by_broker", [True, False], ids=["log-append-time", "create-time"])
def test_the_time_an_attempt_has_had_counts_where_one_clock_tells_it(*, by_broker: bool) -> None:
    run = scene(["a", "b"])
    run.world.broker_time = by_broker
    at, second = killed_when(run, '"k":"intent"')
    run.kill(second)
    run.go(lambda: False, SETTLE_SECONDS)
    started = run.start()
    end(run)
    ((again_at, _),) = sent(run, started.life.name)
    assert (again_at < at + SETTLE_SECONDS + 8) is by_broker


def test_what_follows_a_stored_prefix_is_sent_at_once() -> None:
    run = scene(["a", "b", "c"], PREFIX_OF_ONE)
    at, second = killed_when(run, '"k":"outcome"')
    end(run)
    ((again_at, tags),) = sent(run, second.life.name)
    assert tags == ["0-1", "0-2"]
    assert again_at < at + SETTLE_SECONDS - 1


def test_a_refused_attempt_that_was_not_split_is_settled_and_refused_again() -> None:
    run = scene(["a", POISON, "c"], Fated("good", seconds=0.5))
    run.world.keeps_prefix = True
    run.world.when("P0 sends", lambda: run.world.later(0.3, run.kill, run.processes[0]))
    first = run.start()
    assert run.go(lambda: first.life.ended, 60)
    run.start()
    verdict = end(run)
    assert verdict.report.dead_letters == {"rejected": 1}


def test_between_the_parts_of_a_split_the_rest_goes_on() -> None:
    run = scene(["a", POISON, "c"])
    killed_when(run, '"k":"outcome"')
    verdict = end(run)
    assert verdict.report.dead_letters == {"rejected": 1}


def test_an_outcome_without_a_reply_is_answered_again_and_not_sent() -> None:
    run = scene(["a", "b"])
    _, second = killed_when(run, '"k":"outcome"')
    verdict = end(run)
    assert not sent(run, second.life.name)
    assert verdict.report.replies == 2


def test_a_dead_outcome_without_a_dead_letter_is_dead_lettered_and_not_sent() -> None:
    run = scene([POISON, "b"], max_items=1)
    at, second = killed_when(run, '"dead":')
    verdict = end(run)
    assert verdict.report.dead_letters == {"rejected": 1}
    assert [tags for _, tags in sent(run, second.life.name)] == [["0-1"]]
    assert at


def test_what_was_begun_before_the_last_commit_is_still_known() -> None:
    run = scene(["a"], LATE)
    first = run.start()
    until(run, "P0 sends")
    run.world.publish(0, "conv_1", "b")
    assert run.go(lambda: begun_and_committed(run), 20)
    run.kill(first)
    run.start()
    end(run)
    assert len(run.world.requests) == 2


def test_an_intent_on_its_way_during_a_commit_is_still_known() -> None:
    run = scene(["a", "b"], Fated("locked", error(400, "conversation_locked"), 0), conversations=2)
    # The second conversation's lies in the log at once; what comes behind it is acknowledged, and committed, before.
    run.world.next_appends.extend([Append(), Append(), Append(0.01, 1.4)])
    killed_when(run, "P0 sends ['0-1']")
    assert run.world.committed[0][0] == 1
    end(run)


@pytest.mark.parametrize("reason", ["killed", "replaced"])
def test_an_owner_is_replaced_any_number_of_times(reason: str) -> None:
    run = scene([f"message {index}" for index in range(30)], conversations=3)
    for _ in range(8):
        process = run.start()
        run.go(lambda process=process: bool(sent(run, process.life.name)), 30)  # type: ignore[misc]
        if reason == "killed":
            run.kill(process)
        else:
            process.stop()
            assert run.go(lambda process=process: process.life.ended, 60)  # type: ignore[misc]
    end(run)


# An owner stands still, and wakes


def test_an_intent_that_comes_after_a_claim_is_void_and_its_writer_knows() -> None:
    run = scene(["a", "b"])
    run.world.next_appends.extend([Append(), Append(12.0, 0.1)])
    first = run.start()
    run.world.when('"k":"claim"', lambda: run.world.later(0.5, run.pause, first, AWAY))
    until(run, "is stopped")
    run.start()
    end(run)
    assert not sent(run, "P0")
    assert len(run.world.requests) == 1


def test_one_who_stands_still_between_acknowledgement_and_request_does_not_send() -> None:
    run = scene(["a", "b"])
    stopped_when(run, '"k":"intent"')
    until(run, "P0 withdraws")
    end(run)
    assert not sent(run, "P0")


def test_one_who_stands_still_during_a_request_says_nothing_of_it() -> None:
    run = scene(["a", "b"])
    first, second = stopped_when(run, "P0 sends")
    until(run, "P0 wakes")
    verdict = end(run)
    assert first.noted.counts["ledger_recoveries_total", "lost"] == 1
    assert not sent(run, second.life.name)
    assert verdict.report.replies == 2


def test_one_who_stands_still_before_its_attempt_begins_counts_from_when_it_began() -> None:
    """At every step of it: an attempt that is said to be older than it is would be held for landed too soon."""
    through_every_step(lambda: scene(["a", "b"], LATE), lambda run, process: run.pause(process, 8.0), successor=False)


def test_a_void_intent_is_void_also_where_its_successors_claim_is_not_read_any_more() -> None:
    run = scene(["ok", "ok"], max_items=1)
    run.world.next_appends.extend([Append(), Append(), Append(), Append(30.0, 0.1)])
    first = run.start()
    until(run, '"k":"outcome"')
    run.go(lambda: run.world.committed[0][0] == 1, 10)
    run.go(lambda: False, 1)
    run.kill(first)
    second = run.start()
    second_wrote = "P1 wrote"
    until(run, second_wrote)
    run.go(lambda: run.world.committed[0][1] == "1:4:3", 10)
    run.kill(second)
    assert [tags for _, tags in sent(run, "P1")] == []
    until(run, "P0 wrote")
    run.world.write_elsewhere("conv_0", "ok")
    run.start()
    verdict = end(run)
    assert verdict.report.replies >= 2


# What the log and the group answer


def test_a_claim_whose_place_is_not_told_is_written_again() -> None:
    run = scene(["a", "b"], STORED_AND_CUT)
    run.world.next_appends.extend([Append(), Append(), Append(placeless=True)])
    killed_when(run, "stored")
    end(run)
    assert len(run.world.requests) == 1


def claims(run: Run, number: int = 0) -> int:
    return sum(b'"k":"claim"' in record.value for record in run.world.ledger[number])


def test_one_who_may_not_commit_claims_no_more() -> None:
    """At any step: who wakes within its take-over must not take the partition from its new owner."""

    def few_claims(run: Run) -> None:
        assert claims(run) <= 3, "\n".join(run.world.story)

    through_every_step(lambda: scene(["a", "b"]), lambda run, process: run.pause(process, AWAY), judged=few_claims)


def test_one_who_gives_a_partition_up_does_not_take_it_over_again() -> None:
    run = Run(1, partitions=2, settings=settings_of(), leased=False)
    run.world.publish(1, "conv_0", "a")
    run.world.next_fates.append(Fated("good", seconds=3.9))
    # While it gives the partition up for one who joins, the outcome of what it had in flight cannot be written.
    run.world.next_appends.extend([Append(), Append(), Append(), Append(None, None)])
    run.start()
    until(run, "P0 sends")
    second = run.start()
    assert run.go(lambda: owns(second, 1), 60)
    run.go(lambda: False, 30)
    assert claims(run, 1) == 2, "\n".join(run.world.story)
    end(run)


def test_an_open_intent_is_known_to_the_owner_after_the_next_as_well() -> None:
    run = scene(["a", "b"], LATE)
    _, second = killed_when(run, "P0 sends")
    assert run.go(lambda: owns(second), 30)
    run.kill(second)
    run.start()
    end(run)
    assert len(run.world.requests) == 1


def test_a_topic_made_anew_is_not_taken_for_the_old_one() -> None:
    run = scene(["a", "b", "c"], max_items=1)
    run.world.next_fates.extend([GOOD, LOST_ON_THE_WAY])
    killed_when(run, "lost on the way")
    run.kill(run.processes[-1])
    run.world.events[0].clear()
    run.world.committed.clear()
    run.world.conversations["conv_0"] = [item for item in run.world.conversations["conv_0"] if not item.tag]
    for output in run.world.outputs.values():
        output.clear()
    for text in ("a", "b", "d"):
        run.world.publish(0, "conv_0", text, at=100)
    run.start()
    end(run)


def test_an_attempt_of_a_topic_made_anew_is_not_taken_for_the_new_topics() -> None:
    run = scene(["a"], STORED_AND_CUT)
    _, second = killed_when(run, "stored")
    run.kill(second)
    run.world.events[0].clear()
    run.world.committed.clear()
    run.world.publish(0, "conv_0", "a", at=100)
    run.start()
    assert run.go(run.settled, 100)
    assert len(run.world.requests) == 2
    run.loop.close()


def test_one_who_has_a_partition_again_has_forgotten_its_cursors() -> None:
    run = Run(1, partitions=2, settings=settings_of(), leased=False)
    run.world.publish(1, "conv_0", "hello")
    first = run.start()
    assert run.go(run.settled, 20)
    second = run.start()
    assert run.go(lambda: owns(second, 1), 60)
    run.world.publish(1, "conv_0", "ok")
    assert run.go(run.settled, 20)
    second.stop()
    assert run.go(lambda: owns(first, 1), 60)
    run.world.next_fates.append(LOST_ON_THE_WAY)
    run.world.publish(1, "conv_0", "ok")
    assert run.go(run.settled, 60)
    assert [item.tag for item in run.world.conversations["conv_0"]] == ["1-0", "1-1", "1-2"]
    run.loop.close()


def test_a_ledger_cut_short_stops_the_partition_until_it_is_accepted() -> None:
    run = scene(["a"], LATE)
    first = run.start()
    until(run, "P0 sends")
    run.world.publish(0, "conv_1", "b")
    assert run.go(lambda: begun_and_committed(run), 20)
    run.kill(first)
    run.world.ledger_begins[0] = 2
    second = run.start()
    assert not run.go(run.settled, 100)
    assert second.health.ready() == (False, {"status": "partition 0: ledger_gap", "circuit": "closed"})
    assert not sent(run, second.life.name)
    run.kill(second)
    run.settings.kafka.ledger_accept_gap = datetime.now(UTC) - timedelta(hours=1)
    third = run.start()
    assert not run.go(run.settled, 100)
    assert third.health.ready()[1]["status"] == "partition 0: ledger_gap", "what was accepted once is over"
    run.kill(third)
    run.settings.kafka.ledger_accept_gap = datetime.now(UTC) + timedelta(hours=1)
    fourth = run.start()
    assert run.go(run.settled, PATIENCE_SECONDS)
    run.kill(fourth)
    run.settings.kafka.ledger_accept_gap = None
    run.world.publish(0, "conv_0", "c")
    fifth = run.start()
    assert run.go(run.settled, 100), "from then on nothing has to be accepted"
    assert fifth.health.ready()[0]
    run.loop.close()


def test_a_ledger_that_lost_its_end_teaches_no_cursors() -> None:
    """A leader that had not everything: what is left looks whole, and its cursors are old."""
    run = scene(["hello"])
    first = run.start()
    assert run.go(run.settled, 20)
    begun = len(run.world.ledger[0])
    run.world.publish(0, "conv_0", "ok")
    assert run.go(run.settled, 20)
    run.kill(first)
    del run.world.ledger[0][begun:]
    repeated = run.world.publish(0, "conv_0", "ok")
    run.world.next_fates.append(LOST_ON_THE_WAY)
    run.settings.kafka.ledger_accept_gap = datetime.now(UTC) + timedelta(hours=1)
    run.start()
    assert run.go(run.settled, 100)
    assert [item.tag for item in run.world.conversations["conv_0"]] == ["0-0", "0-1", repeated]
    run.loop.close()


def test_a_partition_without_its_twin_waits_for_it() -> None:
    run = scene(["a"])
    missing = run.world.ledger.pop(0)
    process = run.start()
    assert not run.go(run.settled, 50)
    assert process.health.ready()[1]["status"] == "partition 0: ledger_twin_missing"
    run.world.ledger[0] = missing
    assert run.go(run.settled, 60)
    assert process.health.ready()[0]
    end(run)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"k":"claim","v":1,"group":"other","topic":"events","owner":"x"}', "ledger_shared"),
        (b'{"k":"claim","v":2,"group":"convoy","topic":"events","owner":"x"}', "ledger_unreadable"),
        (b"hello", "ledger_unreadable"),
        (b'{"k":"outcome","c":0,"conv":"conv_0","after":"","ev":[[0,"00"]],"ids":[]}', "ledger_unreadable"),
    ],
)
def test_a_ledger_that_others_write_to_stops_the_partition(value: bytes, reason: str) -> None:
    run = scene(["a"])
    run.world.append(0, value)
    process = run.start()
    assert not run.go(run.settled, 200)
    assert process.health.ready()[1]["status"] == f"partition 0: {reason}"
    assert len(run.world.ledger[0]) == 2, "it claims once and waits"
    assert not run.world.requests
    run.loop.close()


def test_what_was_settled_before_there_was_a_ledger_is_not_sent_again() -> None:
    run = scene(["a", "b", "c", "d"], max_items=1, conversations=4)
    for index in (1, 3):
        run.world.write_elsewhere(f"conv_{index}", "")
    run.world.committed[0] = (0, above.write(0, {1, 3}))
    first = run.start()
    until(run, "P0 sends")
    run.kill(first)
    run.start()
    assert run.go(run.settled, 100)
    assert {tag for _, _, tags in run.world.requests for tag in tags} == {"0-0", "0-2"}
    run.loop.close()


def test_a_ledger_that_was_off_for_a_while_teaches_no_cursors() -> None:
    run = scene(["hello"])
    first = run.start()
    assert run.go(run.settled, 20)
    run.kill(first)
    # A process without a ledger delivers and commits the next event. Then comes one in the same words.
    off = run.world.publish(0, "conv_0", "ok")
    run.world.store("conv_0", [Item("msg_off", "user", "ok", off)])
    run.world.committed[0] = (2, "")
    on = run.world.publish(0, "conv_0", "ok")
    run.world.next_fates.append(LOST_ON_THE_WAY)
    run.start()
    assert run.go(run.settled, 100)
    assert [item.tag for item in run.world.conversations["conv_0"]] == ["0-0", off, on]
    run.loop.close()


def test_two_conversations_more_than_are_remembered_are_all_written_to() -> None:
    run = scene([f"message {index}" for index in range(12)], conversations=4)
    run.known_conversations = 0
    run.start()
    end(run)


def test_a_late_answer_says_nothing_of_what_came_after_it() -> None:
    """The partition is lost and taken over again by the same process while a request is under way."""
    run = scene(["ok"], Fated("good", seconds=3.9))
    first = run.start()
    until(run, "P0 sends")
    first.life.do(lambda: first.intake.lost(first.grouper.partitions[0]))
    run.world.publish(0, "conv_0", "ok")
    assert run.go(run.settled, 3)
    run.go(lambda: False, 5)
    # By now the answer has come. Behind the item it names, the second message would be taken for the third.
    run.world.next_fates.append(LOST_ON_THE_WAY)
    run.world.publish(0, "conv_0", "ok")
    assert run.go(run.settled, 60)
    end(run)


def test_what_cannot_be_read_is_not_given_up() -> None:
    run = scene(["hello"], GOOD, STORED_AND_CUT, max_attempts=1, max_age_seconds=0.1)
    run.start()
    assert run.go(run.settled, 20)

    def no_more_reading() -> None:
        run.world.weather.read_fails = 1.0

    run.world.when("P0 sends ['0-1']", no_more_reading)
    run.world.publish(0, "conv_1", "a")
    for number in range(20):
        run.world.publish(0, "conv_0", f"others get through: {number}")
        run.go(lambda: False, 2)
    verdict = end(run)
    assert not verdict.report.dead_letters


def test_a_refusal_is_read_back_each_time() -> None:
    """The API stores nothing of the first request it refuses, and a prefix of the next."""
    run = scene(["a", "b", POISON, "d", "e"], max_items=5)

    def keep_prefix() -> None:
        run.world.keeps_prefix = True

    run.world.when("P0 sends ['0-0'] to", keep_prefix)
    run.start()
    end(run)
    assert run.world.keeps_prefix


# Every step


def through_every_step(
    make: Callable[[], Run],
    happens: Callable[[Run, SimulatedProcess], None],
    *,
    successor: bool = True,
    judged: Callable[[Run], None] = lambda run: None,
) -> int:
    """Play a run again and again, each time with something happening before another of the next owner's steps."""
    step = 0
    while True:
        run = make()
        first = run.start()
        done: list[bool] = []

        def now(run: Run = run, first: SimulatedProcess = first, done: list[bool] = done) -> None:
            done.append(True)
            happens(run, first)

        first.life.at_step[step] = now
        assert run.go(lambda run=run, done=done: bool(done) or run.settled(), 120)  # type: ignore[misc]
        if not done:
            run.loop.close()
            return step
        if successor:
            run.start()
        verdict = run.finish()
        assert verdict.sound, "\n".join([*run.world.story, f"step {step}", *verdict.complaints()])
        judged(run)
        step += 1


NASTY = {
    "good": (GOOD, GOOD),
    "late": (LATE, GOOD),
    "found": (STORED_AND_CUT, GOOD),
    "a prefix": (PREFIX_OF_ONE, LATE),
    "never": (LOST_ON_THE_WAY, LATE),
}


@pytest.mark.parametrize("fates", NASTY.values(), ids=NASTY.keys())
def test_killed_at_any_step_nothing_is_lost_or_doubled(fates: Sequence[Fated]) -> None:
    steps = through_every_step(
        lambda: scene(["a", POISON, "c", "ok", "ok"], *fates, conversations=2, max_items=2),
        lambda run, process: run.kill(process),
    )
    assert steps > 100


@pytest.mark.parametrize("fates", NASTY.values(), ids=NASTY.keys())
def test_stopped_at_any_step_and_woken_nothing_is_lost_or_doubled(fates: Sequence[Fated]) -> None:
    steps = through_every_step(
        lambda: scene(["a", POISON, "c", "ok", "ok"], *fates, conversations=2, max_items=2),
        lambda run, process: run.pause(process, AWAY),
    )
    assert steps > 100


def stopped_amid() -> Run:
    """One process, stopped while the second conversation waits for an attempt to land: the first one is through."""
    run = scene([f"message {index}" for index in range(12)], LOST_ON_THE_WAY, conversations=2, max_items=1)
    first = run.start()
    assert run.go(lambda: len(run.world.outputs[REPLIES]) == 6, 20)
    first.stop()
    assert run.go(lambda: first.life.ended, 20)
    assert run.world.committed[0][0] == 1
    return run


def first_answered_once(run: Run) -> None:
    places = [json.loads(reply.value or b"")["source"]["offset"] for reply in run.world.outputs[REPLIES]]
    assert sorted(place for place in places if not place % 2) == [0, 2, 4, 6, 8, 10], "\n".join(run.world.story)


def test_what_was_settled_before_a_stop_is_answered_once_wherever_its_successor_ends() -> None:
    through_every_step(stopped_amid, lambda run, process: run.kill(process), judged=first_answered_once)


def test_what_was_settled_before_a_stop_is_answered_once_also_where_its_successor_read_a_part() -> None:
    run = stopped_amid()
    second = run.start()

    def hold() -> None:
        second.intake.held = lambda: True

    run.world.when("P1 reads", hold)
    until(run, "P1 reads")
    run.go(lambda: False, 3)
    assert second.consumer.positions[0] < 12
    run.kill(second)
    end(run)
    first_answered_once(run)
