"""The compose file: read as a whole and held against the package, since not every machine can start it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from kafka_server import container_image

import service

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kafka_server import KafkaServer

    from service.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: each for name, each in SERVICES.items() if each["image"].startswith("convoy:")}
PINNED = re.compile(r":v?\d+\.\d+\.\d+$|@sha256:[0-9a-f]{64}$")

every_service = pytest.mark.parametrize("name", SERVICES)
every_service_of_ours = pytest.mark.parametrize("name", OURS)


def targets(name: str) -> dict[str, str]:
    """What is mounted into a container: path there → path here."""
    return {target: source for source, target, _ in (each.split(":") for each in SERVICES[name].get("volumes", []))}


def test_the_file_is_one_by_composes_own_schema(tools: Path) -> None:
    schema = json.loads((tools / "compose-spec.json").read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    validator.validate(COMPOSE)
    assert not validator.is_valid(COMPOSE | {"services": {"kafka": {"image": "x", "dependson": ["topics"]}}})


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
    assert set(prometheus["rule_files"]) < set(targets("prometheus"))


@every_service
def test_a_health_check_asks_a_port_that_the_service_has(name: str) -> None:
    asked = re.findall(
        r"(?:localhost|127\.0\.0\.1)(?:[:]|', )(\d+)", " ".join(SERVICES[name].get("healthcheck", {}).get("test", []))
    )
    open_ports = {port.rsplit(":", 1)[1] for port in SERVICES[name].get("ports", [])}
    assert set(asked) <= open_ports
    assert bool(asked) == ("healthcheck" in SERVICES[name])


def test_the_head_of_the_file_names_every_open_port() -> None:
    head = (DEPLOY / "compose.yaml").read_text().partition("\nname:")[0]
    ports = {port.split(":")[1] for each in SERVICES.values() for port in each.get("ports", [])}
    assert set(re.findall(r"localhost:(\d+)", head)) == ports


def test_a_mounted_file_of_a_command_is_where_the_command_looks() -> None:
    assert SERVICES["publisher"]["command"][-1] in targets("publisher")


def test_grafana_finds_its_source_its_dashboard_and_its_first_page() -> None:
    provisioning = "/etc/grafana/provisioning"
    mounted = targets("grafana")
    [source] = yaml.safe_load((DEPLOY / mounted[f"{provisioning}/datasources/prometheus.yaml"]).read_text())[
        "datasources"
    ]
    [port] = [port.rsplit(":", 1)[1] for port in SERVICES["prometheus"]["ports"]]
    assert (source["type"], source["url"]) == ("prometheus", f"http://prometheus:{port}")
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    [provider] = yaml.safe_load((DEPLOY / mounted[f"{provisioning}/dashboards/convoy.yaml"]).read_text())["providers"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounted[home] == "./grafana/convoy.json"
    assert str(Path(home).parent) == provider["options"]["path"]


def test_grafana_is_the_one_whose_types_the_dashboard_is_checked_against() -> None:
    package = json.loads((Path(__file__).parent / "grafana" / "package.json").read_text())
    assert SERVICES["grafana"]["image"].partition(":")[2] == package["devDependencies"]["@grafana/schema"]


def test_prometheus_accepts_its_configuration(tools: Path, tmp_path: Path) -> None:
    mounted = targets("prometheus")
    text = (DEPLOY / mounted["/etc/prometheus/prometheus.yml"]).read_text()
    for target, source in mounted.items():
        text = text.replace(target, str(DEPLOY / source))
    (tmp_path / "prometheus.yml").write_text(text)
    command = [str(tools / "bin" / "promtool"), "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout


async def test_every_variable_of_the_broker_is_a_setting_of_a_real_one(kafka: KafkaServer) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    try:
        [answer] = await admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, "1")])
    finally:
        await admin.close()
    known = {entry[0] for resource in answer.resources for entry in resource[4]}
    given = {name.removeprefix("KAFKA_").lower().replace("_", ".") for name in SERVICES["kafka"]["environment"]}
    assert given <= known


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
