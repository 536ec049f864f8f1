"""The chart: each values file of `helm/ci` is linted, rendered, validated, and what it renders is read."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

import service
from service.settings import Settings, variables

Object = dict[str, Any]
Render = Callable[..., list[Object]]

CHART = Path(__file__).parents[2] / "helm"
FEATURES = sorted((CHART / "ci").glob("*.yaml"))
KUBERNETES = "1.36.0"
REQUIRED = ("--set", "config.kafka.bootstrap_servers=kafka:9092", "--set", "apiKey.existingSecret=conversations-api")

every_feature = pytest.mark.parametrize("values", FEATURES, ids=lambda path: path.name)


def find(tool: str, override: str) -> str | None:
    return shutil.which(tool) or shutil.which(os.environ.get(override, "")) or None


@pytest.fixture(scope="session")
def helm(missing: Callable[[str], NoReturn]) -> str:
    found = find("helm", "CONVOY_HELM")
    if found is None:
        missing("no helm: put it on PATH, or name it in CONVOY_HELM; .ci/install-deploy-tools provides it")
    return found


@pytest.fixture(scope="session")
def template(helm: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [helm, "template", "chat", CHART, "--kube-version", KUBERNETES, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def render(template: Callable[..., subprocess.CompletedProcess[str]]) -> Render:
    def run(*arguments: str | Path) -> list[Object]:
        done = template(*arguments)
        assert done.returncode == 0, done.stderr
        return [document for document in yaml.safe_load_all(done.stdout) if document]

    return run


def only(objects: list[Object], kind: str) -> Object:
    [found] = [each for each in objects if each["kind"] == kind]
    return found


def pod(objects: list[Object]) -> Object:
    spec = only(objects, "Deployment")["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def container(objects: list[Object]) -> Object:
    [found] = pod(objects)["containers"]
    assert isinstance(found, dict)
    return found


def environment(objects: list[Object]) -> dict[str, str]:
    """The container's variables, those from Secrets with a stand-in for a value."""
    entries = container(objects)["env"]
    names = [entry["name"] for entry in entries]
    assert len(names) == len(set(names)), "a variable given twice"
    return {entry["name"]: entry.get("value", "from-a-secret") for entry in entries}


@every_feature
def test_a_feature_passes_the_strict_lint(helm: str, values: Path) -> None:
    command: list[str | Path] = [helm, "lint", "--strict", CHART, "--kube-version", KUBERNETES, "--values", values]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@every_feature
