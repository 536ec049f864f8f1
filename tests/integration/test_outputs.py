"""Positions rest on stored outcomes: what happens when Kafka does not take a reply or a dead letter."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from service_process import Record, chat, until

from service.emulator.faults import FaultScript, Match, Moderation, Rule

if TYPE_CHECKING:
    from conftest import MakeTrial
    from service_process import ServiceProcess, Trial

REFUSES = {"max_message_bytes": "50"}
"""No record is so small, however lean: the broker refuses the topic's writes, and takes all others."""


async def refused(service: ServiceProcess, times: int = 2) -> bool:
    return await service.metric("output_failures_total") >= times


def all_held(run: Trial, count: int) -> bool:
    return run.emulator.store.items_stored == count


async def test_positions_stand_still_while_replies_cannot_be_stored(trial: MakeTrial) -> None:
    run = await trial(partitions=2)
    first = await run.publish(chat(conversations=20, turns=5))
    async with run.process() as service:
        await service.ready()
        await run.finished()

        await run.configure(run.topics.replies, **REFUSES)
        more = await run.publish(chat(conversations=20, turns=5, first=5))
        await until("everything held by the API", lambda: all_held(run, first + more))
        await until("replies refused", lambda: refused(service))
        report = await run.audit()
        assert report.positions_ahead.count == 0
        assert report.replies < first + more
        standing = await run.committed()
        assert standing != run.ends
        await until("replies refused again and again", lambda: refused(service, 5))
        assert await run.committed() == standing

        await run.configure(run.topics.replies)
        await run.finished()
        assert await service.stop() == 0
    report = await run.audit()
    assert report.content, report.lines()
    assert report.replies == first + more


async def test_a_process_killed_while_replies_cannot_be_stored_has_promised_nothing(trial: MakeTrial) -> None:
    run = await trial(partitions=2)
    await run.configure(run.topics.replies, **REFUSES)
    count = await run.publish(chat(conversations=20, turns=5))
    async with run.process() as service:
        await until("everything held by the API", lambda: all_held(run, count))
        await until("replies refused", lambda: refused(service))
        service.kill()
    assert not any((await run.committed()).values())

    await run.configure(run.topics.replies)
    async with run.process() as service:
        await run.finished()
        assert await service.stop() == 0
    report = await run.audit()
    assert (report.lost.count, report.positions_ahead.count, report.replies) == (0, 0, count)
    # Without a ledger, what was held by the API and by no reply is sent again.
    assert report.duplicated.count == count


async def test_a_process_stopped_while_replies_cannot_be_stored_ends_in_its_budget_and_says_so(
    trial: MakeTrial,
) -> None:
    run = await trial(partitions=1)
    await run.configure(run.topics.replies, **REFUSES)
    await run.publish(chat(conversations=3, turns=2))
    budget = {"API__CONNECT_TIMEOUT_SECONDS": "1", "API__TOTAL_TIMEOUT_SECONDS": "1", "SHUTDOWN__DRAIN_SECONDS": "3"}
    async with run.process(**budget) as service:
        await until("replies refused", lambda: refused(service))
        assert await service.stop(within_seconds=15) == 1
        assert "drain budget used up; what is in flight will be read again" in service.log()
        assert "Traceback" not in service.log()
    assert not any((await run.committed()).values())


async def test_an_invalid_event_holds_the_position_until_its_dead_letter_is_stored(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    await run.configure(run.topics.dead_letters, **REFUSES)
    await run.publish([*chat(conversations=1, turns=1), Record(b"x", b"no event"), *chat(2, turns=1, first=1)])
    async with run.process() as service:
        await until("everything held by the API", lambda: all_held(run, 3))
        await until("the dead letter refused", lambda: refused(service))
        await until("the position before it", lambda: position_is(run, 1))
        assert (await run.audit()).positions_ahead.count == 0

        await run.configure(run.topics.dead_letters)
        await run.finished()
        assert await service.stop() == 0
    report = await run.audit()
    assert report.content, report.lines()
    assert report.dead_letters == {"invalid_event": 1}


async def test_an_outcome_too_large_for_the_broker_is_stored_without_its_bulk(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    await run.configure(run.topics.replies, max_message_bytes="2000")
    await run.configure(run.topics.dead_letters, max_message_bytes="2000")
    large = "x" * 5000
    large_event = json.dumps({"conversation_id": "conv_001", "role": "user", "content": large}).encode()
    await run.publish(
        [
            *chat(conversations=3, turns=3),
            Record(b"conv_001", large_event),
            Record(b"conv_001", b"no event " + large.encode(), [("kept", b"as it is")]),
            *chat(conversations=3, turns=3, first=3),
        ]
    )
    async with run.process() as service:
        await service.ready()
        await run.finished()
        assert await service.stop() == 0

    report = await run.audit()
    assert report.content, report.lines()
    assert (report.delivered, report.without_item, report.dead_letters) == (19, 1, {"invalid_event": 1})
    (lean,) = [reply for reply in await run.replies() if "item" not in reply]
    assert (lean["source"]["offset"], lean["status"], lean["batch"]["size"] > 0) == (9, "delivered", True)
    (letter,) = await run.records(run.topics.dead_letters)
    headers = {name: value for name, value in letter.headers if value is not None}
    assert letter.value is None
    assert (headers["kept"], headers["dlq.original.offset"]) == (b"as it is", b"10")
    assert json.loads(headers["dlq.value.omitted"])["bytes"] == 5009


async def test_a_refused_item_is_found_and_dead_lettered_and_the_others_keep_their_order(trial: MakeTrial) -> None:
    refused = FaultScript(rules=(Rule(Moderation(), Match(text="says 7")),))
    run = await trial(partitions=2, faults=refused)
    count = await run.publish(chat(conversations=4, turns=20))
    async with run.process(REPLY__FAILURES="true") as service:
        await service.ready()
        await run.finished()
        assert await service.stop() == 0
    report = await run.audit()
    assert report.content, report.lines()
    assert (report.delivered, report.dead_letters) == (count - 4, {"rejected": 4})
    failed = [reply for reply in await run.replies() if reply["status"] == "failed"]
    assert sorted(reply["event_id"] for reply in failed) == [f"conv_{number:03}-7" for number in range(4)]
    assert {reply["error"]["code"] for reply in failed} == {"DataInspectionFailed"}


async def position_is(run: Trial, position: int) -> bool:
    return await run.committed() == {0: position}
