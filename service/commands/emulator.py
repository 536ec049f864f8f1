"""`convoy emulator`: the emulated Conversations API on a port, until told to stop."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from typing import TYPE_CHECKING, TypedDict, Unpack

import uvloop

from service.emulator.faults import FaultScriptError, load_faults
from service.emulator.server import EmulatorServer

if TYPE_CHECKING:
    from pathlib import Path

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_GC_THRESHOLD = 50_000
"""Allocations of container objects between two looks at the youngest: items stay, and form no garbage."""


class Options(TypedDict):
    """What is passed on to the server as it is."""

    host: str
    port: int
    key: str | None
    latency_seconds: float
    seed: int
    create_on_write: bool
    prefix: str
    timestamps_in_seconds: bool


def run_emulator(*, faults_file: Path | None, **options: Unpack[Options]) -> int:
    """Serve until SIGINT or SIGTERM; print the base URL once it answers. Returns the exit code."""
    try:
        faults = load_faults(faults_file) if faults_file is not None else None
    except FaultScriptError as error:
        sys.stderr.write(f"convoy emulator: {error}\n")
        return 2
    gc.set_threshold(_GC_THRESHOLD, 20, 100)
    server = EmulatorServer(faults=faults, **options)
    try:
        uvloop.run(_serve(server))
    except OSError as error:
        sys.stderr.write(f"convoy emulator: cannot listen on {options['host']}:{options['port']}: {error.strerror}\n")
        return 1
    return 0


async def _serve(server: EmulatorServer) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stopped.set)
    try:
        async with server:
            sys.stdout.write(f"{server.base_url}\n")
            sys.stdout.flush()
            await stopped.wait()
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