def test_a_feature_renders_what_kubernetes_accepts(
    template: Callable[..., subprocess.CompletedProcess[str]], missing: Callable[[str], NoReturn], values: Path
) -> None:
    kubeconform = find("kubeconform", "CONVOY_KUBECONFORM")
    if kubeconform is None:
        missing("no kubeconform: put it on PATH, or name it in CONVOY_KUBECONFORM")
    command = [kubeconform, "-strict", "-kubernetes-version", KUBERNETES]
    schemas = Path(kubeconform).resolve().parent / "schemas"
    if schemas.is_dir():
        command += ["-schema-location", f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"]
    rendered = template("--values", values)
    assert rendered.returncode == 0, rendered.stderr
    done = subprocess.run(command, input=rendered.stdout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@every_feature
def test_a_feature_gives_the_service_settings_it_accepts(
    render: Render, read_settings: Callable[[Mapping[str, str]], Settings], values: Path
) -> None:
    read_settings(environment(render("--values", values)))


@every_feature
def test_a_pod_has_longer_to_stop_than_the_service_to_drain(
    render: Render, read_settings: Callable[[Mapping[str, str]], Settings], values: Path
) -> None:
    objects = render("--values", values)
    drain_seconds = read_settings(environment(objects)).shutdown.drain_seconds
    assert pod(objects)["terminationGracePeriodSeconds"] >= drain_seconds + 15


@every_feature
def test_a_pod_is_probed_where_the_service_listens(
    render: Render, read_settings: Callable[[Mapping[str, str]], Settings], values: Path
) -> None:
    objects = render("--values", values)
    it = container(objects)
    assert it["ports"] == [{"name": "http", "containerPort": read_settings(environment(objects)).ops.port}]
    probed = {kind: it[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert probed == {
        "startup": {"path": "/livez", "port": "http"},
        "liveness": {"path": "/livez", "port": "http"},
        "readiness": {"path": "/readyz", "port": "http"},
    }


@every_feature
def test_a_pod_is_restricted_and_can_write_to_tmp_alone(render: Render, values: Path) -> None:
    objects = render("--values", values)
    spec, it = pod(objects), container(objects)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert it["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert [(mount["mountPath"], mount["name"]) for mount in it["volumeMounts"]] == [("/tmp", "tmp")]
    assert [list(volume) for volume in spec["volumes"]] == [["name", "emptyDir"]]


@every_feature
def test_a_pod_has_no_token_and_no_service_links(render: Render, values: Path) -> None:
    objects = render("--values", values)
    assert pod(objects)["automountServiceAccountToken"] is False
    assert pod(objects)["enableServiceLinks"] is False
    accounts = [each for each in objects if each["kind"] == "ServiceAccount"]
    assert all(account["automountServiceAccountToken"] is False for account in accounts)


@every_feature
def test_everything_selects_the_pods_of_this_release(render: Render, values: Path) -> None:
    objects = render("--values", values)
    labels = only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        only(objects, "Deployment")["spec"]["selector"]["matchLabels"],
        only(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        only(objects, "Service")["spec"]["selector"],
    ]
    for selector in selectors:
        assert selector == {"app.kubernetes.io/name": "convoy", "app.kubernetes.io/instance": "chat"}
        assert selector.items() <= labels.items()


@every_feature
def test_a_feature_has_memory_bounded_and_a_pinned_image(render: Render, values: Path) -> None:
    it = container(render("--values", values))
    assert "memory" in it["resources"]["limits"]
    assert "cpu" not in it["resources"]["limits"], "a throttled process misses heartbeats"
    assert it["image"].rpartition(":")[2] not in {"", "latest"}


def test_a_roll_out_never_drops_below_and_a_drain_moves_one_pod_at_a_time(render: Render) -> None:
    objects = render(*REQUIRED)
    strategy = only(objects, "Deployment")["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    budget = only(objects, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_a_scraper_finds_each_pod_also_one_that_is_not_ready(render: Render) -> None:
    spec = only(render(*REQUIRED), "Service")["spec"]
    assert spec["clusterIP"] == "None"
    assert spec["publishNotReadyAddresses"] is True


def test_settings_of_every_kind_arrive_as_they_were_meant(
    render: Render, read_settings: Callable[[Mapping[str, str]], Settings]
) -> None:
    variables_given = environment(render("--values", CHART / "ci" / "settings-values.yaml"))
    settings = read_settings(variables_given)
    assert settings.kafka.events_topic == "chat.events"
    assert settings.batch.max_items == 10
    assert settings.batch.window_seconds == 0.25
    assert settings.limits.max_buffered_bytes == 268_435_456
    assert settings.reply.failures is True
    assert settings.log.level == "debug"
    assert settings.api.extra_headers == {"x-team": 'chat "blue"'}
    assert settings.delivery.verdicts == {"servicebusy": "busy", "quota": "throttled"}
    assert settings.shutdown.drain_seconds == 41.5
    assert "CONVOY_DELIVERY__MAX_REQUESTS_PER_SECOND" not in variables_given, "null is the service's own default"


def test_the_defaults_that_the_chart_repeats_are_those_of_the_service() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == service.__version__
    repeated = yaml.safe_load((CHART / "values.yaml").read_text())["config"]
    assert repeated.pop("kafka") == {"bootstrap_servers": ""}
    known = variables()
    for group, settings in repeated.items():
        for name, value in settings.items():
            assert value == known[f"CONVOY_{group}__{name}".upper()].default, f"{group}.{name}"


def test_the_key_comes_from_the_secret_that_is_named(render: Render) -> None:
    objects = render("--values", CHART / "ci" / "settings-values.yaml")
    [entry] = [each for each in container(objects)["env"] if each["name"] == "CONVOY_API__KEY"]
    assert entry["valueFrom"] == {"secretKeyRef": {"name": "conversations-api", "key": "key"}}
    assert not [each for each in objects if each["kind"] == "Secret"]


def test_a_key_given_as_a_value_is_in_the_secret_and_nowhere_else(render: Render) -> None:
    objects = render("--values", CHART / "ci" / "created-secret-values.yaml")
    secret = only(objects, "Secret")
    assert secret["stringData"] == {"api-key": "sk-not-a-real-key"}
    [entry] = [each for each in container(objects)["env"] if each["name"] == "CONVOY_API__KEY"]
    assert entry["valueFrom"]["secretKeyRef"] == {"name": secret["metadata"]["name"], "key": "api-key"}
    others = [each for each in objects if each["kind"] != "Secret"]
    assert "sk-not-a-real-key" not in yaml.safe_dump_all(others)


def test_a_new_key_rolls_the_pods(render: Render) -> None:
    def annotations(key: str) -> Object:
        objects = render("--set", "config.kafka.bootstrap_servers=kafka:9092", "--set", f"apiKey.value={key}")
        found = only(objects, "Deployment")["spec"]["template"]["metadata"]["annotations"]
        assert isinstance(found, dict)
        return found

    assert annotations("one") == annotations("one")
    assert annotations("one") != annotations("two")


@pytest.mark.parametrize("name", [name for name, field in variables().items() if "Secret" in str(field.annotation)])
def test_a_secret_among_the_settings_is_refused(
    template: Callable[..., subprocess.CompletedProcess[str]], name: str
) -> None:
    path = name.removeprefix("CONVOY_").lower().replace("__", ".")
    done = template(*REQUIRED, "--set", f"config.{path}=hidden")
    assert done.returncode != 0
    assert f"config.{path} is a secret" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "apiKey.value=k"), "config.kafka.bootstrap_servers is missing"),
        (("--set", "config.kafka.bootstrap_servers=k:1"), "the API key is missing"),
        ((*REQUIRED, "--set", "apiKey.value=k"), "apiKey.existingSecret and apiKey.value are both set"),
        ((*REQUIRED, "--set", "replica=2"), "additional properties 'replica' not allowed"),
        ((*REQUIRED, "--set", "config.ops.port=metrics"), "/config/ops/port"),
        ((*REQUIRED, "--set", "config.batch=20"), "/config/batch"),
        ((*REQUIRED, "--set", "config.batch.maxItems=20"), "maxItems"),
    ],
)
def test_wrong_values_are_refused_with_their_name(
    template: Callable[..., subprocess.CompletedProcess[str]], arguments: tuple[str, ...], message: str
) -> None:
    done = template(*arguments)
    assert done.returncode != 0
    assert message in done.stderr
