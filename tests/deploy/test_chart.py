"""The chart: each values file of `helm/ci` is linted, validated, scored, and what it renders is read by the service.

What single values lead to is asserted by the suites in `helm/tests`, which run here too.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from rendering import CHART, KUBERNETES, REQUIRED, Chart, Object, container, environment, every_feature, feature

import service
from service import app
from service.commands.settings_schema import secrets
from service.kafka import intake
from service.settings import Settings, groups, variables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

DEPLOY = CHART.parent / "deploy"
NOT_CRITICAL_HERE = {
    "container-image-pull-policy": "images are named by version or digest; Always would make a registry's outage ours",
    "container-resources": "no CPU limit: a throttled process misses heartbeats, and each is a rebalance for all",
}
"""What kube-score calls critical and we do on purpose."""
NOT_CRITICAL_THERE = {
    "bare": {"pod-networkpolicy": "this one is about leaving the policy to the platform"},
    "assigned-user": {"container-security-context-user-group-id": "the cluster assigns high ones"},
}
"""The same, in the values of one feature."""


# --- The tools' opinion ---


@every_feature
def test_a_feature_passes_the_strict_lint(chart: Chart, values: Path) -> None:
    done = chart.run("lint", "--strict", CHART, "--kube-version", KUBERNETES, "--values", values)
    assert done.returncode == 0, done.stdout + done.stderr


def closed(schema: Any) -> Any:
    """A definition's schema that admits no field it does not name, as the API server prunes them without a word."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not is_open:
        found["additionalProperties"] = False
    return found


