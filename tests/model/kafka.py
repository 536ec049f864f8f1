"""Kafka as one process reaches it: what stands in the place of aiokafka's clients."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError, KafkaConnectionError, KafkaTimeoutError
from model.world import EVENTS, WRITE_SECONDS, Append, Output

from service.kafka.ledger import LogError, Stored

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from model.world import World

T = TypeVar("T")
FETCH_RECORDS = 5


class SimulatedConsumer:
    """As much of aiokafka's consumer as the intake asks for."""

    def __init__(self, world: World, member_id: str) -> None:
        self._world = world
        self.member_id = member_id
        self.generation = -1
        self.assigned: list[int] | None = None
        self.paused: set[int] = set()
        self.positions: dict[int, int] = {}

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition(EVENTS, number) for number in self.assigned or ()}

    def pause(self, *places: TopicPartition) -> None:
        self.paused.update(place.partition for place in places)

    def resume(self, *places: TopicPartition) -> None:
        self.paused.difference_update(place.partition for place in places)

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.positions[place.partition] = offset

    def highwater(self, place: TopicPartition) -> int:
        return len(self._world.events[place.partition])

    async def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return await self._world.ask(lambda: dict.fromkeys(places, 0))

    async def commit(self, offsets: dict[TopicPartition, Any]) -> None:
        world = self._world
        if any(place not in self.assignment() for place in offsets):
            raise IllegalStateError
        if world.happens(world.weather.commit_fails):
            await asyncio.sleep(world.soon())
            raise KafkaConnectionError
        # As aiokafka does: the generation of this moment, not that of the assignment.
        member_id, generation = self.member_id, self.generation
        told = {place.partition: (where.offset, where.metadata) for place, where in offsets.items()}
        answer = world.ask(lambda: world.commit(member_id, generation, told))
        if world.happens(world.weather.commit_lost):
            await answer
            await world.loop.create_future()
        await answer

    def fetch(self) -> list[Any]:
        """What a poll brings: of one partition after the other, what follows the position."""
        found = []
        for number in sorted(set(self.assigned or ()) - self.paused):
            log = self._world.events[number]
            position = self.positions.get(number)
            if position is None:
                continue
            upto = min(len(log), position + self._world.chances.randint(1, FETCH_RECORDS))
            found += [record for record in log[position:upto] if record is not None]
            self.positions[number] = upto
            if upto > position:
                self._world.tell(f"{self.member_id} reads {number} up to {upto}")
        return found


class SimulatedLedgerLog:
    """The ledger topic as one process reaches it: `service.kafka.ledger.LedgerLog`."""

    def __init__(self, world: World, who: str) -> None:
        self._world = world
        self._who = who
        self._reached: dict[int, float] = {}
        """Records of one producer lie in the order they were sent; acknowledgements may change places."""

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def distrust(self) -> None:
        self._reached.clear()

    async def _question(self, what: Callable[[], T]) -> T:
        if self._world.happens(self._world.weather.question_fails):
            await asyncio.sleep(self._world.chances.uniform(0, 2))
            raise LogError("no answer")
        return await self._world.ask(what)

    async def twins(self) -> frozenset[int]:
        return await self._question(lambda: frozenset(self._world.ledger))

    async def committed(self, number: int) -> tuple[int, str]:
        return await self._question(lambda: self._world.committed.get(number, (-1, "")))

    async def bounds(self, number: int) -> tuple[int, int]:
        return await self._question(lambda: (self._world.ledger_begins[number], len(self._world.ledger[number])))

    async def read(self, number: int, start: int, end: int) -> AsyncGenerator[Sequence[Stored], None]:
        while start < end:
            stop = min(end, start + self._world.chances.randint(1, 50))
            place = (start, stop)
            yield await self._question(lambda place=place: self._world.ledger[number][slice(*place)])  # type: ignore[misc]
            start = stop

    def _draw_append(self) -> Append:
        world, weather = self._world, self._world.weather
        if world.next_appends:
            return world.next_appends.pop(0)
        if world.happens(weather.append_fails):
            return Append(None, None)
        if world.happens(weather.append_late):
            return Append(WRITE_SECONDS + world.soon(), None)
        written = world.chances.uniform(0, 6) if world.happens(weather.append_slow) else world.soon()
        if world.happens(weather.append_lost):
            return Append(written, None)
        return Append(written, world.soon() if world.chances.random() < 0.8 else world.chances.uniform(0, 1))

    async def append(self, number: int, value: bytes, *, patient: bool = False) -> tuple[int, int | None]:
        world = self._world
        fate = self._draw_append()
        if fate.written is None:
            await asyncio.sleep(world.soon())
            self._reached.clear()
            raise LogError("not written")
        answered: asyncio.Future[tuple[int, int | None]] = world.loop.create_future()

        def acknowledge(place: tuple[int, int | None]) -> None:
            if not answered.done():
                answered.set_result((-1, None) if fate.placeless else place)

        def arrive() -> None:
            place = world.append(number, value)
            world.tell(f"        {self._who} wrote {value.decode()} at {place[0]}")
            if fate.acknowledged is not None:
                world.later(max(0.0, acknowledged_at - world.now), acknowledge, place)

        arrives_at = max(world.now + fate.written, self._reached.get(number, 0.0))
        acknowledged_at = arrives_at + (fate.acknowledged or 0.0)
        self._reached[number] = arrives_at
        world.later(arrives_at - world.now, arrive)
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                return await answered
        except TimeoutError:
            self._reached.clear()
            raise LogError("no acknowledgement") from None


class SimulatedProducer:
    """What `service.kafka.outlet.Outlet` writes with."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.client = self

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def fetch_all_metadata(self) -> SimulatedProducer:
        return self

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {0}

    async def partitions_for(self, topic: str) -> set[int]:
        return {0}

    def create_batch(self) -> SimulatedBatch:
        return SimulatedBatch()

    async def send_batch(self, batch: SimulatedBatch, topic: str, *, partition: int) -> asyncio.Future[None]:
        world = self._world
        if world.happens(world.weather.output_fails):
            raise KafkaConnectionError
        answer_comes = not world.happens(world.weather.output_fails)

        def arrive() -> None:
            world.outputs[topic] += batch.outputs

        async def acknowledged() -> None:
            await world.ask(arrive)
            if not answer_comes:
                raise KafkaTimeoutError

        return asyncio.ensure_future(acknowledged())


class SimulatedBatch:
    def __init__(self) -> None:
        self.outputs: list[Output] = []

    def append(self, *, timestamp: None, key: bytes | None, value: bytes | None, headers: Any) -> object:
        self.outputs.append(Output(value, list(headers)))
        return self

    def close(self) -> None:
        pass
