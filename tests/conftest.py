"""What every test folder shares: a folder is a marker, one real Kafka a run, topics of a test's own."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias

import pytest
import pytest_asyncio
from discretion import overheard
from kafka_server import KafkaServer, KafkaUnavailableError, create_topics, delete_topics, find_kafka
from service_process import API_KEY, Trial
from switches import switched_on

from service.emulator.server import EmulatorServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    LoopFactory = Callable[[], asyncio.AbstractEventLoop]
    Missing: TypeAlias = Callable[[str], NoReturn]

TESTS = Path(__file__).parent
MARKERS = frozenset({"unit", "model", "contract", "integration", "fault", "deploy"})
NO_KAFKA = pytest.StashKey[str]()
NOT_TESTED = pytest.StashKey[set[str]]()

LEDGER_CONFIG = {"cleanup.policy": "delete", "retention.ms": "-1", "message.timestamp.type": "LogAppendTime"}


def pytest_itemcollected(item: pytest.Item) -> None:
    folder = item.path.relative_to(TESTS).parts[0]
    if folder in MARKERS:
        item.add_marker(folder)


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    """A test marked `asyncio(loop_factories=["asyncio", "uvloop"])` runs on each: the service runs on uvloop."""
    loops: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    marker = item.get_closest_marker("asyncio")
    if marker is not None and "loop_factories" in marker.kwargs:
        import uvloop  # noqa: PLC0415 - not to be had on every system

        loops["uvloop"] = uvloop.new_event_loop
    return loops


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reason = config.stash.get(NO_KAFKA, None)
    if reason is not None:
        terminalreporter.section("NOT TESTED AGAINST A REAL KAFKA", red=True, bold=True)
        terminalreporter.write_line(reason)
    wanting = sorted(config.stash.get(NOT_TESTED, None) or ())
    if wanting:
        terminalreporter.section("NOT TESTED FOR WANT OF A PROGRAM", red=True, bold=True)
        for what in wanting:
            terminalreporter.write_line(what)


@pytest.fixture(scope="session")
def missing(pytestconfig: pytest.Config) -> Missing:
    """Ends a test for want of a program: in CI as a failure, elsewhere as a skip that the summary repeats."""

    def end(what: str) -> NoReturn:
        if switched_on("CI"):
            pytest.fail(what, pytrace=False)
        pytestconfig.stash.setdefault(NOT_TESTED, set()).add(what)
        pytest.skip(what)

    return end


def kafka_is_required() -> bool:
    """In CI a test that cannot run is a test that failed; so it is where somebody asks for it."""
    return switched_on("CI") or switched_on("CONVOY_REQUIRE_KAFKA")


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config) -> Iterator[KafkaServer]:
    """The running broker, one for all tests. A test that stops it starts it again."""
    try:
        server = find_kafka()
    except KafkaUnavailableError as missing:
        pytestconfig.stash[NO_KAFKA] = str(missing)
        if kafka_is_required():
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))
    with server:
        yield server


@dataclass(frozen=True, slots=True)
class Topics:
    """Names nobody else uses, of topics that exist, and of a consumer group that does not yet."""

    partitions: int
    prefix: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:8]}")

    @property
    def events(self) -> str:
        return f"{self.prefix}.events"

    @property
    def replies(self) -> str:
        return f"{self.prefix}.replies"

    @property
    def dead_letters(self) -> str:
        return f"{self.prefix}.dead-letters"

    @property
    def ledger(self) -> str:
        return f"{self.prefix}.ledger"

    @property
    def group(self) -> str:
        return f"{self.prefix}.group"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.events, self.replies, self.dead_letters, self.ledger)


class MakeTopics(Protocol):
    async def __call__(self, partitions: int = 4) -> Topics: ...


@pytest_asyncio.fixture
async def topics(kafka: KafkaServer) -> AsyncIterator[MakeTopics]:
    """`await topics(partitions=4)` → events, replies, dead letters, a ledger as it must be, a group."""
    made: list[Topics] = []
    if kafka.restartable:
        # Another test may have failed with the broker down or paused.
        await asyncio.to_thread(kafka.start)

    async def make(partitions: int = 4) -> Topics:
        fresh = Topics(partitions)
        await create_topics(
            kafka.bootstrap_servers,
            dict.fromkeys(fresh.names, partitions),
            {fresh.ledger: LEDGER_CONFIG},
        )
        made.append(fresh)
        return fresh

    yield make
    # A broker of our own is thrown away as a whole; it may even be down at this point.
    if made and not kafka.restartable:
        await delete_topics(kafka.bootstrap_servers, [name for fresh in made for name in fresh.names])


class MakeTrial(Protocol):
    async def __call__(self, partitions: int = 4, **emulator: Any) -> Trial: ...


@pytest_asyncio.fixture
async def trial(kafka: KafkaServer, topics: MakeTopics, tmp_path: Path) -> AsyncIterator[MakeTrial]:
    """`await trial(partitions=4, latency_seconds=0.05)` → topics and an emulated API that wait for a process."""
    apis: list[EmulatorServer] = []
    async with contextlib.AsyncExitStack() as stack:

        async def make(partitions: int = 4, **emulator: Any) -> Trial:
            arguments = {"key": API_KEY, "create_on_write": True, **emulator}
            apis.append(await stack.enter_async_context(EmulatorServer(**arguments)))
            return Trial(kafka.bootstrap_servers, await topics(partitions), apis[-1], tmp_path)

        yield make
    assert overheard(tmp_path, apis) == [], "message text in a log"
