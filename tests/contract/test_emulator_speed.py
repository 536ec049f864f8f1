"""The emulator is no bottleneck of demo and tests: the benchmark in small, held to what it promises."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench" / "emulator.py"
PROMISED_PER_SECOND = 1500


async def test_one_process_serves_as_many_requests_as_promised() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(BENCH), "--items", "20000", "--requests", "2000"), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    print(output.decode())  # noqa: T201 - the figures are of interest where it fails
    served = re.search(rb"^([\d,]+) create-items requests/s from one process", output, re.MULTILINE)
    assert served, output.decode()
    assert int(served[1].replace(b",", b"")) >= PROMISED_PER_SECOND
