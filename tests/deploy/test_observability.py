"""Alerts, runbook and dashboard agree with each other, with the metrics' table and with their own tools."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from service.ops.metrics import PREFIX, TABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
ALERTS_FILE = ROOT / "deploy" / "prometheus" / "alerts.yaml"
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS_FILE.read_text())["groups"] for rule in group["rules"]
]
CASES_FILE = Path(__file__).with_name("alerts_test.yaml")
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "convoy.json").read_text())
ROWS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TYPES = Path(__file__).parent / "grafana"
SAMPLES = re.compile(rf"\b{PREFIX}[a-z_]+|\bprocess_[a-z_]+")
SELECTOR = '{namespace=~"$namespace",job=~"$release"'

every_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
every_panel = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))


def section(page: str, anchor: str) -> str:
    """The text under the heading that has this anchor; empty without one."""
    found: list[str] = []
    inside = False
    for line in (ROOT / page).read_text().splitlines():
        if heading := re.match(r"#+ (.+)", line):
            slug = re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-")
            inside = slug == anchor
        elif inside:
            found.append(line)
    return "\n".join(found)


def metric_names(expression: str) -> set[str]:
    """The rows of the table that an expression reads."""
    names = set()
    for sample in SAMPLES.findall(expression):
        name = sample.removeprefix(PREFIX)
        names.add(re.sub(r"_(bucket|sum|count)$", "", name) if name not in {row.name for row in TABLE} else name)
    return names


# --- Alerts and their runbook ---


@every_alert
def test_an_alert_says_how_bad_what_and_where_it_is_written_what_to_do(alert: Mapping[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert len(alert["annotations"]["summary"]) > 20
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    entry = section(page, anchor)
    for part in ("**Means**", "**Check**", "**Act**"):
        assert part in entry, f"{page}#{anchor} has no {part}"


def test_every_entry_of_the_runbook_has_an_alert() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    assert headings
    assert set(headings) == {alert["alert"] for alert in ALERTS}


@every_alert
def test_an_alert_reads_metrics_that_there_are(alert: Mapping[str, Any]) -> None:
    names = metric_names(alert["expr"])
    assert names
    assert names <= {row.name for row in TABLE}


@every_alert
def test_an_alert_has_a_case_where_it_fires_and_one_where_it_is_silent(alert: Mapping[str, Any]) -> None:
    cases = [
        bool(check.get("exp_alerts"))
        for case in yaml.safe_load(CASES_FILE.read_text())["tests"]
        for check in case["alert_rule_test"]
        if check["alertname"] == alert["alert"]
    ]
    assert set(cases) == {True, False}


def test_promtool_finds_the_rules_well_formed_and_each_case_as_expected(tools: Path) -> None:
    for what, file in (("check", ALERTS_FILE), ("test", CASES_FILE)):
        command = [str(tools / "bin" / "promtool"), what, "rules", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_that_were_blind_would_be_caught(tools: Path, tmp_path: Path) -> None:
    for path in (ALERTS_FILE, CASES_FILE):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True)
        shutil.copy(path, target)
    broken = tmp_path / ALERTS_FILE.relative_to(ROOT)
    broken.write_text(broken.read_text().replace('result="lost"}', 'result="lots"}'))
    cases = tmp_path / CASES_FILE.relative_to(ROOT)
    command = [str(tools / "bin" / "promtool"), "test", "rules", str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ConvoyLedgerLost" in done.stdout + done.stderr


# --- The dashboard ---


@every_panel
def test_a_panel_says_what_it_means_and_what_to_do(panel: Mapping[str, Any]) -> None:
    assert len(panel["description"]) > 50
    assert panel["description"].endswith(".")


@every_panel
def test_a_panel_asks_the_chosen_source_for_the_chosen_release(panel: Mapping[str, Any]) -> None:
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == "${datasource}"
        expression = target["expr"]
        samples = SAMPLES.findall(expression)
        assert samples
        assert expression.count(SELECTOR) == len(samples), expression


def test_the_dashboard_shows_every_metric() -> None:
    expressions = [target["expr"] for panel in PANELS for target in panel["targets"]]
    shown = set().union(*(metric_names(expression) for expression in expressions))
    assert {name for name in shown if not name.startswith("process_")} == {row.name for row in TABLE}


def test_no_panel_covers_another_and_none_hangs_over_the_edge() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_variables_choose_data_source_namespace_and_release() -> None:
    assert [each["name"] for each in DASHBOARD["templating"]["list"]] == ["datasource", "namespace", "release"]


def type_errors(tools: Path, folder: Path, dashboard: Mapping[str, Any]) -> str:
    (folder / "node_modules").symlink_to(tools / "node_modules")
    shutil.copy(TYPES / "types.ts", folder)
    source = (
        f'import type {{ Convoy }} from "./types";\nexport const dashboard: Convoy = {json.dumps(dashboard, indent=1)};'
    )
    (folder / "dashboard.ts").write_text(source)
    command = [
        *("node", str(tools / "node_modules" / "typescript" / "bin" / "tsc"), "--noEmit", "--strict", "--skipLibCheck"),
        *("--module", "esnext", "--moduleResolution", "bundler", "--target", "es2022", "dashboard.ts"),
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout


def test_the_dashboard_is_one_by_grafanas_own_types(tools: Path, tmp_path: Path) -> None:
    assert type_errors(tools, tmp_path, DASHBOARD) == ""


def test_a_misspelt_option_of_a_panel_would_be_caught(tools: Path, tmp_path: Path) -> None:
    broken = json.loads(json.dumps(DASHBOARD))
    stat = next(panel for panel in broken["panels"] if panel["type"] == "stat")
    stat["options"]["colourMode"] = stat["options"].pop("colorMode")
    assert "colourMode" in type_errors(tools, tmp_path, broken)
