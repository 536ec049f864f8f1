"""A little of everything, all the time: errors, throttling and cuts by chance, before and after storing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fault_run import messages, named, soak
from service_process import until

from service.emulator.faults import Cut, FaultScript, Rule, Status, When

if TYPE_CHECKING:
    from fault_run import MakeRun

TROUBLE = FaultScript(
    rules=(
        Rule(Status(status=500), when=When(probability=0.0125), name="500, nothing stored"),
        Rule(Status(status=500, stores="all"), when=When(probability=0.0125), name="500, stored"),
        Rule(Status(status=500, form="html"), when=When(probability=0.0125), name="a gateway's 500, nothing stored"),
        Rule(
            Status(status=500, form="html", stores="all"), when=When(probability=0.0125), name="page with 500, stored"
        ),
        Rule(
            Status(status=429, code="Throttling.RateQuota", form="dashscope"),
            when=When(probability=0.03),
            name="throttled",
        ),
        Rule(Cut(), when=When(probability=0.015), name="cut, nothing stored"),
        Rule(Cut(reset=True), when=When(probability=0.015), name="reset, nothing stored"),
        Rule(Cut(stores="all"), when=When(probability=0.015), name="cut, stored"),
        Rule(Cut(stores="all", reset=True), when=When(probability=0.015), name="reset, stored"),
    )
)
"""5 % 500, 3 % 429, 3 % cut before storing and 3 % after, of reads as of writes."""


@pytest.mark.parametrize("read_cursor_first", ["true", "false"])
async def test_errors_throttling_and_cuts_by_chance_lose_double_and_reorder_nothing(
    fault_run: MakeRun, read_cursor_first: str
) -> None:
    # Small batches, so that the same events meet four times the faults.
    settings = {"DELIVERY__READ_CURSOR_FIRST": read_cursor_first, "BATCH__MAX_ITEMS": "5"}
    async with fault_run(TROUBLE, settings=settings) as run:
        conversations = named("chance", 500)
        await run.publish(messages(conversations, turns=int(soak(200, 40))))
        await run.start()
        how = "cursor read first" if read_cursor_first == "true" else "newest compared"
        ended = await run.end(f"5 % 500, 3 % 429, 6 % cut ({how})", within_seconds=soak(600, 60))
        ended.assert_sound()
        assert not ended.letters
        faults = {fault["rule"]: fault["applied"] for fault in ended.stats["faults"]}
        assert min(faults.values()) > 20, faults
        assert ended.stats["max_writes_of_one_conversation"] == 1


async def test_a_restart_amid_errors_and_cuts_loses_doubles_and_reorders_nothing(fault_run: MakeRun) -> None:
    """What is unheard of when it is told to stop is settled before it ends: its successor would send it again."""
    settings = {"DELIVERY__READ_CURSOR_FIRST": "true", "BATCH__MAX_ITEMS": "5"}
    async with fault_run(TROUBLE, settings=settings) as run:
        await run.publish(messages(named("chance", 100), turns=40))
        await run.start()
        for _ in range(2):
            delivered = await run.service.metric("delivered_items_total")

            async def goes_on(delivered: float = delivered) -> bool:
                now: float = await run.service.metric("delivered_items_total")
                return now > delivered + 500

            await until("five hundred more deliveries", goes_on)
            await run.restart()
        ended = await run.end("the same, and two restarts", within_seconds=60)
        ended.assert_sound()
        assert not ended.letters
        assert ended.report.duplicate_replies.count == 0
