"""The emulator is no bottleneck of demo and tests: the benchmark in small, held to what it promises.

Judged is what a request costs the emulator's process, which a busy machine changes little: one core then has room for
so many a second. `make bench-emulator` says how many they really are on a machine with nothing else to do.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench" / "emulator.py"
PROMISED_PER_SECOND = 1500


async def test_one_process_has_room_for_as_many_requests_as_promised() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(BENCH), "--items", "20000", "--requests", "2000"), stdout=asyncio.subprocess.PIPE
    )
    printed = (await process.communicate())[0].decode()
    print(printed)  # noqa: T201 - the figures are of interest where it fails
    costs = re.findall(r"^ +create 1 item .* ([\d,]+) µs of processor each$", printed, re.MULTILINE)
    assert len(costs) == 2, "one at first, one with the items stored"
    for microseconds in costs:
        assert 1e6 / int(microseconds.replace(",", "")) >= PROMISED_PER_SECOND
