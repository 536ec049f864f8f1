"""Questions asked together: who shares one, and whom another's trouble reaches."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from service.kafka.together import Together

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class Oracle:
    """Answers a number with its square when told to; fails for ``cursed`` ones and all who ask with them."""

    asked: list[list[int]] = field(default_factory=list)
    given_up: list[list[int]] = field(default_factory=list)
    cursed: frozenset[int] = frozenset()
    speaks: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, numbers: Sequence[int]) -> list[int]:
        self.asked.append(list(numbers))
        try:
            await self.speaks.wait()
        except asyncio.CancelledError:
            self.given_up.append(list(numbers))
            raise
        if self.cursed & set(numbers):
            raise LookupError(numbers)
        return [number * number for number in numbers]


async def settle() -> None:
    """Let everything that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_those_who_ask_in_the_same_moment_ask_once_and_those_who_come_meanwhile_share_the_next() -> None:
    oracle = Oracle()
    together: Together[int, int] = Together(oracle.ask)
    first = [asyncio.create_task(together.ask(number)) for number in (1, 2, 3)]
    await settle()
    later = [asyncio.create_task(together.ask(number)) for number in (4, 2)]
    await settle()
    assert oracle.asked == [[1, 2, 3]], "what is asked later may be true of later only"
    oracle.speaks.set()
    assert await asyncio.gather(*first, *later) == [1, 4, 9, 16, 4]
    assert oracle.asked == [[1, 2, 3], [4, 2]]
    assert await together.ask(5) == 25, "and anew"


async def test_what_fails_together_is_asked_alone_and_fails_for_itself() -> None:
    oracle = Oracle(cursed=frozenset({2}))
    oracle.speaks.set()
    together: Together[int, int] = Together(oracle.ask)
    answers = await asyncio.gather(*(together.ask(number) for number in (1, 2, 3)), return_exceptions=True)
    assert oracle.asked == [[1, 2, 3], [1], [2], [3]]
    assert (answers[0], answers[2]) == (1, 9)
    assert isinstance(answers[1], LookupError)
    with pytest.raises(LookupError):
        await together.ask(2)
    assert oracle.asked[4:] == [[2]], "nobody else is to be spared"


async def test_one_who_gives_up_leaves_the_others_their_answer_and_the_last_one_ends_the_question() -> None:
    oracle = Oracle()
    together: Together[int, int] = Together(oracle.ask)
    leaving, staying = (asyncio.create_task(together.ask(number)) for number in (1, 2))
    await settle()
    leaving.cancel()
    await settle()
    oracle.speaks.set()
    assert await staying == 4
    oracle.speaks.clear()
    alone = asyncio.create_task(together.ask(3))
    await settle()
    alone.cancel()
    await settle()
    oracle.speaks.set()
    assert await together.ask(4) == 16
    assert oracle.given_up == [[3]]
    assert oracle.asked == [[1, 2], [3], [4]]


@pytest.mark.parametrize("stay", [[], [3]])
async def test_those_who_gave_up_before_a_question_was_asked_are_not_asked_for(stay: list[int]) -> None:
    oracle = Oracle()
    together: Together[int, int] = Together(oracle.ask)
    first = asyncio.create_task(together.ask(1))
    await settle()
    leaving, staying = ([asyncio.create_task(together.ask(number)) for number in numbers] for numbers in ([2, 4], stay))
    await settle()
    for task in leaving:
        task.cancel()
    await settle()
    oracle.speaks.set()
    assert await asyncio.gather(first, *staying) == [1, *(number * number for number in stay)]
    await settle()
    assert oracle.asked == [[1], *([stay] if stay else [])]
