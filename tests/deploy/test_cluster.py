"""The chart on a real Kubernetes API server, in namespaces that enforce Pod Security's *restricted*.

The server, its controllers and the custom resources are real; pods become ready and run nothing.
`CONVOY_TEST_CLUSTER` names the folder of such a cluster: `up DIR` starts one that keeps its state in DIR and prints
the path of a kubeconfig last, `down DIR` ends it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import subprocess
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import yaml
from rendering import CHART, RELEASE, every_feature, feature
from service_process import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rendering import Chart, Object

START_SECONDS = 240
WAIT = ("--wait", "--timeout", "90s")
NAME = f"{RELEASE}-convoy"
BORN_WITH_A_NAMESPACE = {"serviceaccount/default", "configmap/kube-root-ca.crt"}
FLEETING = {"events", "events.events.k8s.io"}


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace of a test's own, and who talks about it to the API server."""

    name: str
    kubeconfig: str
    chart: Chart

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """What `kubectl` prints; its failure fails the test with its words."""
        done = self.try_kubectl(*arguments, given=given)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def kubectl_command(self, *arguments: str) -> list[str]:
        return ["kubectl", "--kubeconfig", self.kubeconfig, "--namespace", self.name, *arguments]

    def try_kubectl(self, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        command = self.kubectl_command(*arguments)
        return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=START_SECONDS)

    def get(self, kind: str, name: str = NAME) -> Object:
        found: Object = json.loads(self.kubectl("get", kind, name, "--output", "json"))
        return found

    def find(self, kind: str, selector: str = "") -> list[Object]:
        found: list[Object] = json.loads(self.kubectl("get", kind, "--selector", selector, "--output", "json"))["items"]
        return found

    def pods(self) -> list[Object]:
        """Those that forward and are not on their way out."""
        every = self.find("pods", "app.kubernetes.io/component=forwarder")
        return [pod for pod in every if "deletionTimestamp" not in pod["metadata"]]

    def try_helm(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self.chart.run(*self.helm_arguments(*arguments))

    def helm_arguments(self, *arguments: str | Path) -> tuple[str | Path, ...]:
        return (*arguments, "--kubeconfig", self.kubeconfig, "--namespace", self.name)

    def helm(self, *arguments: str | Path) -> str:
        done = self.try_helm(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def everything(self) -> set[str]:
        """Every object in the namespace that somebody made, as kind/name."""
        kinds = self.kubectl("api-resources", "--verbs=list", "--namespaced", "--output", "name").split()
        listed = self.kubectl("get", ",".join(sorted(set(kinds) - FLEETING)), "--output", "name", "--ignore-not-found")
        return set(listed.split()) - BORN_WITH_A_NAMESPACE


def settings_of(pod: Object) -> dict[str, str]:
    [container] = pod["spec"]["containers"]
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


def is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def make_room(kubeconfig: str) -> None:
    """A node that is pretended says nothing of its disk, and no pod that asks for some would be placed there."""
    kubectl = ["kubectl", "--kubeconfig", kubeconfig]
    nodes = subprocess.run(
        [*kubectl, "get", "nodes", "--output", "name"], stdout=subprocess.PIPE, text=True, check=True
    )
    disk = {"ephemeral-storage": "100Gi"}
    patch = json.dumps({"status": {"allocatable": disk, "capacity": disk}})
    for node in nodes.stdout.split():
        subprocess.run(
            [*kubectl, "patch", node, "--subresource=status", "--patch", patch], stdout=subprocess.DEVNULL, check=True
        )


@pytest.fixture(scope="module")
def kubeconfig(missing: Callable[[str], NoReturn], tool: Callable[[str], str]) -> Iterator[str]:
    """A cluster for these tests and none after them: it would take its share of the machine from the others."""
    tool("kubectl")
    programs = Path(os.environ.get("CONVOY_TEST_CLUSTER", "nowhere"))
    if not (programs / "up").is_file():
        missing("no Kubernetes API server: CONVOY_TEST_CLUSTER names none")
    # Unpacked once; another version of the cluster is another place.
    contents = sorted(f"{path} {path.stat().st_size}" for path in programs.rglob("*"))
    mark = hashlib.sha256("\n".join(contents).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("CONVOY_CACHE") or Path.home() / ".cache" / "convoy")
    state = cache / f"cluster-{mark}"
    state.mkdir(parents=True, exist_ok=True)
    try:
        # Not captured by a pipe: what it starts would keep the pipe open.
        with (state / "up.out").open("w") as out, (state / "up.err").open("w") as err:
            done = subprocess.run([programs / "up", state], stdout=out, stderr=err, check=False, timeout=START_SECONDS)
        assert done.returncode == 0, (state / "up.err").read_text()
        found = (state / "up.out").read_text().split()[-1]
        make_room(found)
        yield found
    finally:
        subprocess.run([programs / "down", state], check=False, timeout=START_SECONDS)


@pytest.fixture
def namespace(kubeconfig: str, chart: Chart) -> Iterator[Namespace]:
    namespace = Namespace(f"t{uuid.uuid4().hex[:8]}", kubeconfig, chart)
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace.name, "labels": labels}}
    namespace.kubectl("create", "--filename", "-", given=yaml.safe_dump(made))
    # Pods wait for it.
    namespace.kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    yield namespace
    namespace.kubectl("delete", "namespace", namespace.name, "--wait=false")


