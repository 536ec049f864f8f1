"""How a start ends that cannot succeed, and the other way to run the service."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from service_process import API_KEY, ServiceProcess, chat, delivered, until

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import MakeTrial

KEY = {"API__KEY": API_KEY}
FASTSTREAM = ("faststream", "run", "service.app:create_app", "--factory")
BAD_SETTINGS = {
    "a window of -1": (
        KEY | {"BATCH__WINDOW_SECONDS": "-1"},
        "CONVOY_BATCH__WINDOW_SECONDS: Input should be greater than or equal to 0",
    ),
    "21 items": (KEY | {"BATCH__MAX_ITEMS": "21"}, "CONVOY_BATCH__MAX_ITEMS: Input should be less than or equal to 20"),
    "no key": ({}, "CONVOY_API__KEY: no key (set it, or CONVOY_API__KEY_FILE)"),
    "an unknown name": (
        KEY | {"BATCH__WINDOW_SECOND": "1"},
        "CONVOY_BATCH__WINDOW_SECOND: there is no such setting; did you mean CONVOY_BATCH__WINDOW_SECONDS?",
    ),
    "an unknown group": (KEY | {"BATHC__WINDOW": "1"}, "CONVOY_BATHC__WINDOW: there is no such setting"),
    "a drain shorter than an attempt": (
        KEY | {"SHUTDOWN__DRAIN_SECONDS": "5"},
        "CONVOY_SHUTDOWN__DRAIN_SECONDS (5) must exceed API__TOTAL_TIMEOUT_SECONDS (20)",
    ),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
async def test_bad_settings_end_the_start_with_one_clear_line(tmp_path: Path, case: str) -> None:
    settings, line = BAD_SETTINGS[case]
    async with ServiceProcess(settings, tmp_path) as service:
        assert await service.ended() == 2
        assert service.log().startswith(f"convoy: {line}")
        assert service.log().count("\n") == 1


async def test_under_faststream_bad_settings_end_the_start_with_the_same_line(tmp_path: Path) -> None:
    settings, line = BAD_SETTINGS["21 items"]
    async with ServiceProcess(settings, tmp_path, command=FASTSTREAM) as service:
        assert await service.ended() == 2
        assert service.log().startswith(f"convoy: {line}")
        assert service.log().count("\n") == 1


async def test_a_port_that_is_taken_ends_the_start_with_a_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = KEY | {"OPS__PORT": str(taken.getsockname()[1])}
        async with ServiceProcess(settings, tmp_path) as service:
            assert await service.ended() == 1
            (complaint,) = service.complaints()
            assert "CONVOY_OPS__PORT" in complaint
            assert f'"port":{taken.getsockname()[1]}' in complaint
            assert "Traceback" not in complaint


async def test_an_address_that_is_not_ours_ends_the_start_with_a_clear_line(tmp_path: Path) -> None:
    async with ServiceProcess(KEY | {"OPS__HOST": "192.0.2.1"}, tmp_path) as service:
        assert await service.ended() == 1
        (complaint,) = service.complaints()
        assert "CONVOY_OPS__HOST" in complaint


async def test_faststream_runs_the_application_too_and_drains_it(trial: MakeTrial) -> None:
    run = await trial(partitions=2, latency_seconds=0.2)
    count = await run.publish(chat(conversations=60, turns=40))
    async with run.process(command=FASTSTREAM, DELIVERY__MAX_CONCURRENCY="16") as first:
        await first.ready()
        await delivered(first, 400)
        assert await first.stop() == 0
    halfway = await run.audit()
    assert 400 <= halfway.delivered < count
    assert run.emulator.store.items_stored == halfway.delivered

    async with run.process(command=FASTSTREAM) as second:
        await run.finished()
        assert await second.stop() == 0
    report = await run.audit()
    assert report.content, report.lines()


async def test_neither_key_nor_message_text_is_in_a_log_at_any_level(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    await run.publish(chat(conversations=5, turns=5, words=" SECRETWORDS"))
    async with run.process(LOG__LEVEL="debug") as service:
        await service.ready()
        await run.finished()
        await until("metrics", lambda: service.metric("delivered_items_total"))
        pages = [(await service.get(path)).text for path in ("/metrics", "/status", "/readyz", "/livez")]
        assert await service.stop() == 0
        for text in (service.log(), *pages):
            assert API_KEY not in text
            assert "SECRETWORDS" not in text
            assert "conv_00" not in text
