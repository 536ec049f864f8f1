"""What dashboard and alerts show of the real service, under load and under faults, on a real Prometheus."""

from __future__ import annotations

import asyncio
import math
import subprocess
from typing import TYPE_CHECKING

import pytest
from observed import DASHBOARD, Observed, observe

from service.ops.metrics import TABLE

if TYPE_CHECKING:
    from pathlib import Path

    from kafka_server import KafkaServer
    from observed import Series

NAMES = [row.name for row in TABLE]
SHOWN = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] != "row"]
FAULTS_THAT_ALERT = {
    "ConvoyDeadLetters",
    "ConvoyCircuitOpen",
    "ConvoyFloodGuard",
    "ConvoyKeyMismatch",
    "ConvoyAbsent",
}
"""Whose condition the faults of the run make true; the others wait for minutes, which `promtool test rules` plays."""


@pytest.fixture(scope="module")
def seen(kafka: KafkaServer, tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    return asyncio.run(observe(kafka, tools, tmp_path_factory.mktemp("observed"), NAMES))


def moved(series: Series) -> bool:
    return any(value and not math.isnan(value) for _, points in series for _, value in points)


@pytest.mark.parametrize("title", SHOWN)
def test_no_panel_is_without_data_when_its_fault_is_on(seen: Observed, title: str) -> None:
    for legend, series in seen.panels[title]:
        assert series, f"{title}, {legend}: no series"
        assert moved(series), f"{title}, {legend}: {series}"


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_is_there_and_moves(seen: Observed, name: str) -> None:
    assert moved(seen.names[name])


def test_annotations_mark_alerts_and_restarts(seen: Observed) -> None:
    assert moved(seen.annotations["Alerts"])
    assert set(seen.annotations) == {"Alerts", "Restarts"}


def test_prometheus_evaluates_every_alert_without_an_error(seen: Observed) -> None:
    assert len(seen.rules) > 10
    assert {rule["name"]: (rule["health"], rule.get("lastError", "")) for rule in seen.rules} == {
        rule["name"]: ("ok", "") for rule in seen.rules
    }


def test_every_alert_looks_at_series_that_there_are(seen: Observed) -> None:
    assert not {name for name, series in seen.alert_inputs.items() if not series}


@pytest.mark.parametrize("name", sorted(FAULTS_THAT_ALERT))
def test_a_fault_makes_the_condition_of_its_alert_true(seen: Observed, name: str) -> None:
    assert seen.alerts[name]


def test_alerts_without_a_wait_fire(seen: Observed) -> None:
    assert {"ConvoyDeadLetters", "ConvoyFloodGuard", "ConvoyKeyMismatch"} <= seen.firing


def test_promtool_has_nothing_to_say_about_the_metrics_of_a_process_under_load(seen: Observed, tools: Path) -> None:
    command = [str(tools / "bin" / "promtool"), "check", "metrics"]
    done = subprocess.run(command, input=seen.exposition, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