def test_the_namespace_refuses_a_pod_that_is_not_restricted(namespace: Namespace) -> None:
    refused = namespace.try_kubectl("run", "lax", "--image=convoy:0.1.0")
    assert refused.returncode != 0
    assert 'violates PodSecurity "restricted:latest"' in refused.stderr


@every_feature
def test_a_feature_is_accepted_by_the_server_without_a_warning(namespace: Namespace, values: Path) -> None:
    rendered = namespace.chart.template("--namespace", namespace.name, "--values", values)
    objects = [each for each in yaml.safe_load_all(rendered.stdout) if each]
    # A dry run keeps nothing, but a pod asks for its account and its priority.
    accounts = {each["spec"]["serviceAccountName"] for each in objects if each["kind"] == "Pod"}
    for account in accounts:
        namespace.kubectl("create", "serviceaccount", account)
    priority = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "messaging"}}
    namespace.kubectl("apply", "--filename", "-", given=yaml.safe_dump(priority | {"value": 1000}))
    apply = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "--output=name", "--filename", "-")
    done = namespace.try_kubectl(*apply, given=rendered.stdout)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "such as: would violate PodSecurity"
    assert len(done.stdout.split()) == len(objects)


async def test_a_release_is_installed_upgraded_scaled_rolled_back_tested_and_leaves_nothing(
    namespace: Namespace,
) -> None:
    # Topics are made by a hook, with a password of the release's: the hardest order there is.
    values: tuple[str | Path, ...] = ("--values", feature("topics"), "--values", feature("monitoring"))
    values += ("--set", "apiKey.existingSecret=", "--set", "minReadySeconds=2")

    def batch_sizes() -> list[str]:
        return [settings_of(pod).get("CONVOY_BATCH__MAX_ITEMS", "") for pod in namespace.pods()]

    installed = namespace.helm("install", RELEASE, CHART, *values, *WAIT)
    assert f"kubectl -n {namespace.name} rollout status deployment/{NAME}" in installed
    assert Counter(is_ready(pod) for pod in namespace.pods()) == {True: 2}
    assert namespace.find("jobs") == [], "a hook that succeeded is gone"
    here = namespace.everything()
    assert {
        f"deployment.apps/{NAME}",
        f"networkpolicy.networking.k8s.io/{NAME}",
        f"poddisruptionbudget.policy/{NAME}",
        f"podmonitor.monitoring.coreos.com/{NAME}",
        f"prometheusrule.monitoring.coreos.com/{NAME}",
        f"secret/{NAME}-api-key",
        f"secret/{NAME}-kafka",
        f"service/{NAME}",
        f"serviceaccount/{NAME}",
        f"configmap/{NAME}-dashboard",
    } <= here
    assert f"secret/{NAME}-topics" not in here
    key = namespace.get("secret", f"{NAME}-api-key")["data"]["api-key"]
    assert base64.b64decode(key) == b"sk-not-a-real-key"
    stored = namespace.get("prometheusrule")["spec"]
    assert stored == yaml.safe_load(
        (CHART / "files" / "alerts.yaml")
        .read_text()
        .replace("runbook_url: ", "runbook_url: https://git.example.com/chat/convoy/blob/main/")
    )

    # A roll-out, watched: never fewer than two that are ready.
    columns = "jsonpath={.status.availableReplicas} {.status.updatedReplicas}{'\\n'}"
    watching = ("get", f"deployment/{NAME}", "--watch", "--output", columns)
    watch = await asyncio.create_subprocess_exec(*namespace.kubectl_command(*watching), stdout=subprocess.PIPE)
    namespace.helm("upgrade", RELEASE, CHART, *values, "--set", "config.batch.max_items=10", *WAIT)
    watch.terminate()
    seen = [line.split() for line in (await watch.communicate())[0].decode().splitlines()]
    assert any(len(line) < 2 or line[1] != "2" for line in seen), "the watch came too late"
    assert min(int(available) for available, *_ in seen) == 2
    await until("the new ones alone", lambda: batch_sizes() == ["10", "10"])

    namespace.helm("upgrade", RELEASE, CHART, *values, "--set", "replicas=4", *WAIT)
    await until("four", lambda: Counter(map(is_ready, namespace.pods())) == {True: 4})

    namespace.helm("rollback", RELEASE, "1", *WAIT)
    await until("two, as in the beginning", lambda: batch_sizes() == ["", ""])

    # `convoy check` is created as a pod; that it ends well is said in its place, since nothing runs here.
    command = namespace.helm_arguments("test", RELEASE, "--timeout", "60s")
    test = await asyncio.create_subprocess_exec(namespace.chart.helm, *command, stdout=subprocess.PIPE)
    checks: list[Object] = await until(
        "the pod of the test", lambda: namespace.find("pods", "app.kubernetes.io/component=check")
    )
    [check] = checks
    assert check["spec"]["containers"][0]["args"] == ["check"]
    ended = json.dumps({"status": {"phase": "Succeeded"}})
    namespace.kubectl("patch", "pod", f"{NAME}-check", "--subresource=status", "--type=merge", "--patch", ended)
    said = (await test.communicate())[0].decode()
    assert test.returncode == 0, said
    assert "Succeeded" in said

    namespace.helm("uninstall", RELEASE, *WAIT)
    await until("nothing left", lambda: not namespace.everything())


