"""`convoy emulator`: the emulated Conversations API on a port, until told to stop."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING

from service.emulator.faults import FaultScriptError, load_faults
from service.emulator.server import EmulatorServer

if TYPE_CHECKING:
    from pathlib import Path

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


async def run_emulator(
    *,
    host: str,
    port: int,
    key: str | None,
    latency_seconds: float,
    faults_file: Path | None,
    seed: int,
    create_on_write: bool,
) -> int:
    """Serve until SIGINT or SIGTERM; print the base URL once it answers. Returns the exit code."""
    try:
        faults = load_faults(faults_file) if faults_file is not None else None
    except FaultScriptError as error:
        sys.stderr.write(f"convoy emulator: {error}\n")
        return 2
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stopped.set)
    server = EmulatorServer(
        host=host,
        port=port,
        key=key,
        latency_seconds=latency_seconds,
        faults=faults,
        seed=seed,
        create_on_write=create_on_write,
    )
    try:
        async with server:
            sys.stdout.write(f"{server.base_url}\n")
            sys.stdout.flush()
            await stopped.wait()
    except OSError as error:
        sys.stderr.write(f"convoy emulator: cannot listen on {host}:{port}: {error.strerror}\n")
        return 1
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
    return 0
