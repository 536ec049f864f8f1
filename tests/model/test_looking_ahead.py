"""The cursor of a cold conversation is read while its first events wait for their window, and only believed in time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from model.api import CUT, error
from model.process import without_faststream
from model.schedules import Run, settings_of

from service.core.circuit import CircuitReason
from service.core.model import Answered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.process import SimulatedProcess

    from service.core.model import Answer

WINDOW = 5.0
OLD_ID = "msg_old"
OLD = Answered(200, [b'{"id":"msg_old"}'], OLD_ID)


@pytest.fixture(autouse=True)
def _virtual_world() -> Iterator[None]:
    with without_faststream():
        yield


class Reads:
    """Of which conversations is read; the first so many are answered so, once the gate is open."""

    def __init__(self, run: Run, process: SimulatedProcess, *, held: int = 0, answer: Answer = OLD) -> None:
        self.of: list[str] = []
        self.gate = asyncio.Event()
        conversations: Any = process.pump._conversations
        truly = conversations.list_items

        async def list_items(conversation_id: str, **how: Any) -> Answer:
            self.of.append(conversation_id)
            run.world.tell(f"{process.life.name} reads {conversation_id}")
            if len(self.of) > held:
                truth: Answer = await truly(conversation_id, **how)
                return truth
            await self.gate.wait()
            return answer

        conversations.list_items = list_items


def made(*, conversations: int = 1, max_items: int = 3, known: int = 1000, **how: Any) -> tuple[Run, Any, Reads]:
    """A run with one event in each conversation, its process, and what that reads."""
    settings = settings_of(window_seconds=WINDOW, max_items=max_items)
    run = Run(1, settings=settings, leased=False, known_conversations=known)
    run.world.later(0.0, run.world.watch_group)
    for number in range(conversations):
        run.world.publish(0, f"conv_{number}", "words")
    process = run.start()
    return run, process, Reads(run, process, **how)


def told(run: Run, words: str) -> float:
    """When something was told first in these words."""
    return next(float(line.split()[0]) for line in run.world.story if words in line)


def cursors(process: SimulatedProcess) -> Any:
    return process.pump._delivery.cursors


def test_a_cold_conversation_is_read_while_it_waits_and_not_again_when_it_is_due() -> None:
    run, _, reads = made(conversations=40)
    assert run.finish().sound
    assert sorted(reads.of) == sorted(f"conv_{number}" for number in range(40))
    assert told(run, "P0 reads conv_39") < told(run, '"k":"intent"')
    assert told(run, "P0 sends") - told(run, "P0 reads 0 up to") < WINDOW + 0.5


def test_a_known_conversation_is_not_read() -> None:
    run, process, reads = made()
    assert run.go(run.settled, 20)
    run.world.publish(0, "conv_0", "more words")
    assert run.finish().sound
    assert len(reads.of) == 1
    assert not process.pump._looking


def test_an_answer_that_does_not_come_within_the_window_is_not_waited_for() -> None:
    run, process, reads = made(held=1)
    assert run.go(lambda: bool(run.world.requests), 2 * WINDOW)
    assert reads.of == ["conv_0", "conv_0"]
    assert run.go(run.settled, 20)
    assert process.pump._limiter.in_flight == 0
    assert run.finish().sound


def test_an_answer_older_than_what_was_written_since_is_not_believed() -> None:
    run, process, reads = made(known=1, held=1)
    assert run.go(lambda: bool(reads.of), 2)
    for text in ("second", "third"):
        run.world.publish(0, "conv_0", text)
    assert run.go(lambda: bool(cursors(process).get("conv_0")), 2)
    # Forgotten since, as one of more conversations than are remembered.
    process.life.do(lambda: cursors(process).learn("another", "msg_1"))
    process.life.do(reads.gate.set)
    run.go(lambda: False, 0.5)
    assert cursors(process).get("conv_0") is None
    assert run.finish().sound


def test_an_answer_about_a_lost_partition_is_not_believed() -> None:
    run, process, reads = made(held=1)
    assert run.go(lambda: bool(reads.of), 2)

    def lose() -> None:
        process.intake.lost(process.grouper.partitions[0])
        reads.gate.set()

    process.life.do(lose)
    run.go(lambda: False, 0.5)
    assert cursors(process).get("conv_0") != OLD_ID
    assert run.finish().sound


@pytest.mark.parametrize(
    "answer", [error(503, "busy"), error(404, "no_such"), CUT, Answered(200, [b"{}"]), Answered(200)]
)
def test_an_answer_that_is_not_good_leaves_the_asking_to_the_batch(answer: Answer) -> None:
    run, process, reads = made(held=1, answer=answer)
    reads.gate.set()
    assert run.go(lambda: bool(reads.of), 2)
    run.go(lambda: False, 1)
    assert cursors(process).get("conv_0") is None
    assert run.finish().sound
    assert len(reads.of) == 2


def test_nobody_looks_ahead_while_the_circuit_is_open() -> None:
    run, process, reads = made()
    process.circuit.trip(0.0, CircuitReason.KEY_REJECTED, "invalid_api_key")
    assert run.go(lambda: bool(process.grouper.begun), 2)
    run.go(lambda: False, WINDOW / 2)
    assert not reads.of
    assert run.finish().sound
