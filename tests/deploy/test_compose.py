"""The compose file: read as a whole and held against the package, since not every machine can start it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from kafka_server import container_image

import service

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from service.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: each for name, each in SERVICES.items() if each["image"].startswith("convoy:")}
PINNED = re.compile(r":v?\d+\.\d+\.\d+$|@sha256:[0-9a-f]{64}$")

every_service = pytest.mark.parametrize("name", SERVICES)
every_service_of_ours = pytest.mark.parametrize("name", OURS)


@every_service
def test_an_image_is_pinned(name: str) -> None:
    assert PINNED.search(SERVICES[name]["image"]), SERVICES[name]["image"]


@every_service_of_ours
def test_our_image_is_built_from_here_in_the_version_of_the_package(name: str) -> None:
    assert OURS[name]["image"] == f"convoy:{service.__version__}"
    assert (DEPLOY / OURS[name]["build"]["context"] / "Dockerfile").is_file()


@every_service_of_ours
def test_a_command_is_one_that_convoy_knows(name: str) -> None:
    # --help ends a command before it starts, but after its options have been parsed.
    command = [sys.executable, "-m", "service", *OURS[name]["command"], "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@every_service_of_ours
def test_the_service_accepts_its_variables(read_settings: Callable[[Mapping[str, str]], Settings], name: str) -> None:
    settings = read_settings(OURS[name]["environment"])
    assert "aliyuncs.com" not in settings.api.base_url, "a trial must not reach the real API"


@every_service_of_ours
def test_our_container_is_confined_as_on_kubernetes(name: str) -> None:
    assert OURS[name]["read_only"] is True
    assert OURS[name]["tmpfs"] == ["/tmp"]
    assert OURS[name]["cap_drop"] == ["ALL"]
    assert OURS[name]["security_opt"] == ["no-new-privileges:true"]


@every_service
def test_what_is_waited_for_can_come_about(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other], other
        if how["condition"] == "service_completed_successfully":
            assert SERVICES[other].get("restart", "no") == "no", other


@every_service
def test_a_mounted_file_exists(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source, _, mode = volume.split(":")
        assert (DEPLOY / source).is_file(), source
        assert mode == "ro"


@every_service
def test_a_port_is_open_to_this_machine_alone(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:"), port


def test_the_service_waits_for_its_topics_and_the_events_for_the_service() -> None:
    assert SERVICES["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    assert SERVICES["convoy"]["depends_on"] == {
        "topics": {"condition": "service_completed_successfully"},
        "emulator": {"condition": "service_healthy"},
    }
    assert SERVICES["publisher"]["depends_on"] == {"convoy": {"condition": "service_healthy"}}


def test_the_names_that_find_each_other_agree(read_settings: Callable[[Mapping[str, str]], Settings]) -> None:
    settings = read_settings(SERVICES["convoy"]["environment"])
    advertised = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"INSIDE://{settings.kafka.bootstrap_servers}," in advertised
    options = SERVICES["emulator"]["command"]
    port = options[options.index("--port") + 1]
    assert settings.api.base_url == f"http://emulator:{port}/v1"
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    [job] = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"convoy:{settings.ops.port}"]}]


def test_the_broker_is_the_one_that_the_tests_run_against() -> None:
    assert SERVICES["kafka"]["image"] == container_image()


def test_the_service_has_longer_to_stop_than_it_drains(
    read_settings: Callable[[Mapping[str, str]], Settings],
) -> None:
    drain_seconds = read_settings(SERVICES["convoy"]["environment"]).shutdown.drain_seconds
    assert int(SERVICES["convoy"]["stop_grace_period"].removesuffix("s")) >= drain_seconds + 15


def test_the_sample_shows_both_forms_of_an_event_in_interleaved_conversations() -> None:
    events = [json.loads(line) for line in (DEPLOY / "sample-events.jsonl").read_text().splitlines()]
    conversations = [event["conversation_id"] for event in events]
    assert conversations != sorted(conversations)
    assert {"item" in event for event in events} == {True, False}
    assert len({event["event_id"] for event in events}) == len(events)
