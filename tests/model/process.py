"""A process of the service on the simulated world: the real parts, wired as `service.app` wires them.

Real are the intake, the grouper, delivery, limiter, circuit, recovery, the ledger, the pump and the outlet. In the
place of aiokafka stand a consumer that asks the world, and a producer that writes to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import Counter
from typing import TYPE_CHECKING, Any
from unittest import mock

from aiokafka import errors
from model.api import SimulatedConversations
from model.kafka import SimulatedConsumer, SimulatedLedgerLog, SimulatedProducer

from service.app import BEGUN_LANES
from service.core.circuit import Circuit
from service.core.delivery import Delivery, Policy
from service.core.grouper import Grouper
from service.core.limiter import Limiter
from service.core.readback import Cursors
from service.kafka import intake as intake_module
from service.kafka.intake import Intake
from service.kafka.ledger import Ledger
from service.kafka.membership import Membership
from service.kafka.outlet import Outlet
from service.ops.health import Health
from service.pump import Pump

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.virtual_time import Life
    from model.world import World

    from service.core.grouper import Partition
    from service.settings import Settings

POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 1.0
REGULATE_SECONDS = 1.0
HEARTBEAT_CODES = {
    "ok": 0,
    "rebalance": errors.RebalanceInProgressError.errno,
    "unknown": errors.UnknownMemberIdError.errno,
}


class Noted:
    """Stands for the metrics: counts what is counted, by name and labels."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, ...]] = Counter()

    def counter(self, *name: str) -> Any:
        return _Note(self.counts, tuple(map(str, name)))

    histogram = gauge = counter


class _Note:
    def __init__(self, counts: Counter[tuple[str, ...]], name: tuple[str, ...]) -> None:
        self._counts = counts
        self._name = name

    def inc(self, by: int = 1) -> None:
        self._counts[self._name] += by

    def observe(self, value: float) -> None:
        pass

    def set(self, value: float) -> None:
        pass


class _Subscriber:
    consumer: SimulatedConsumer | None = None

    def __call__(self, handler: object) -> None:
        pass


class _Broker:
    """In the place of FastStream's."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def subscriber(self, *_: Any, **__: Any) -> _Subscriber:
        return _Subscriber()


class _Outlet(Outlet):
    def __init__(self, world: World, settings: Settings, metrics: Any, fatal: Any) -> None:
        super().__init__(settings.kafka, metrics, fatal=fatal)
        self._world = world

    def _new_producer(self) -> Any:
        return SimulatedProducer(self._world)


@contextlib.contextmanager
def without_faststream() -> Iterator[None]:
    """Let intakes be made without FastStream's broker."""
    with mock.patch.object(intake_module, "_Broker", _Broker):
        yield


class _Trusting(Membership):
    """Believes in its partitions whatever the heartbeats say."""

    def lease_valid(self) -> bool:
        return True


