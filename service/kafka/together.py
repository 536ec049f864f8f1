"""Questions that come in the same moment, asked as one.

A rebalance hands a process many partitions at once, each of which has the same to ask of the same broker before it
is read: asked one after the other, the last would wait for all the others.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

SHARED_SECONDS = 1.0
"""For an answer about many partitions: a single one without a leader would keep the others waiting."""

Question = TypeVar("Question")
Answer = TypeVar("Answer")


def patience(asked: Sequence[object], alone_seconds: float) -> float:
    """How long to wait for the answer to all of ``asked``, where one that is asked alone may take ``alone_seconds``."""
    return alone_seconds if len(asked) == 1 else SHARED_SECONDS


class Together(Generic[Question, Answer]):
    """One kind of question: those that come while one is under way share the next."""

    def __init__(self, ask: Callable[[Sequence[Question]], Awaitable[Sequence[Answer]]]) -> None:
        """``ask`` answers each of several, in their order, or raises for all of them."""
        self._ask = ask
        self._waiting: list[tuple[Question, asyncio.Future[Answer]]] = []
        self._asking: asyncio.Task[None] | None = None
        self._askers = 0

    async def ask(self, question: Question) -> Answer:
        """The answer to a question; where they fail together each is asked alone, and fails for itself."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_all())
        self._askers += 1
        try:
            return await answer
        finally:
            self._askers -= 1
            if not self._askers and self._asking is not None:
                # Nobody wants to know any more.
                self._asking.cancel()
                self._asking = None
                self._waiting.clear()

    async def _ask_all(self) -> None:
        while self._waiting:
            asked = [(question, answer) for question, answer in self._waiting if not answer.done()]
            self._waiting.clear()
            if asked and not await self._answered(asked):
                await asyncio.gather(*(self._answered([one]) for one in asked))
        self._asking = None

    async def _answered(self, asked: Sequence[tuple[Question, asyncio.Future[Answer]]]) -> bool:
        try:
            answers = await self._ask([question for question, _ in asked])
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the askers' to see
            if len(asked) > 1:
                return False
            for _, answer in asked:
                if not answer.done():
                    answer.set_exception(error)
            return True
        for (_, answer), given in zip(asked, answers, strict=True):
            if not answer.done():
                answer.set_result(given)
        return True
