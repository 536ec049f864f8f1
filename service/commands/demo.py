"""`convoy demo`: the whole of it on one machine, live, and judged by the audit at the end.

An embedded broker (or a given Kafka), the emulated API on a real socket, and between them the service as it
always is: nothing in it knows that this is a demo. Decides what is run, when it is over, and whether it went well.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import uvloop
from pydantic import SecretStr
from rich.console import Console

from service.app import make
from service.commands.demo_broker import MOST_EVENTS, EmbeddedBroker, NoEmbeddedBrokerError
from service.commands.demo_traffic import count, traffic
from service.commands.demo_view import Figures, Progress, View, addresses, summary
from service.emulator.faults import FaultScript, LognormalLatency, Rule
from service.emulator.server import EmulatorServer
from service.evidence import audit_run, read_dump
from service.kafka.connection import KafkaError
from service.kafka.temporary import TemporaryTopics
from service.ops import logs
from service.ops.times import timestamp
from service.settings import ApiSettings, KafkaSettings, LogSettings, OpsSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from faststream import FastStream
    from pydantic_settings import BaseSettings, PydanticBaseSettingsSource
    from rich.console import RenderableType

    from service.app import Service
    from service.audit import Report

KEY = "sk-demo"
PARTITIONS = 4
FRAME_SECONDS = 0.125
"""Between two looks at the run."""
RECHECK_SECONDS = 0.5
STALL_SECONDS = 60.0
"""Without a single outcome for so long, it is not going to come: longer than the service waits for anything."""
COMMIT_SECONDS = 15.0
"""Within so long a service that runs on has committed everything."""
CREATE_CONCURRENCY = 32
MOST_UNACKNOWLEDGED = 10_000
LOG_LINES = 20
NO_FAULT = {"events", "delivered", "replies", "dead letters", "duplicate replies", "duplicate dead letters"}
"""Lines of the audit that may say what they like; replies and dead letters are stored at least once."""
INTERRUPTED = 130
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What may be chosen. ``broker`` empty: the embedded one; ``ops_port`` 0: any free one."""

    events: int = 4000
    conversations: int = 300
    rate: float = 500.0
    seed: int = 1
    latency_seconds: float = 0.05
    broker: str = ""
    keep: bool = False
    ops_port: int = 0


class DemoError(Exception):
    """What keeps the demo from running, or from coming to its end; one line."""


class DemoSettings(Settings):
    """The service's settings as given in code: nothing of the user's environment has a say."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings calls it by these names
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what is given to the constructor alone."""
        return (init_settings,)


def run_demo(options: Options, *, faults: FaultScript | None = None) -> int:
    """Run it; returns the exit code: 0 all arrived and the audit is content, 1 not, 2 cannot run, 130 interrupted.

    ``faults`` is what shall go wrong at the API, on top of its latency.
    """
    console = Console(highlight=False)
    with contextlib.ExitStack() as stack:
        address = options.broker
        if not address:
            if options.events > MOST_EVENTS:
                return _complain(f"the embedded broker bears {MOST_EVENTS} events; more go to a Kafka (--broker)", 2)
            try:
                address = stack.enter_context(EmbeddedBroker()).address
            except NoEmbeddedBrokerError:
                return _complain("the embedded broker is not installed: pip install 'convoy[demo]'", 2)
        folder = Path(tempfile.mkdtemp(prefix="convoy-demo-"))
        with _logs_in(folder / "convoy.log"):
            try:
                code = uvloop.run(Demo(options, address, console, faults).run())
            except (DemoError, KafkaError, httpx.HTTPError, OSError) as error:
                code = _complain(str(error) or type(error).__name__, 1)
        if code == 1:
            _show_end(folder / "convoy.log")
        else:
            shutil.rmtree(folder)
        return code


