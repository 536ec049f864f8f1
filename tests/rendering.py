"""The chart as helm renders it, for the tests that read it."""

from __future__ import annotations

import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

Object = dict[str, Any]

CHART = Path(__file__).parents[1] / "helm"
FEATURES = sorted((CHART / "ci").glob("*.yaml"))
KUBERNETES = "1.36.0"
RELEASE = "chat"
REQUIRED = ("--set", "config.kafka.bootstrap_servers=kafka:9092", "--set", "apiKey.existingSecret=conversations-api")
FROM_A_SECRET = "from-a-secret"
WORKLOADS = {"Deployment", "StatefulSet"}

every_feature = pytest.mark.parametrize("values", FEATURES, ids=lambda path: path.name)


def feature(name: str) -> Path:
    """The values file of a feature."""
    return CHART / "ci" / f"{name}-values.yaml"


@dataclass(frozen=True, slots=True)
class Rendered:
    """What the chart makes of some values."""

    objects: list[Object]

    def all(self, kind: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] == kind]

    def only(self, kind: str) -> Object:
        [found] = self.all(kind)
        return found

    @property
    def workload(self) -> Object:
        [found] = [each for each in self.objects if each["kind"] in WORKLOADS]
        return found

    def pods(self) -> Iterator[Object]:
        """The specification of each pod: the workload's, and those of hooks."""
        for each in self.objects:
            if each["kind"] == "Pod":
                yield each["spec"]
            elif each["kind"] in WORKLOADS | {"Job"}:
                yield each["spec"]["template"]["spec"]

    def pod(self) -> Object:
        found: Object = self.workload["spec"]["template"]["spec"]
        return found


def certify(folder: Path, *, encrypted: bool) -> tuple[Path, Path]:
    """A certificate that trusts itself, and its key."""
    certificate, key = folder / "stand-in.crt", folder / "stand-in.key"
    protection = ["-passout", f"pass:{FROM_A_SECRET}"] if encrypted else ["-nodes"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=stand-in", "-days", "2"]
    command = ["openssl", "req", *kind, *protection, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, capture_output=True, check=True)
    return certificate, key


def container(pod: Object) -> Object:
    [found] = pod["containers"]
    assert isinstance(found, dict)
    return found


def environment(pod: Object, folder: Path) -> dict[str, str]:
    """The variables of a pod's container; those from Secrets, and files of Secrets, have a stand-in for a value."""
    found: dict[str, str] = {}
    mounts = [Path(mount["mountPath"]) for mount in container(pod)["volumeMounts"]]
    has_password = any(entry["name"].endswith("KEY_PASSWORD") for entry in container(pod)["env"])
    certificate, private_key = certify(folder, encrypted=has_password)
    for entry in container(pod)["env"]:
        name, value = entry["name"], entry.get("value", FROM_A_SECRET)
        assert name not in found, f"{name} is given twice"
        if name.endswith("_FILE"):
            assert Path(value).parent in mounts, f"{name}: nothing is mounted at {value}"
            if "_CA_" in name or "_CERT_" in name:
                value = str(certificate)
            elif "_SSL_KEY_" in name:
                value = str(private_key)
            else:
                (folder / name).write_text(FROM_A_SECRET)
                value = str(folder / name)
        found[name] = value
    return found


@functools.cache
def rendered(helm: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`helm template`; the same values are rendered once a run."""
    command = [helm, "template", RELEASE, CHART, "--kube-version", KUBERNETES, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@dataclass(frozen=True, slots=True)
class Chart:
    """The chart and the helm that renders it."""

    helm: str

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.helm, *arguments], capture_output=True, text=True, check=False)

    def template(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return rendered(self.helm, *arguments)

    def render(self, *arguments: str | Path) -> Rendered:
        done = self.template(*arguments)
        assert done.returncode == 0, done.stderr
        return Rendered([document for document in yaml.safe_load_all(done.stdout) if document])
