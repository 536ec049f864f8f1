"""A conversation that is locked waits alone."""

from __future__ import annotations

import statistics
from functools import partial
from typing import TYPE_CHECKING

from fault_run import messages, named, soak
from service_process import until
from switches import SOAK

from service.emulator.faults import FaultScript, Lock, Match, Rule

if TYPE_CHECKING:
    from fault_run import Ended, FaultRun, MakeRun

LOCKED_SECONDS = soak(20, 3)
ROUNDS = 3
PER_SECOND = 150.0
CONVERSATIONS = named("busy", 100)
TURNS = round(LOCKED_SECONDS * PER_SECOND / len(CONVERSATIONS))
LOCKED = CONVERSATIONS[0]
MARGIN, MARGIN_SECONDS = (0.1, 0.010) if SOAK else (0.5, 0.050)
"""What the others' 99th percentile may be longer while one is locked; of a few seconds it is a rougher measure."""
LOCK = FaultScript(rules=(Rule(Lock(), Match(operations=("create_items",), conversation=LOCKED), name="locked"),))
NO_LOCK = FaultScript()


async def test_while_a_conversation_is_locked_the_others_wait_no_longer(fault_run: MakeRun) -> None:
    """Locked and not in turns, so that whatever else this machine does meets both."""
    async with fault_run() as run:
        await run.start()
        async with run.publishing() as publisher:
            for span in range(1 + 2 * ROUNDS):
                # The first span warms up: its events find connections that are not open yet. None begins before all of
                # the last one's are delivered: a back-off that reaches into it would hide the lock.
                await run.api.play(NO_LOCK)
                await until("delivery of the last span", partial(all_delivered, run, span * TURNS * len(CONVERSATIONS)))
                await run.api.play(LOCK if is_locked(span) else NO_LOCK)
                tried = await run.service.metric("retries_total", verdict="busy")
                await publisher.steadily(messages(CONVERSATIONS, TURNS, first=span * TURNS), PER_SECOND)
                tries = await run.service.metric("retries_total", verdict="busy") - tried
                assert tries >= 2 * is_locked(span)
        await run.api.play(NO_LOCK)

        def p99(ended: Ended, *, locked: bool) -> float:
            return statistics.median(
                p99_of_the_others(run, ended, span) for span in range(1, 1 + 2 * ROUNDS) if is_locked(span) == locked
            )

        ended = await run.end(
            f"one conversation locked for {LOCKED_SECONDS:g} s, {ROUNDS} times",
            p99_of_the_others=lambda ended: f"{1000 * p99(ended, locked=True):.0f} ms",
            without_a_lock=lambda ended: f"{1000 * p99(ended, locked=False):.0f} ms",
        )
        ended.assert_sound()
        assert not ended.letters
        without = p99(ended, locked=False)
        assert p99(ended, locked=True) <= without + max(MARGIN * without, MARGIN_SECONDS)


async def test_those_who_wait_hold_no_permit(fault_run: MakeRun) -> None:
    """Far more conversations are locked than requests may be in flight; the others do not notice."""
    locked, others = named("locked", 30), named("others", 30)
    everybody = [name for pair in zip(locked, others, strict=True) for name in pair]
    script = FaultScript(rules=(Rule(Lock(), Match(operations=("create_items",), conversation="conv_locked_*")),))
    async with fault_run(script, settings={"DELIVERY__MAX_CONCURRENCY": "4"}) as run:
        await run.publish(messages(everybody, 20))
        await run.start()
        await until("delivery of what is not locked", partial(all_delivered, run, 20 * len(others)))
        status = await run.service.status()
        assert len(locked) == sum(partition["conversations"] for partition in status["partitions"].values())
        assert status["circuit"]["reason"] == "closed"
        healed_at = await run.api.play(NO_LOCK)
        ended = await run.end("30 of 60 conversations locked, 4 requests in flight at most", healed_at=healed_at)
        ended.assert_sound()
        assert not ended.letters


async def all_delivered(run: FaultRun, count: int) -> bool:
    delivered: float = await run.service.metric("delivered_items_total")
    return delivered == count


def is_locked(span: int) -> bool:
    """Whether the conversation is locked in this part of the run."""
    return span > 0 and span % 2 == 0


def p99_of_the_others(run: FaultRun, ended: Ended, span: int) -> float:
    """Seconds from publishing to storing, of all but the locked conversation, in this part of the run."""
    texts = {message.text for message in messages(CONVERSATIONS[1:], TURNS, first=span * TURNS)}
    waits = [arrival.at - run.published_at[arrival.text] for arrival in ended.arrivals if arrival.text in texts]
    return statistics.quantiles(waits, n=100)[98]
