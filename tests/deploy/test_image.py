"""The image, run for real the way the chart runs it: read-only, without capabilities, as 10001.

`make image-test` builds it; `CONVOY_TEST_IMAGE` names one that is there already.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from service_process import API_KEY, ServiceProcess, chat, delivered, until

import service

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from conftest import MakeTrial

KEY_FILE = "/etc/convoy/api-key/key"
OWN_MEGABYTES = 90
"""What the image may hold beyond its base; it is some 80."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image and the engine that runs it."""

    name: str
    engine: tuple[str, ...]
    limits: tuple[str, ...] = ()

    def command(self, *arguments: str, options: tuple[str, ...] = ()) -> list[str]:
        """The command line of a container confined as the chart's `securityContext` confines it."""
        confined = ("--network=host", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--user=10001:10001")
        return [
            *(*self.engine, "run", "--rm", *self.limits, *confined, "--security-opt=no-new-privileges"),
            *(*options, self.name, *arguments),
        ]

    def run(self, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = self.command(*arguments, options=options)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)

    def inspect(self, what: str) -> dict[str, Any]:
        command = [*self.engine, "image", "inspect", what]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        [found] = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found


def configured(variables: Mapping[str, str], folder: Path) -> tuple[str, ...]:
    """The options that give a container its settings, the key as a mounted file."""
    key = folder / "key"
    key.write_text(API_KEY + "\n")
    key.chmod(0o644)
    given = {name: value for name, value in variables.items() if name != "CONVOY_API__KEY"}
    given["CONVOY_API__KEY_FILE"] = KEY_FILE
    return (f"--volume={key}:{KEY_FILE}:ro", *(f"--env={name}={value}" for name, value in given.items()))


class ServiceContainer(ServiceProcess):
    """`convoy run` in a container; told to stop as Kubernetes does, and killed at the end if need be."""

    def __init__(self, image: Image, settings: Mapping[str, str], folder: Path) -> None:
        super().__init__(settings, folder)
        self._image = image
        self._name = f"convoy-test-{uuid.uuid4().hex[:8]}"
        given = {name: value for name, value in self._environment.items() if name.startswith("CONVOY_")}
        self._command = image.command("run", options=(f"--name={self._name}", *configured(given, folder)))

    async def stop(self, within_seconds: float = 60.0) -> int:
        """`podman stop`: SIGTERM to the container's first process, SIGKILL only after the time the chart gives."""
        stopping = await asyncio.create_subprocess_exec(
            *self._image.engine, "stop", "--time=60", self._name, stdout=subprocess.DEVNULL
        )
        await stopping.wait()
        return await self.ended(within_seconds)

    def kill(self) -> None:
        subprocess.run([*self._image.engine, "rm", "--force", self._name], capture_output=True, check=False)
        super().kill()


@pytest.fixture(scope="module")
def image(missing: Callable[[str], NoReturn]) -> Image:
    name = os.environ.get("CONVOY_TEST_IMAGE")
    if not name:
        missing("no image: `make image-test` builds one")
    if subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0:
        return Image(name, ("docker",))
    # Inside a container that has no right to raise limits, podman's defaults are refused.
    return Image(name, ("podman", "--runtime=runc"), ("--pull=never", "--ulimit=nofile=4096", "--ulimit=nproc=4096"))


def test_it_says_what_it_is_and_that_no_root_is_needed(image: Image) -> None:
    config = image.inspect(image.name)["Config"]
    assert config["User"] == "10001:10001", "a number: of a name the kubelet cannot tell that it is not root"
    assert config["Entrypoint"] == ["convoy"], "no shell between the signal and the process"
    assert config["Cmd"] == ["run"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == service.__version__
    assert len(labels["org.opencontainers.image.revision"]) == 40
    assert {"title", "description", "licenses", "base.name"} <= {
        label.removeprefix("org.opencontainers.image.") for label in labels
    }


def test_it_is_small(image: Image) -> None:
    base = image.inspect(image.inspect(image.name)["Config"]["Labels"]["org.opencontainers.image.base.name"])
    assert image.inspect(image.name)["Size"] - base["Size"] < OWN_MEGABYTES * 1e6


INSIDE = """
import os, pathlib, service, sys
assert (os.getuid(), os.getgid()) == (10001, 10001), (os.getuid(), os.getgid())
rights = dict(line.split(":", 1) for line in open("/proc/self/status"))
assert int(rights["CapEff"], 16) == int(rights["CapBnd"], 16) == 0, rights
assert rights["NoNewPrivs"].strip() == "1"
packages = pathlib.Path(service.__file__).parent.parent
for folder in ("/", "/opt/convoy", packages / "service"):
    try:
        pathlib.Path(folder, "written").touch()
    except OSError:
        continue
    sys.exit(f"{folder} is writable")
pathlib.Path("/tmp/written").touch()
assert not [name for name in ("pip", "setuptools", "hatchling") if (packages / name).exists()]
assert pathlib.Path(service.__cached__).is_file(), "compiled at the start, again and again"
left = [str(path) for root in ("/root", "/src", "/wheels", "/opt/backend") for path in pathlib.Path(root).glob("**/*")]
assert not [path for path in left if not path.startswith("/root/.")], left
print("as it should be")
"""


def test_inside_nothing_can_be_written_but_tmp_and_nothing_was_left_behind(image: Image) -> None:
    done = image.run("-c", INSIDE, options=("--entrypoint=python3",))
    assert done.stdout == "as it should be\n", done.stderr


def test_it_shows_its_settings_and_no_secret(image: Image) -> None:
    done = image.run("config", options=(f"--env=CONVOY_API__KEY={API_KEY}",))
    assert "CONVOY_KAFKA__BOOTSTRAP_SERVERS=localhost:9092" in done.stdout
    assert API_KEY not in done.stdout + done.stderr


async def test_without_a_broker_it_is_alive_and_not_ready_and_stops_in_order(image: Image, tmp_path: Path) -> None:
    settings = {"API__KEY": "", "KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    async with ServiceContainer(image, settings, tmp_path) as container:
        await until("an answer", container.answers)
        assert (await container.get("/livez")).status_code == 200
        assert (await container.readiness())[0] == 503
        assert (await container.get("/metrics")).status_code == 200
        assert await container.stop() == 0


async def test_the_check_that_helm_runs_in_it_is_content(image: Image, trial: MakeTrial) -> None:
    run = await trial()
    variables = {f"CONVOY_{name}": value for name, value in run.settings().items()}
    command = image.command("check", options=configured(variables, run.folder))
    checking = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said, complained = await checking.communicate()
    assert checking.returncode == 0, (said + complained).decode()
    assert "✓" in said.decode()
    assert "✗" not in said.decode()


async def test_told_to_stop_under_load_it_drains_and_its_successor_goes_on(image: Image, trial: MakeTrial) -> None:
    run = await trial(latency_seconds=0.05)
    # The defaults of production, as the chart leaves them.
    settings = {name: value for name, value in run.settings().items() if name.startswith(("KAFKA__", "API__"))}
    settings["DELIVERY__MAX_CONCURRENCY"] = "4"
    count = await run.publish(chat(conversations=200, turns=40))
    async with ServiceContainer(image, settings, run.folder) as first:
        await first.ready()
        assert (await first.get("/livez")).status_code == 200
        await delivered(first, 400)
        assert await first.stop() == 0
        assert first.complaints() == []
        assert first.lines()[-1]["message"] == "stopped"
        assert API_KEY not in first.log()
    held = len(await run.replies())
    assert 400 <= held < count, "stopped in the midst of it"
    async with ServiceContainer(image, settings, run.folder) as second:
        await run.finished()
        assert await second.stop() == 0
    report = await run.audit()
    assert report.content, report.lines()
    assert (report.delivered, report.duplicate_replies.count) == (count, 0)
