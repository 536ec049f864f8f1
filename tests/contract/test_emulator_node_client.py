"""The official `openai` client for Node against the emulator; what it does stands in `node/openai_client.test.mjs`."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest_asyncio

from service.emulator.server import EmulatorServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

KEY = "sk-of-node"
PACKAGE = Path(__file__).parent / "node"


async def run(*command: str, **environment: str) -> tuple[int, str]:
    """Return the exit code and what was printed, of a program in the package's folder."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=PACKAGE,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


def installed() -> bool:
    """Whether what is installed is what the lock file says; npm notes beside the packages what it installed."""
    noted = PACKAGE / "node_modules" / ".package-lock.json"
    return noted.exists() and noted.stat().st_mtime >= (PACKAGE / "package-lock.json").stat().st_mtime


@pytest_asyncio.fixture
async def node(missing: Callable[[str], NoReturn]) -> str:
    found, npm = shutil.which("node"), shutil.which("npm")
    if found is None or npm is None:
        missing("the openai client for Node needs Node 20 and npm")
    _, version = await run(found, "--version")
    if int(version.removeprefix("v").partition(".")[0]) < 20:
        missing(f"the openai client for Node needs Node 20, not {version.strip()}")
    if not installed():
        code, output = await run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
        if code:
            missing(f"the openai client for Node could not be installed:\n{output}")
    return found


async def test_the_node_client_does_everything_there_is_and_meets_every_trouble(node: str) -> None:
    async with EmulatorServer(key=KEY) as emulator:
        code, output = await run(
            node,
            "--test",
            "--test-reporter=tap",
            EMULATOR_ORIGIN=emulator.origin,
            EMULATOR_BASE_URL=emulator.base_url,
            EMULATOR_KEY=KEY,
        )
    assert code == 0, output
    counts = dict(re.findall(r"^# (tests|pass) (\d+)$", output, re.MULTILINE))
    assert counts["pass"] == counts["tests"] == "30", output