class SimulatedProcess:
    """One process, from its start to its end.

    Without a lease, ``leased`` false, nothing stands between one that was stopped and woken and the API but the ledger.
    """

    def __init__(
        self, world: World, settings: Settings, life: Life, *, known_conversations: int = 1000, leased: bool = True
    ) -> None:
        self.world = world
        self.life = life
        self.settings = settings
        self.noted = Noted()
        self.errors: list[BaseException] = []
        clock = world.loop.time
        metrics: Any = self.noted
        self.health = Health(clock, ready_needs_api=False)
        self.circuit = Circuit()
        self.grouper = Grouper(
            max_items=settings.batch.max_items,
            max_bytes=settings.batch.max_bytes,
            window_seconds=settings.batch.window_seconds,
            begun_lanes=BEGUN_LANES,
        )
        delivery = settings.delivery
        limiter = Limiter(
            start_concurrency=delivery.start_concurrency,
            max_concurrency=delivery.max_concurrency,
            max_requests_per_second=delivery.max_requests_per_second,
        )
        policy = Policy(
            max_attempts=delivery.max_attempts,
            max_age_seconds=delivery.max_age_seconds,
            backoff_initial_seconds=delivery.backoff_initial_seconds,
            backoff_max_seconds=delivery.backoff_max_seconds,
            settle_seconds=settings.settle_seconds,
            read_cursor_first=True,
            exact=True,
        )
        cursors = Cursors(known_conversations)
        conversations: Any = SimulatedConversations(world, life.name)
        self.outlet = _Outlet(world, settings, metrics, self.errors.append)
        self.ledger = Ledger(
            settings.kafka,
            SimulatedLedgerLog(world, life.name),
            cursors,
            metrics,
            lost=self._lost,
            clock=clock,
            boot_clock=clock,
        )
        self.membership = (Membership if leased else _Trusting)(settings.kafka, clock, clock, broken=self.errors.append)
        self.pump = Pump(
            settings,
            self.grouper,
            limiter,
            Delivery(policy, self.circuit, cursors, world.chances.random),
            conversations,
            self.outlet,
            metrics,
            self.health,
            lease=self.membership.lease_valid,
            circuit_changed=lambda: None,
            fatal=self.errors.append,
            clock=clock,
            journal=self.ledger,
        )
        self.intake = Intake(
            settings,
            self.grouper,
            metrics,
            self.health,
            self.membership,
            refuse=self.pump.refuse,
            repeat=self.pump.repeat,
            arrived=self.pump.wake,
            drain=self.pump.drain,
            fatal=self.errors.append,
            clock=clock,
            given_up=cursors.clear,
            ledger=self.ledger,
        )
        self.consumer = SimulatedConsumer(world, life.name)
        self.intake._subscriber.consumer = self.consumer
        self.intake.held = self._hold
        self.health.problem = self.intake.problem
        self.left = False
        self._out = asyncio.Event()
        """Set when the group goes on without us, or others join."""
        self._unknown = False

    def _lost(self, partition: Partition) -> None:
        self.intake.lost(partition)

    def _hold(self) -> bool:
        waiting = any(partition.lanes for partition in self.grouper.partitions.values())
        return self.health.draining or (self.circuit.is_open and waiting)

    def start(self) -> None:
        self.world.tell(f"{self.life.name} starts")
        self._run(self._live(), "life")

    def _run(self, work: Any, name: str) -> None:
        def over(task: asyncio.Task[Any]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.errors.append(error)

        self.life.create_task(work, name).add_done_callback(over)

    async def _live(self) -> None:
        await self.outlet.start([self.settings.kafka.reply_topic, self.settings.kafka.dead_letter_topic])
        self._run(self.pump.run(), "pump")
        self._run(self._keep_house(), "housekeeping")
        self._run(self._poll(), "poll")
        self._run(self._be_a_member(), "membership")
        self._run(self._beat(), "heartbeat")

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(REGULATE_SECONDS)
            self.intake.regulate()
            await self.intake.commit()

    async def _poll(self) -> None:
        while True:
            records = self.consumer.fetch()
            if records:
                await self.intake._take(tuple(records))
            await asyncio.sleep(POLL_SECONDS / 25 if records else POLL_SECONDS)

    async def _be_a_member(self) -> None:
        world, consumer = self.world, self.consumer
        while True:
            if consumer.assigned is not None:
                await self.intake.revoked(consumer.assigned)
            if self.left:
                return
            if self._unknown:
                consumer.member_id += "+"
            consumer.generation, self._unknown = -1, False
            joining = await world.ask(lambda: world.join(consumer.member_id))
            consumer.generation, consumer.assigned = await joining
            world.tell(f"{self.life.name} is given {consumer.assigned}, generation {consumer.generation}")
            self.membership.answered(0, world.now)
            consumer.positions = {}
            consumer.paused = set()
            self._out.clear()
            await self.intake.assigned(consumer.assigned)
            await self._out.wait()

    async def _beat(self) -> None:
        """Send heartbeats, but not while joining: then the coordinator knows that we are there."""
        world, consumer = self.world, self.consumer
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            generation, asked_at = consumer.generation, world.now
            if generation < 0:
                continue
            word = await world.ask(functools.partial(world.heartbeat, consumer.member_id, generation))
            if generation != consumer.generation:
                continue
            self.membership.answered(HEARTBEAT_CODES[word], asked_at)
            self._unknown = self._unknown or word == "unknown"
            if word != "ok":
                self._out.set()

    async def leave(self) -> None:
        """Stop as a SIGTERM makes it stop; to be run within its life."""
        world = self.world
        world.tell(f"{self.life.name} is told to stop")
        self.left = True
        self.health.draining = True
        self.intake.regulate()
        await self.intake.revoked(list(self.grouper.partitions))
        await world.ask(lambda: world.leave(self.consumer.member_id))
        self.life.end()
        world.tell(f"{self.life.name} has left")

    def stop(self) -> None:
        self._run(self.leave(), "stop")
