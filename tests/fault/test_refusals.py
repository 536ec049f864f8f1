"""Messages that the API refuses: they alone end in the dead letters, their neighbours arrive in order."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from fault_run import Message

from service.emulator.faults import FaultScript, Latency, Match, Moderation, Rule, Status, When

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fault_run import Ended, MakeRun

SIZE = 20
BAD = "of which nobody may speak"
COST = math.floor(2 * math.log2(SIZE) + 2)
"""Requests that one culprit may take, its first included, until it is found and its neighbours are delivered."""
CULPRITS: dict[str, frozenset[int]] = {
    **{f"at_{position:02}": frozenset({position}) for position in range(SIZE)},
    "first_and_last": frozenset({0, SIZE - 1}),
    "two_together": frozenset({6, 7}),
    "two_apart": frozenset({3, 15}),
    "all": frozenset(range(SIZE)),
}


def batch_of(name: str) -> Iterator[Message]:
    """Twenty messages of one conversation, of which some are bad."""
    for position in range(SIZE):
        bad = f", {BAD}" if position in CULPRITS[name] else ""
        yield Message(f"conv_{name}", f"{name} {position}{bad}")


def counted(names: Iterable[str]) -> Iterator[Rule]:
    """Rules that do nothing but count the requests of each conversation."""
    for name in names:
        yield Rule(Latency(0), Match(conversation=f"conv_{name}"), name=name)


def prefix_stored() -> Iterator[Rule]:
    """The first refusal of a conversation comes after what stood before the culprit was stored."""
    for name, culprits in CULPRITS.items():
        if stored := min(culprits):
            match = Match(operations=("create_items",), conversation=f"conv_{name}", text=BAD)
            yield Rule(Status(status=400, code="DataInspectionFailed", stores=stored), match, When(first=1))


@pytest.mark.parametrize(
    ("how", "special", "names_item", "read_cursor_first"),
    [
        ("named by the API", (), True, "false"),
        ("not named", (), False, "false"),
        ("not named, cursor read first", (), False, "true"),
        ("not named, a prefix stored", tuple(prefix_stored()), False, "true"),
    ],
    ids=["named", "not-named", "not-named-cursor-first", "prefix-stored"],
)
async def test_refused_messages_alone_are_given_up_and_their_neighbours_arrive_in_order(
    fault_run: MakeRun, how: str, special: tuple[Rule, ...], names_item: bool, read_cursor_first: str
) -> None:
    refusal = Rule(Moderation(names_item=names_item), Match(operations=("create_items",), text=BAD))
    script = FaultScript(rules=(*counted(CULPRITS), *special, refusal))
    async with fault_run(script, settings={"DELIVERY__READ_CURSOR_FIRST": read_cursor_first}) as run:
        await run.publish(message for name in CULPRITS for message in batch_of(name))
        await run.start()

        def most(ended: Ended, culprits: int) -> int:
            """The most requests that a conversation with so many culprits took, reads included."""
            return max(ended.asked(name) for name, found in CULPRITS.items() if len(found) == culprits)

        ended = await run.end(
            f"refused messages, {how}",
            requests_for_one_culprit=lambda ended: f"at most {most(ended, 1)}",
            for_two=lambda ended: f"at most {most(ended, 2)}",
            for_all_of_twenty=lambda ended: str(most(ended, SIZE)),
        )
        ended.assert_sound()

        refused = {message.text for message in run.published if BAD in message.text}
        assert ended.dead() == {(text, "rejected") for text in refused}
        for name in CULPRITS:
            kept = [message.text for message in batch_of(name) if BAD not in message.text]
            assert ended.held(f"conv_{name}") == kept
        cursor_reads = 1 if read_cursor_first == "true" else 0
        assert most(ended, 1) <= COST + cursor_reads, {name: ended.asked(name) for name in CULPRITS}