async def test_replicas_keep_their_names_as_a_stateful_set_and_may_become_one(namespace: Namespace) -> None:
    values = ("--values", feature("stateful"), "--set", "minReadySeconds=1")
    namespace.helm("install", RELEASE, CHART, *values, "--set", "kind=Deployment", *WAIT)
    namespace.helm("upgrade", RELEASE, CHART, *values, *WAIT)
    names = {f"{NAME}-0", f"{NAME}-1", f"{NAME}-2"}

    def names_of_ready_pods() -> set[str]:
        return {pod["metadata"]["name"] for pod in namespace.pods() if is_ready(pod)}

    await until("pods by their names, and no others", lambda: names_of_ready_pods() == names)
    assert namespace.find("deployments") == []
    before = namespace.get("pod", f"{NAME}-1")["metadata"]["uid"]
    # Waiting for a deletion it would wait for the name, which is taken again at once.
    namespace.kubectl("delete", "pod", f"{NAME}-1", "--wait=false")

    def is_another() -> bool:
        found = [pod for pod in namespace.pods() if pod["metadata"]["name"] == f"{NAME}-1" and is_ready(pod)]
        return [pod["metadata"]["uid"] for pod in found] not in ([], [before])

    await until("another pod of that name", is_another)
    namespace.helm("uninstall", RELEASE, *WAIT)
    await until("nothing left", lambda: not namespace.everything())