@pytest.fixture(scope="session")
def schemas(tool: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Where kubeconform finds schemas: Kubernetes' own, and those of custom resources."""
    beside = Path(tool("kubeconform")).resolve().parent
    folder = tmp_path_factory.mktemp("definitions")
    for path in (beside / "crds").glob("*.yaml"):
        definition = yaml.safe_load(path.read_text())["spec"]
        for version in definition["versions"]:
            schema = closed(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            name = f"{definition['names']['kind'].lower()}-{definition['group']}-{version['name']}.json"
            (folder / name).write_text(json.dumps(schema))
    locations = [f"{folder}/{{{{.ResourceKind}}}}-{{{{.Group}}}}-{{{{.ResourceAPIVersion}}}}.json"]
    own = beside / "schemas"
    return [*locations, f"{own}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json" if own.is_dir() else "default"]


@pytest.fixture(scope="session")
def conforms(tool: Callable[[str], str], schemas: list[str]) -> Callable[[str], subprocess.CompletedProcess[str]]:
    command = [tool("kubeconform"), "-strict", "-summary", "-kubernetes-version", KUBERNETES]
    command += [part for location in schemas for part in ("-schema-location", location)]

    def judge(manifest: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, input=manifest, capture_output=True, text=True, check=False, timeout=600)

    return judge


@every_feature
def test_a_feature_renders_what_kubernetes_and_its_operators_accept(
    chart: Chart, conforms: Callable[[str], subprocess.CompletedProcess[str]], values: Path
) -> None:
    rendered = chart.template("--values", values)
    assert rendered.returncode == 0, rendered.stderr
    done = conforms(rendered.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Skipped: 0" in done.stdout


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("autoscaling", "scaleTargetReference"), ("monitoring", "podMetricsEndpoint"), ("minimal", "minReadySecond")],
)
def test_a_field_that_nobody_knows_would_be_found(
    chart: Chart, conforms: Callable[[str], subprocess.CompletedProcess[str]], name: str, wrong: str
) -> None:
    rendered = chart.template("--values", feature(name)).stdout
    right = {
        "scaleTargetReference": "scaleTargetRef",
        "podMetricsEndpoint": "podMetricsEndpoints",
        "minReadySecond": "minReadySeconds",
    }[wrong]
    assert right in rendered
    done = conforms(rendered.replace(f"{right}:", f"{wrong}:"))
    assert done.returncode != 0
    assert wrong in done.stdout


@every_feature
def test_a_feature_scores_without_a_critical_remark(chart: Chart, tool: Callable[[str], str], values: Path) -> None:
    exceptions = NOT_CRITICAL_HERE | NOT_CRITICAL_THERE.get(values.name.removesuffix("-values.yaml"), {})
    ignored = [part for test in exceptions for part in ("--ignore-test", test)]
    command = [tool("kube-score"), "score", "--kubernetes-version", "v1.36", *ignored, "--output-format", "ci", "-"]
    rendered = chart.template("--values", values)
    assert rendered.returncode == 0, rendered.stderr
    done = subprocess.run(command, input=rendered.stdout, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[CRITICAL]" not in done.stdout, done.stdout
    assert "[OK]" in done.stdout


def test_what_values_lead_to(tool: Callable[[str], str]) -> None:
    """`helm/tests`."""
    done = subprocess.run(
        [tool("helm-unittest"), "--strict", CHART], capture_output=True, text=True, check=False, env={}
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- What is written in one place alone ---


def test_what_the_chart_takes_from_elsewhere_is_as_it_is_there(tool: Callable[[str], str]) -> None:
    """Settings, alerts, dashboard, the README's list of values: whoever changes one runs `make chart`."""
    tool("helm-docs")
    done = subprocess.run(
        [sys.executable, DEPLOY / "chart.py", "--check"], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_says_of_every_value_what_it_does() -> None:
    rows = re.findall(r"^\| (\S+) \| .* \| (.*) \|$", (CHART / "README.md").read_text(), re.MULTILINE)
    explained = {name for name, text in rows if text.endswith(".")}

    def unexplained(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
        for name, value in values.items():
            if prefix + name not in explained:
                if isinstance(value, dict) and value:
                    yield from unexplained(value, f"{prefix}{name}.")
                else:
                    yield prefix + name

    assert list(unexplained(yaml.safe_load((CHART / "values.yaml").read_text()))) == []


def test_the_schema_is_one_and_knows_every_setting_and_nothing_else() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    known = {
        f"CONVOY_{group}__{name}".upper()
        for group, members in schema["properties"]["config"]["properties"].items()
        for name in members["properties"]
    }
    assert known == set(variables())


def test_the_schema_admits_the_settings_own_defaults_and_null() -> None:
    schema = Draft202012Validator(json.loads((CHART / "values.schema.json").read_text()))
    for group, model in groups().items():
        defaults = model().model_dump(mode="json")
        open_ones = {name: value for name, value in defaults.items() if (group, name) not in secrets()}
        schema.validate({"config": {group: open_ones}})
        schema.validate({"config": {group: dict.fromkeys(open_ones)}})
        schema.validate({"config": {group: None}})


def test_the_defaults_that_the_chart_repeats_are_those_of_the_service() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == service.__version__
    repeated = yaml.safe_load((CHART / "values.yaml").read_text())["config"]
    assert repeated.pop("kafka") == {"bootstrap_servers": ""}
    known = variables()
    for group, settings in repeated.items():
        for name, value in settings.items():
            assert value == known[f"CONVOY_{group}__{name}".upper()].default, f"{group}.{name}"


def test_the_package_holds_what_an_installation_needs_and_nothing_else(chart: Chart, tmp_path: Path) -> None:
    done = chart.run("package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    [package] = tmp_path.glob("*.tgz")
    with tarfile.open(package) as archive:
        names = {name.removeprefix("convoy/") for name in archive.getnames()}
    assert {"README.md", "values.schema.json", "files/alerts.yaml", "files/convoy.json"} <= names
    assert "templates/tests/check.yaml" in names
    assert not [name for name in names if name.startswith(("ci/", "tests/")) or name.endswith(".gotmpl")]


# --- What the service makes of it ---


@every_feature
def test_a_feature_gives_the_service_settings_it_accepts(
    chart: Chart, read_settings: Callable[[Mapping[str, str]], Settings], values: Path, tmp_path: Path
) -> None:
    pod = chart.render("--values", values).pod()
    given = environment(pod, tmp_path)
    settings = read_settings({name: value for name, value in given.items() if name.startswith("CONVOY_")})
    assert container(pod)["ports"] == [{"name": "http", "containerPort": settings.ops.port}]
    # The last commit, leaving the group, the last outcomes: one after the other, each at its worst.
    leaving = intake.COMMIT_SECONDS + intake.STOP_SECONDS + app.STOP_SECONDS
    assert pod["terminationGracePeriodSeconds"] > settings.shutdown.drain_seconds + leaving


@every_feature
def test_every_pod_of_a_feature_is_restricted_and_has_no_token(chart: Chart, values: Path) -> None:
    for pod in chart.render("--values", values).pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container(pod)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & pod.keys()
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False


@every_feature
def test_everything_selects_the_pods_that_forward_and_no_others(chart: Chart, values: Path) -> None:
    rendered = chart.render("--values", values)
    labels = rendered.workload["spec"]["template"]["metadata"]["labels"]
    selectors = [
        rendered.workload["spec"]["selector"]["matchLabels"],
        *(each["spec"]["selector"]["matchLabels"] for each in rendered.all("PodDisruptionBudget")),
        *(each["spec"]["selector"]["matchLabels"] for each in rendered.all("PodMonitor")),
        rendered.only("Service")["spec"]["selector"],
    ]
    others = [each["metadata"]["labels"] for each in rendered.all("Pod")]
    others += [each["spec"]["template"]["metadata"]["labels"] for each in rendered.all("Job")]
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not any(selector.items() <= other.items() for other in others)
    for policy in rendered.all("NetworkPolicy"):
        assert all(policy["spec"]["podSelector"]["matchLabels"].items() <= each.items() for each in [labels, *others])


def test_settings_of_every_kind_arrive_as_they_were_meant(
    chart: Chart, read_settings: Callable[[Mapping[str, str]], Settings], tmp_path: Path
) -> None:
    given = environment(chart.render("--values", feature("settings")).pod(), tmp_path)
    settings = read_settings(given)
    assert settings.kafka.events_topic == "chat.events"
    assert settings.batch.max_items == 10
    assert settings.batch.window_seconds == 0.25
    assert settings.limits.max_buffered_bytes == 268_435_456
    assert settings.reply.failures is True
    assert settings.log.level == "debug"
    assert settings.delivery.verdicts == {"servicebusy": "busy", 'over "quota"': "throttled"}
    assert settings.shutdown.drain_seconds == 41.5
    assert "CONVOY_DELIVERY__MAX_REQUESTS_PER_SECOND" not in given, "null is the service's own default"


@pytest.mark.parametrize("name", ["created-secret", "sasl-password", "topics"])
def test_a_secret_given_as_a_value_is_in_secrets_and_nowhere_else(chart: Chart, name: str) -> None:
    def is_secret(each: Object) -> bool:
        return bool(each["kind"] == "Secret")

    objects = chart.render("--values", feature(name)).objects
    assert "not-a-real" in yaml.safe_dump_all(filter(is_secret, objects))
    assert "not-a-real" not in yaml.safe_dump_all(each for each in objects if not is_secret(each))


@pytest.mark.parametrize(("group", "name"), sorted(secrets()))
def test_a_secret_among_the_settings_is_refused(chart: Chart, group: str, name: str) -> None:
    done = chart.template(*REQUIRED, "--set", f"config.{group}.{name}=hidden")
    assert done.returncode != 0
    assert f"config.{group}.{name} is a secret" in done.stderr


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("replica=2", "additional properties 'replica' not allowed"),
        ("config.ops.port=metrics", "at '/config/ops/port': got string, want null or integer"),
        ("config.ops.port=80", "at '/config/ops/port': minimum: got 80, want 1,024"),
        ("config.batch=20", "at '/config/batch': got number, want null or object"),
        ("config.batch.max_items=21", "at '/config/batch/max_items': maximum: got 21, want 20"),
        ("config.batch.window_seconds=-1", "at '/config/batch/window_seconds': minimum: got -1, want 0"),
        ("config.batch.maxItems=20", "at '/config/batch': additional properties 'maxItems' not allowed"),
        ("config.log.level=loud", "at '/config/log/level': value must be one of 'debug', 'info', 'warning', 'error'"),
        ("kind=DaemonSet", "at '/kind': value must be one of 'Deployment', 'StatefulSet'"),
        ("image.tag=latest", "at '/image/tag': 'not' failed"),
    ],
)
def test_wrong_values_are_refused_by_the_schema_with_name_and_bound(chart: Chart, values: str, message: str) -> None:
    done = chart.template(*REQUIRED, "--set", values)
    assert done.returncode != 0
    assert message in done.stderr
