"""Runs for the tests of this folder, and their figures at the end."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from fault_run import TOLD, FaultRun

from service.emulator.faults import FaultScript

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from conftest import MakeTopics
    from fault_run import MakeRun
    from kafka_server import KafkaServer


@pytest.fixture
def fault_run(kafka: KafkaServer, topics: MakeTopics, tmp_path: Path) -> MakeRun:
    """`async with fault_run(script, settings=…) as run` → an emulated API that plays the script, fresh topics."""

    @contextlib.asynccontextmanager
    async def make(
        script: FaultScript = FaultScript(),  # noqa: B008 - frozen
        *,
        partitions: int = 4,
        **options: Any,
    ) -> AsyncIterator[FaultRun]:
        names = await topics(partitions=partitions)
        async with FaultRun(kafka.bootstrap_servers, names, tmp_path, script, **options) as run:
            yield run

    return make


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TOLD:
        terminalreporter.section("figures of the runs under faults")
        for figures in TOLD:
            terminalreporter.write_line(figures.line())