async def test_a_drain_of_nodes_moves_one_pod_at_a_time_and_one_that_is_not_ready_at_any_time(
    namespace: Namespace,
) -> None:
    namespace.helm("install", RELEASE, CHART, "--values", feature("minimal"), *WAIT)

    def evict(pod: str) -> subprocess.CompletedProcess[str]:
        path = f"/api/v1/namespaces/{namespace.name}/pods/{pod}/eviction"
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        return namespace.try_kubectl("create", "--raw", path, "--filename", "-", given=json.dumps(eviction))

    first, second = (pod["metadata"]["name"] for pod in namespace.pods())
    [node] = (node["metadata"]["name"] for node in namespace.find("nodes"))
    # The pod in its place has nowhere to go, and is not ready in no time as pretended ones are.
    namespace.kubectl("cordon", node)
    try:
        evicted = evict(first)
        assert evicted.returncode == 0, evicted.stderr
        refused = evict(second)
        assert refused.returncode != 0
        assert "violate the pod's disruption budget" in refused.stderr
        pending = await until(
            "a pod in the place of the first", lambda: [p for p in namespace.pods() if not is_ready(p)]
        )
        unready = evict(pending[0]["metadata"]["name"])
        assert unready.returncode == 0, unready.stderr
    finally:
        namespace.kubectl("uncordon", node)


async def test_an_upgrade_leaves_the_number_of_replicas_to_what_scales_them(namespace: Namespace) -> None:
    values = ("--values", feature("autoscaling"), "--set", "minReadySeconds=1")
    namespace.helm("install", RELEASE, CHART, *values, *WAIT)
    assert namespace.get("scaledobject")["spec"]["maxReplicaCount"] == 24
    # As KEDA would.
    namespace.kubectl("scale", f"deployment/{NAME}", "--replicas=5")
    namespace.helm("upgrade", RELEASE, CHART, *values, "--set", "config.batch.max_items=10", *WAIT)
    assert namespace.get("deployment")["spec"]["replicas"] == 5

    def batch_sizes() -> list[str]:
        return [settings_of(pod).get("CONVOY_BATCH__MAX_ITEMS", "") for pod in namespace.pods() if is_ready(pod)]

    await until("five new ones", lambda: batch_sizes() == ["10"] * 5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("--set", "config.batch.max_items=21"), "at '/config/batch/max_items': maximum: got 21, want 20"),
        (("--set", "config.bach.max_items=2"), "at '/config': additional properties 'bach' not allowed"),
        (("--set", "replicas=many"), "at '/replicas': got string, want integer"),
        (("--set", "apiKey.existingSecret="), "the API key is missing"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_sent(
    namespace: Namespace, values: tuple[str, ...], message: str
) -> None:
    refused = namespace.try_helm("install", RELEASE, CHART, "--values", feature("minimal"), *values)
    assert refused.returncode != 0
    assert message in refused.stderr
    assert namespace.everything() == set()
    assert json.loads(namespace.helm("list", "--all", "--output", "json")) == []


def test_a_wrong_upgrade_changes_nothing(namespace: Namespace) -> None:
    values = ("--values", feature("minimal"), "--set", "minReadySeconds=0")
    namespace.helm("install", RELEASE, CHART, *values, *WAIT)
    before: Any = namespace.get("deployment")["metadata"]["generation"]
    refused = namespace.try_helm("upgrade", RELEASE, CHART, *values, "--set", "config.kafka.heartbeat_seconds=0")
    assert refused.returncode != 0
    assert "at '/config/kafka/heartbeat_seconds': exclusiveMinimum: got 0, want 0" in refused.stderr
    assert namespace.get("deployment")["metadata"]["generation"] == before
    assert [each["revision"] for each in json.loads(namespace.helm("history", RELEASE, "--output", "json"))] == [1]
