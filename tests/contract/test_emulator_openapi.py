"""The emulator's description of itself, held against what it does by a stranger's tool."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.emulator.contract import OPERATIONS
from service.emulator.server import EmulatorServer

HERE = Path(__file__).parent
KEY = "sk-described"
EXAMPLES = 15
"""Requests an operation and phase; the whole takes less than half a minute."""


async def described(emulator: EmulatorServer) -> Any:
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"{emulator.origin}/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    return answer.raise_for_status().json()


async def schemathesis(emulator: EmulatorServer, folder: Path) -> tuple[int, str]:
    """Return the exit code (0: nothing found, 1: something) and what was printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml")),
        *("run", f"{emulator.origin}/openapi.json", "--header", f"Authorization: Bearer {KEY}"),
        *("--checks", "all", "--max-examples", str(EXAMPLES), "--seed", "1", "--no-color"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    async with EmulatorServer(key=KEY, seed=1) as emulator:
        code, output = await schemathesis(emulator, tmp_path)
        asked = emulator.stats()["requests"]
    assert code == 0, output
    # It got far enough in for this to mean something: each operation was done, and refused.
    for operation in OPERATIONS:
        assert "200" in asked[operation], f"{operation} never succeeded\n{output}"
        assert "401" in asked[operation], f"{operation} was never asked for without the key\n{output}"
    assert {"400", "404"} <= set(asked["create_items"])


async def test_the_description_follows_the_settings() -> None:
    async with EmulatorServer(key=KEY, prefix="/some/path/v1") as emulator:
        document = await described(emulator)
        assert document["servers"] == [{"url": "/some/path/v1"}]
        assert document["security"] == [{"key": []}]
    async with EmulatorServer(prefix="") as emulator:
        document = await described(emulator)
        assert document["servers"] == [{"url": "/"}]
        assert "security" not in document
        named = {
            operation.get("operationId")
            for path in document["paths"].values()
            for operation in path.values()
            if isinstance(operation, dict)
        }
        assert named == set(OPERATIONS)


@pytest.mark.parametrize("path", ["/openapi.json", "/"])
async def test_what_is_for_people_is_read_and_not_written(path: str) -> None:
    async with EmulatorServer(key=KEY) as emulator, httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(emulator.origin + path)).status_code == 200
        answer = await http.post(emulator.origin + path, content=json.dumps({}))
        assert answer.status_code == 404
