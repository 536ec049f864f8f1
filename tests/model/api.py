"""The API as one process reaches it, and what may become of a request."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.world import CONNECT_SECONDS, LANDING_SECONDS, POISON, TOTAL_SECONDS

from service.conversations.client import WITHDRAWN
from service.core.model import Answered, ErrorBody, ErrorForm, Fate, Unanswered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model.world import Item, World
    from typing_extensions import Buffer

    from service.core.model import Answer


@dataclass(slots=True, frozen=True)
class Fated:
    """What happens to one request to write: what the caller sees, and what is stored all the same.

    ``stores`` of the items, the first ones, are stored ``landing`` seconds after the first byte.
    """

    name: str
    answer: Answer | None = None
    """``None``: the truth."""
    stores: int = 1000
    landing: float = 0.01
    seconds: float = 0.02
    """Until the caller sees the answer."""
    connect: float = 0.001


def error(status: int, code: str, *, form: ErrorForm | None = ErrorForm.NESTED, culprit: int | None = None) -> Answered:
    return Answered(status, error=ErrorBody(form, code, "no", culprit) if form is not None else None)


CUT = Unanswered(Fate.UNKNOWN, "connection_cut", "peer closed")
SILENCE = Unanswered(Fate.UNKNOWN, "timeout", "no answer")
UNREACHED = Unanswered(Fate.NOT_SENT, "connect_error", "refused")


def draw_fate(world: World, conversation_id: str) -> Fated:
    weather, chances = world.weather, world.chances
    if world.next_fates:
        return world.next_fates.pop(0)
    if conversation_id == "conv_0" and world.happens(weather.sick):
        return Fated("500 of its own", error(500, "server_error"), chances.choice([0, 0, 1, 2]))
    seconds = world.soon() * 3
    landing = chances.uniform(0, seconds)
    connect = chances.uniform(0.0, CONNECT_SECONDS * 1.1) if world.happens(weather.slow_connect) else 0.001
    draw = chances.random()
    for share, fate in (
        (weather.cut_before, Fated("cut before it was stored", CUT, 0)),
        (weather.cut_after, Fated("cut after it was stored", CUT, 1000, landing, seconds)),
        (
            weather.late,
            Fated("late", SILENCE, 1000, chances.uniform(0, TOTAL_SECONDS + LANDING_SECONDS - 0.1), TOTAL_SECONDS),
        ),
        (
            weather.too_late,
            Fated("too late", SILENCE, 1000, TOTAL_SECONDS + LANDING_SECONDS + chances.uniform(3, 30), TOTAL_SECONDS),
        ),
        (weather.own_500, Fated("500 of its own", error(500, "server_error"), chances.choice([0, 0, 1, 2, 1000]))),
        (
            weather.gateway,
            Fated("502", error(502, "", form=None), chances.choice([0, 1000]), chances.uniform(0, TOTAL_SECONDS)),
        ),
        (weather.throttled, Fated("429", error(429, "Throttling.RateQuota", form=ErrorForm.DASHSCOPE), 0)),
        (weather.locked, Fated("locked", error(400, "conversation_locked"), 0)),
        (weather.unreached, Fated("unreached", UNREACHED, 0)),
        (weather.html, Fated("html", Answered(200), 1000, landing, seconds)),
    ):
        if draw < share:
            return Fated(fate.name, fate.answer, fate.stores, fate.landing, fate.seconds, connect)
        draw -= share
    return Fated("good", None, 1000, landing, seconds, connect)


class SimulatedConversations:
    """The API as one process reaches it."""

    def __init__(self, world: World, who: str) -> None:
        self._world = world
        self._who = who

    async def create_items(
        self, conversation_id: str, items: Sequence[Buffer], *, still: Callable[[], bool] | None = None
    ) -> Answer:
        world = self._world
        fate = draw_fate(world, conversation_id)
        await asyncio.sleep(min(fate.connect, CONNECT_SECONDS))
        if fate.connect > CONNECT_SECONDS or fate.answer is UNREACHED:
            return UNREACHED
        if still is not None and not still():
            world.tell(f"{self._who} withdraws a request to {conversation_id}")
            return Unanswered(Fate.NOT_SENT, WITHDRAWN, "too late to be sent")
        made = world.make_items(items)
        tags = [item.tag for item in made]
        world.tell(f"{self._who} sends {tags} to {conversation_id}: {fate.name}")
        world.requests.append((world.now, self._who, tags))
        if world.happens(world.weather.other_writers):
            same = world.happens(world.weather.same_words)
            world.write_elsewhere(conversation_id, made[0].text if same else f"other {world.now}")
        answer = fate.answer
        stores = fate.stores
        guilty = next((index for index, item in enumerate(made) if POISON in item.text), None)
        if guilty is not None and fate.name in {"good", "html", "late", "cut after it was stored"}:
            stores = guilty if world.keeps_prefix else 0
            if fate.name == "good":
                answer = error(400, "InvalidParameter", culprit=guilty if world.names_culprit else None)
        elif guilty is not None:
            stores = 0
        if answer is None:
            answer = Answered(200, [item.as_json() for item in made], made[-1].id)
        if stores:
            world.landing += 1
            world.later(fate.landing, self._land, conversation_id, made[:stores])
        left = TOTAL_SECONDS - fate.connect
        done: Answer = answer
        return await world.ask(lambda: done, there=0.0, back=min(fate.seconds, left))

    def _land(self, conversation_id: str, items: Sequence[Item]) -> None:
        self._world.landing -= 1
        self._world.store(conversation_id, items)
        self._world.tell(f"        {[item.tag for item in items]} stored")

    async def list_items(
        self, conversation_id: str, *, after: str = "", limit: int = 100, newest_first: bool = False
    ) -> Answer:
        assert newest_first
        return await self._read(lambda: self._world.conversations.get(conversation_id, [])[::-1][:limit])

    async def list_newest(self, conversation_id: str, limit: int) -> Answer:
        return await self._read(lambda: self._world.conversations.get(conversation_id, [])[-limit:])

    async def list_all_items(self, conversation_id: str, *, after: str) -> Answer:
        def behind() -> list[Item]:
            items = self._world.conversations.get(conversation_id, [])
            if not after:
                return list(items)
            places = [index for index, item in enumerate(items) if item.id == after]
            assert places, f"{conversation_id} has no item {after}"
            return items[places[0] + 1 :]

        return await self._read(behind)

    async def _read(self, what: Callable[[], Sequence[Item]]) -> Answer:
        if self._world.happens(self._world.weather.read_fails):
            await asyncio.sleep(self._world.soon())
            return CUT
        items = await self._world.ask(lambda: [item.as_json() for item in what()])
        last = json.loads(items[-1])["id"] if items else ""
        return Answered(200, items, last)
