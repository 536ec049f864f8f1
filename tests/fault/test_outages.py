"""The API is away, or lets nobody in: everything waits, nothing is given up, and it goes on by itself."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from fault_run import POSITIONS_SECONDS, messages, named, soak
from service_process import until

from service.emulator.faults import FaultScript, Html, Rule, Silence, Status, Unauthorized, Unpaid, When, WrongPath

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fault_run import Ended, FaultRun, MakeRun

    from service.emulator.faults import Effect

OUTAGE_SECONDS = soak(120, 8)
CLOSED_SECONDS = soak(15, 2)
SILENT_SECONDS = soak(120, 14)
ANSWER_WITHIN_SECONDS = 8
"""A request to the silent API hangs for longer than the recovery may take."""
RECOVERY_SECONDS = 5.0
"""From the healing of the API until the last conversation that waited is served again."""
PER_SECOND = 100.0
CONVERSATIONS = named("away", 100)
PARTITIONS = 4
HEALTHY = FaultScript()
FOR_AN_OPERATOR: dict[str, tuple[Effect, str]] = {
    "401": (Unauthorized(), "key_rejected"),
    "a gateway's 404": (WrongPath(), "wrong_url"),
    "302": (Status(status=302, form="html", headers={"location": "https://login.example/"}), "wrong_url"),
    "Arrearage": (Unpaid(), "unpaid_or_quota"),
    "no quota": (Status(status=429, code="insufficient_quota", type="insufficient_quota"), "unpaid_or_quota"),
    "403 for all": (Status(status=403, code="access_denied", message="Not allowed."), "forbidden"),
    "a page with 200": (Html(), "unexpected_answer"),
    "a firewall's 400": (Html(status=400), "unexpected_answer"),
    "a firewall's 403": (Html(status=403), "forbidden"),
}
"""What somebody has to mend, and the reason that the circuit is to give."""
MINUTES_TO_MEND = frozenset({"401", "a gateway's 404"})
"""What is seen most: a key that was withdrawn, a base URL that is wrong."""


async def through_an_outage(
    run: FaultRun,
    reason: str,
    seconds: float,
    *,
    begin: Callable[[], Awaitable[object]],
    heal: Callable[[], Awaitable[float]],
) -> float:
    """Publish before, during and after an outage, and watch what the service shows; returns when it was healed."""
    published = len(run.published) // len(CONVERSATIONS)
    turns = int(PER_SECOND * (seconds + 2) / len(CONVERSATIONS))
    delivered = await run.service.metric("delivered_items_total")

    async def delivers() -> bool:
        return await run.service.metric("delivered_items_total") > delivered

    async with run.traffic(messages(CONVERSATIONS, turns, first=published), PER_SECOND):
        await until("deliveries", delivers)
        await begin()
        began = time.monotonic()
        await assert_paused_for(run, reason)
        while time.monotonic() < began + seconds:
            assert await run.service.metric("dead_letters_total") == 0
            assert (await run.service.get("/livez")).status_code == 200
            await asyncio.sleep(POSITIONS_SECONDS)
        assert (await run.service.status())["circuit"]["reason"] == reason
        healed_at = await heal()
    await run.finished()
    assert await is_open_for(run, "closed")
    assert await run.service.metric("circuit_state") == 0
    return healed_at


async def is_open_for(run: FaultRun, reason: str) -> bool:
    return bool((await run.service.status())["circuit"]["reason"] == reason)


async def assert_paused_for(run: FaultRun, reason: str) -> None:
    """The service says that it waits, and for what; it is alive and ready all the same."""

    async def tells() -> bool:
        return (
            await is_open_for(run, reason)
            and bool((await run.service.status())["circuit"]["detail"])
            and await run.service.metric("circuit_state", reason=reason) == 1
            and await run.service.metric("paused_partitions") == PARTITIONS
        )

    # In one look, and not one after the other: what was sent before the outage and is answered in it
    # closes the circuit once more, for as long as the next refusal takes.
    await until(f"a circuit open for {reason}, and no partition read", tells)
    assert (await run.service.get("/livez")).status_code == 200
    assert await run.service.readiness() == (200, "ready")


async def test_an_api_that_is_away_is_waited_for_and_nothing_is_given_up(fault_run: MakeRun) -> None:
    """First a gateway says so, then nobody answers at its port."""
    failing = FaultScript(rules=(Rule(Status(status=503, form="html")),))
    async with fault_run(partitions=PARTITIONS, gated=True) as run:
        await run.start()
        fail, heal = partial(run.api.play, failing), partial(run.api.play, HEALTHY)
        healed_at = await through_an_outage(run, "api_unavailable", OUTAGE_SECONDS, begin=fail, heal=heal)
        opened_at = await through_an_outage(
            run, "api_unavailable", OUTAGE_SECONDS, begin=run.gate.close, heal=run.gate.open
        )

        def recoveries(ended: Ended) -> list[float]:
            return [run.recovery_seconds(ended.arrivals, at) for at in (healed_at, opened_at)]

        ended = await run.end(
            f"a gateway's 503 for {OUTAGE_SECONDS:g} s, later connections refused for as long",
            recovery=lambda ended: ", ".join(f"{seconds:.1f} s" for seconds in recoveries(ended)),
        )
        ended.assert_sound()
        assert not ended.letters
        assert max(recoveries(ended)) < RECOVERY_SECONDS, recoveries(ended)


async def test_an_api_that_lets_nobody_in_is_waited_for_and_nothing_is_given_up(fault_run: MakeRun) -> None:
    """One thing after the other that somebody has to mend, until somebody did."""
    async with fault_run(partitions=PARTITIONS) as run:
        await run.start()
        healed_at: dict[str, float] = {}
        lasted = {what: soak(120, 2) if what in MINUTES_TO_MEND else CLOSED_SECONDS for what in FOR_AN_OPERATOR}
        for what, (effect, reason) in FOR_AN_OPERATOR.items():
            healed_at[what] = await through_an_outage(
                run,
                reason,
                lasted[what],
                begin=partial(run.api.play, FaultScript(rules=(Rule(effect),))),
                heal=partial(run.api.play, HEALTHY),
            )

        def recoveries(ended: Ended) -> dict[str, float]:
            return {what: run.recovery_seconds(ended.arrivals, at) for what, at in healed_at.items()}

        ended = await run.end(
            ", ".join(f"{what} for {seconds:g} s" for what, seconds in lasted.items()),
            recovery=lambda ended: ", ".join(f"{seconds:.1f} s" for seconds in recoveries(ended).values()),
        )
        ended.assert_sound()
        assert not ended.letters
        assert max(recoveries(ended).values()) < RECOVERY_SECONDS, recoveries(ended)


async def test_an_api_down_when_many_cold_conversations_wait_is_back_in_use_in_seconds(fault_run: MakeRun) -> None:
    """Hundreds of conversations to be asked for their cursors first must not stand between a probe and a write."""
    failing = FaultScript(rules=(Rule(Status(status=503, form="html")),))
    conversations = named("cold", 500)
    async with fault_run(failing, partitions=PARTITIONS, settings={"DELIVERY__READ_CURSOR_FIRST": "true"}) as run:
        await run.publish(messages(conversations, 2))
        await run.start()
        await assert_paused_for(run, "api_unavailable")
        healed_at = await run.api.play(HEALTHY)
        ended = await run.end("a gateway's 503 at the start, 500 cold conversations", healed_at=healed_at)
        ended.assert_sound()
        assert not ended.letters
        assert run.recovery_seconds(ended.arrivals, healed_at) < RECOVERY_SECONDS


async def test_an_api_that_never_answers_is_waited_for_and_doubles_nothing(fault_run: MakeRun) -> None:
    """Half of it is stored all the same, and late: what is absent may still land until it has settled."""
    silent = FaultScript(
        rules=(
            Rule(Silence(stores="all", lands_after_seconds=2.5), when=When(every=2), name="stored late"),
            Rule(Silence(), name="not stored"),
        )
    )
    settings = {"API__TOTAL_TIMEOUT_SECONDS": str(ANSWER_WITHIN_SECONDS), "DELIVERY__SETTLE_SECONDS": "10"}
    async with fault_run(partitions=PARTITIONS, settings=settings) as run:
        await run.start()
        healed_at = await through_an_outage(
            run,
            "api_unavailable",
            SILENT_SECONDS,
            begin=partial(run.api.play, silent),
            heal=partial(run.api.play, HEALTHY),
        )
        ended = await run.end(
            f"silence for {SILENT_SECONDS:g} s, some of it stored late",
            healed_at=healed_at,
            a_request_is_given_up_after=f"{ANSWER_WITHIN_SECONDS} s",
        )
        ended.assert_sound()
        assert not ended.letters
        assert run.recovery_seconds(ended.arrivals, healed_at) < RECOVERY_SECONDS


async def test_a_single_conversation_keeps_trying_through_an_outage_and_is_never_given_up(fault_run: MakeRun) -> None:
    """With nobody to compare with, no number of failed attempts proves that the trouble is its own."""
    failing = FaultScript(rules=(Rule(Status(status=503, form="html")),))
    async with fault_run(
        failing, settings={"DELIVERY__MAX_ATTEMPTS": "2", "DELIVERY__BACKOFF_MAX_SECONDS": "1"}
    ) as run:
        await run.publish(messages(["conv_alone"], 30))
        await run.start()

        async def has_tried() -> bool:
            retries: float = await run.service.metric("retries_total")
            return retries >= 10

        await until("ten failed requests", has_tried)
        assert (await run.service.get("/livez")).status_code == 200
        healed_at = await run.api.play(HEALTHY)
        ended = await run.end("a single conversation, 503 until it was tried ten times", healed_at=healed_at)
        ended.assert_sound()
        assert not ended.letters
        assert run.recovery_seconds(ended.arrivals, healed_at) < RECOVERY_SECONDS