@dataclass(frozen=True, slots=True)
class _Run:
    """What is under way together: the service, and the traffic it is to carry."""

    app: FastStream
    service: Service
    topics: TemporaryTopics
    running: asyncio.Task[None]
    """The service; done once it has drained."""
    publishing: asyncio.Task[None]

    def raise_what_broke(self) -> None:
        """Tell a service that has ended well from one that has not."""
        self.running.result()
        if self.service.error is not None:
            raise DemoError(f"the service broke: {self.service.error!r}")


class Demo:
    """One run: an API, topics, traffic, and the service between them."""

    def __init__(self, options: Options, address: str, console: Console, faults: FaultScript | None) -> None:
        self._options = options
        self._console = console
        self._arrivals = traffic(
            events=options.events, conversations=options.conversations, rate=options.rate, seed=options.seed
        )
        name = f"convoy-demo-{uuid.uuid4().hex[:8]}"
        self._kafka = KafkaSettings(
            bootstrap_servers=address,
            group_id=name,
            events_topic=f"{name}.events",
            reply_topic=f"{name}.replies",
            dead_letter_topic=f"{name}.dead-letters",
        )
        latency = Rule(LognormalLatency(options.latency_seconds), name="latency")
        script = faults or FaultScript()
        self._emulator = EmulatorServer(
            key=KEY,
            seed=options.seed,
            faults=FaultScript((latency, *script.rules), script.lock_busy_conversations),
        )
        self._counts: dict[str, int] = {}
        """Records of each topic, as last seen."""
        self._conversations: list[str] = []
        self._interrupted = False
        self._began = time.monotonic()

    async def run(self) -> int:
        """Run it from the first conversation to the audit; returns the exit code.

        Raises:
            DemoError, KafkaError, httpx.HTTPError, OSError: it cannot be run, or broke.
        """
        self._take_signals()
        create = bool(self._options.broker)
        try:
            # Made when it is entered, and not before: what is not entered is not closed either.
            async with self._emulator, TemporaryTopics(self._kafka, partitions=PARTITIONS, create=create) as topics:
                return await self._run(topics)
        except asyncio.CancelledError:
            if not self._interrupted:
                raise
            self._console.print("interrupted")
            return INTERRUPTED

    def _take_signals(self) -> None:
        """Let Ctrl-C end what is being done.

        While FastStream's application runs, its own handlers stand in their place: the service drains then.
        """
        loop = asyncio.get_running_loop()
        this = asyncio.current_task()
        assert this is not None

        def interrupt() -> None:
            # Once is enough: a second cancellation would break off the cleaning up.
            if not self._interrupted:
                self._interrupted = True
                this.cancel()

        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, interrupt)

    async def _run(self, topics: TemporaryTopics) -> int:
        app, service = make(self._settings())
        run = _Run(
            app,
            service,
            topics,
            asyncio.create_task(app.run(), name="service"),
            asyncio.create_task(self._publish(topics), name="traffic"),
        )
        watching = asyncio.create_task(self._watch(topics), name="watch")
        try:
            self._say_what_is_run()
            if not await self._follow(run):
                self._say_how_far(service)
                return INTERRUPTED
            if not self._options.keep:
                self._take_signals()
            code = self._conclude(service, await self._judge(drained=not self._options.keep))
            if self._options.keep and not run.running.done():
                self._console.print(self._addresses(service))
                await asyncio.wait({run.running})
                run.raise_what_broke()
                self._console.print("drained and ended")
            return code
        finally:
            app.exit()
            if not run.running.done():
                self._console.print("stopping the service", style="dim")
            for task in (run.publishing, watching):
                task.cancel()
            await asyncio.gather(run.running, run.publishing, watching, return_exceptions=True)

    def _settings(self) -> Settings:
        return DemoSettings(
            kafka=self._kafka,
            api=ApiSettings(base_url=self._emulator.base_url, key=SecretStr(KEY)),
            ops=OpsSettings(host="127.0.0.1", port=self._options.ops_port),
        )

    # While it runs

    async def _follow(self, run: _Run) -> bool:
        """Show the run until all is settled and, unless it is to be kept, drained; false: it was ended before.

        Raises:
            DemoError: nothing comes through any more, or the service broke.
        """
        before, moved = (0, 0, 0), time.monotonic()
        whole = False
        with View(self._console, title="convoy demo") as view:
            while not run.running.done() and not (whole and self._options.keep):
                await asyncio.wait({run.running}, timeout=FRAME_SECONDS)
                view.subtitle = _metrics_address(run.service)
                progress = self._look(run)
                view.show(progress)
                if run.publishing.done() and not run.publishing.cancelled():
                    run.publishing.result()
                    if progress.finished and not whole:
                        whole = True
                        if not self._options.keep:
                            run.app.exit()
                elif run.service.health.draining:
                    run.publishing.cancel()
                now = time.monotonic()
                at = (len(self._emulator.store.conversations), progress.published, progress.settled)
                if at != before:
                    before, moved = at, now
                elif now > moved + STALL_SECONDS and not whole:
                    raise DemoError(f"no event has come through for {STALL_SECONDS:.0f} s")
            await self._count(run.topics)
            view.show(self._look(run, "done" if whole else "ended"), last=True)
        if run.running.done():
            run.raise_what_broke()
        return whole

    def _look(self, run: _Run, state: str = "") -> Progress:
        if not state:
            state = str(run.service.health.ready()[1]["status"])
        if state == "ready":
            state = "finishing" if run.publishing.done() else "publishing"
        return Progress(
            state=state,
            seconds=time.monotonic() - self._began,
            planned=len(self._arrivals),
            seen=self._counts.get(self._kafka.events_topic, 0),
            replies=self._counts.get(self._kafka.reply_topic, 0),
            dead_letters=self._counts.get(self._kafka.dead_letter_topic, 0),
            figures=Figures(run.service.metrics.registry),
        )

    async def _watch(self, topics: TemporaryTopics) -> None:
        """Keep an eye on how far the topics reach."""
        while True:
            await self._count(topics)
            await asyncio.sleep(FRAME_SECONDS)

    async def _count(self, topics: TemporaryTopics) -> None:
        with contextlib.suppress(KafkaError):
            self._counts = await topics.counts()

    # What goes in

    async def _publish(self, topics: TemporaryTopics) -> None:
        """Create the conversations through the API, then publish each event when its time has come."""
        ids = self._conversations = await self._create_conversations()
        sent: deque[asyncio.Future[None]] = deque()
        began = time.monotonic()
        for arrival in self._arrivals:
            early = began + arrival.at_seconds - time.monotonic()
            if early > 0:
                await asyncio.sleep(early)
            key, value = arrival.write(ids[arrival.conversation], timestamp(time.time()))
            sent.append(await topics.publish(key, value))
            if len(sent) > MOST_UNACKNOWLEDGED:
                await sent.popleft()
        await asyncio.gather(*sent)

    async def _create_conversations(self) -> list[str]:
        permits = asyncio.Semaphore(CREATE_CONCURRENCY)

        async def create(number: int) -> str:
            async with permits:
                answer = await http.post("/conversations", json={"metadata": {"demo": str(number)}})
            answer.raise_for_status()
            conversation_id: str = answer.json()["id"]
            return conversation_id

        async with httpx.AsyncClient(
            base_url=self._emulator.base_url, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False
        ) as http:
            return await asyncio.gather(*map(create, range(self._options.conversations)))

    # What came of it

    async def _judge(self, *, drained: bool) -> Report:
        """Let the audit look; while the service still runs, its last positions may be about to be committed."""
        deadline = time.monotonic() + COMMIT_SECONDS
        while True:
            async with httpx.AsyncClient(trust_env=False) as http:
                dump = (await http.get(f"{self._emulator.origin}/_emulator/dump")).raise_for_status().content
            report = await audit_run(self._kafka, read_dump(dump))
            if drained or not report.uncommitted or time.monotonic() > deadline:
                return report
            await asyncio.sleep(RECHECK_SECONDS)

    def _conclude(self, service: Service, report: Report) -> int:
        requests = sum(self._emulator.stats()["requests"].get("create_items", {}).values())
        tombstones = count(self._arrivals, "tombstone")
        figures = Figures(service.metrics.registry)
        self._console.print(summary(report, figures, requests=requests, tombstones=tombstones))
        self._console.print()
        complaints = self._complaints(report)
        if not complaints:
            self._console.print("[bold green]nothing lost, nothing doubled, nothing out of order[/]")
            return 0
        for label, value in _broken(report):
            self._console.print(f"{label}: {value}", markup=False, soft_wrap=True)
        self._console.print(f"[bold red]not as it should be: {', '.join(complaints)}[/]", soft_wrap=True)
        return 1

    def _complaints(self, report: Report) -> list[str]:
        """What the audit holds against the run, and what of the traffic has not arrived."""
        found = [f"{value.split()[0]} {label}" for label, value in _broken(report)]
        valid, invalid = count(self._arrivals, "native", "shorthand"), count(self._arrivals, "invalid")
        if report.events != valid + invalid:
            found.append(f"{report.events} of {valid + invalid} events in Kafka")
        if report.delivered != valid:
            found.append(f"{report.delivered} of {valid} valid events delivered")
        if report.dead_letters != ({"invalid_event": invalid} if invalid else {}):
            found.append(f"{report.dead_letters['invalid_event']} of {invalid} invalid events in the dead letters")
        return found

    def _say_what_is_run(self) -> None:
        options = self._options
        kind = "given" if options.broker else "embedded"
        api = urlsplit(self._emulator.origin).netloc
        self._console.print(
            f"Kafka at {self._kafka.bootstrap_servers} ({kind}) -> Convoy -> API at {api}\n"
            f"{options.events:,} events of {options.conversations:,} conversations, {options.rate:,.0f} a second; "
            f"the API takes {options.latency_seconds * 1000:,.0f} ms",
            style="dim",
            soft_wrap=True,
        )

    def _say_how_far(self, service: Service) -> None:
        figures = Figures(service.metrics.registry)
        delivered = round(figures.total("delivered_items_total"))
        published = self._counts.get(self._kafka.events_topic, 0)
        self._console.print(f"interrupted, and drained: {delivered:,} of {published:,} events published are delivered")

    def _addresses(self, service: Service) -> RenderableType:
        liveliest = max(self._conversations, key=lambda id_: len(self._emulator.store.conversations[id_]))
        return addresses(
            {
                "metrics": _metrics_address(service),
                "the API's page": f"{self._emulator.origin}/",
                "conversations": f"{self._emulator.origin}/_emulator/dump",
                "the liveliest": f"curl -H 'Authorization: Bearer {KEY}' "
                f"'{self._emulator.base_url}/conversations/{liveliest}/items?order=asc'",
                "Kafka": f"{self._kafka.bootstrap_servers}, topics {self._kafka.group_id}.*",
            }
        )


def _broken(report: Report) -> list[tuple[str, str]]:
    """The lines of the audit that should say 0 and do not."""
    return [(label, value) for label, value in report.lines() if label not in NO_FAULT and not value.startswith("0")]


def _metrics_address(service: Service) -> str:
    return f"http://127.0.0.1:{service.listener.port}/metrics"


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"convoy demo: {message}\n")
    return code


@contextlib.contextmanager
def _logs_in(path: Path) -> Iterator[None]:
    """Send the logs to a file: on the terminal they would tear the view."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with path.open("w", encoding="utf-8") as file:
        logs.set_up(LogSettings(format="console"))
        (output,) = root.handlers
        assert isinstance(output, logging.StreamHandler)
        output.setStream(file)
        try:
            yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)


def _show_end(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines:
        told = ["the service's log ends:", *lines[-LOG_LINES:], f"all of it: {path}"]
        sys.stderr.write("".join(f"  {line}\n" for line in told))
