"""What is shipped: known by name, version, hash and licence; justified; under one version; and whole by itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import service

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK_OF_DEMO = ROOT / "requirements-dev.lock"
LOCKS = sorted(ROOT.glob("requirements*.lock"))
BUILD = ROOT / "build"
DEMO = ("demo", "--events", "600", "--conversations", "60", "--rate", "600")


def make(*targets: str, **variables: str) -> subprocess.CompletedProcess[str]:
    given = [f"{name}={value}" for name, value in variables.items()]
    return subprocess.run(
        ["make", *targets, f"PYTHON={sys.executable}", *given], cwd=ROOT, capture_output=True, text=True, check=False
    )


def locked(lock: Path) -> dict[str, str]:
    """Names and versions that apply to this interpreter."""
    found: dict[str, str] = {}
    for line in re.findall(r"^([a-z].*?) ?\\$", lock.read_text(), flags=re.MULTILINE):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            found[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_locked_package_has_its_hashes(lock: Path) -> None:
    packages = re.split(r"^(?=[a-z])", lock.read_text(), flags=re.MULTILINE)[1:]
    assert len(packages) > 10
    for package in packages:
        assert re.match(r"[a-z0-9._-]+==\S+", package), package
        assert "--hash=sha256:" in package, package


def test_each_direct_dependency_says_in_the_decisions_why_it_is_there() -> None:
    libraries = (ROOT / "docs" / "decisions.md").read_text().split("## Libraries")[1].split("\n## ")[0].lower()
    groups = {**PROJECT["project"]["optional-dependencies"], **PROJECT["dependency-groups"]}
    named = [*PROJECT["project"]["dependencies"], *(name for group in groups.values() for name in group)]
    bold = " ".join(re.findall(r"\*\*(.*?)\*\*", libraries))
    justified = {canonicalize_name(name) for name in re.findall(r"[\w.-]+", bold)}
    wanted = {canonicalize_name(Requirement(name).name) for name in named}
    # A family of packages may be spoken of by its first name.
    missing = {name for name in wanted if not any(f"{name}-".startswith(f"{told}-") for told in justified)}
    assert not missing


def test_the_bill_of_materials_and_the_licences_name_everything_that_is_shipped() -> None:
    done = make("sbom", "licenses")
    assert done.returncode == 0, done.stdout + done.stderr
    bill = json.loads((BUILD / "convoy.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    about = bill["metadata"]["component"]
    assert (about["name"], about["version"]) == ("convoy", service.__version__)
    listed = {canonicalize_name(part["name"]): part for part in bill["components"]}
    assert {name: part["version"] for name, part in listed.items()} == locked(ROOT / "requirements.lock")
    assert all(part["purl"] for part in listed.values())
    extras = {name for group in PROJECT["project"]["optional-dependencies"].values() for name in group}
    direct, extra = (
        {canonicalize_name(Requirement(name).name) for name in names}
        for names in (PROJECT["project"]["dependencies"], extras)
    )
    root = next(entry for entry in bill["dependencies"] if entry["ref"] == about["bom-ref"])
    references = {part["bom-ref"]: name for name, part in listed.items()}
    assert direct <= {references[reference] for reference in root["dependsOn"]} <= direct | extra
    rows = [line.split("|") for line in (BUILD / "licenses.md").read_text().splitlines()[2:]]
    licences = {canonicalize_name(row[1].strip()): row[3].strip() for row in rows}
    assert set(licences) == set(listed)
    # In the bill a licence has to be an identifier or a text; protobuf names its own in words of its own.
    unidentified = {name for name, part in listed.items() if not part.get("licenses")}
    assert {licences[name] for name in unidentified} <= {"3-Clause BSD License"}


def test_a_licence_that_nobody_allowed_ends_the_list() -> None:
    done = make("licenses", LICENSES="MIT")
    assert done.returncode != 0
    assert "not in allow-only licenses" in done.stderr


def test_the_version_stands_in_one_place_and_what_repeats_it_is_set_with_it(tmp_path: Path) -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert make("-s", "version").stdout.strip() == service.__version__
    assert f"## {service.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    for name in ("service/__init__.py", "helm/Chart.yaml", "deploy/compose.yaml", "Makefile", "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    old, new = re.escape(service.__version__), "7.8.9"
    command = ["make", "-C", str(tmp_path), "set-version", f"NEW={new}"]
    subprocess.run(command, check=True, capture_output=True)
    for name, times in (("service/__init__.py", 1), ("helm/Chart.yaml", 2), ("deploy/compose.yaml", 1)):
        text = (tmp_path / name).read_text()
        assert not re.search(rf"(?<![\d.]){old}(?![\d.])", text), name
        assert text.count(new) == times, name


def test_the_release_notes_are_what_the_changelog_says_of_the_version() -> None:
    notes = make("-s", "release-notes").stdout
    assert notes.strip()
    assert notes.strip() in (ROOT / "CHANGELOG.md").read_text()
    assert "\n## " not in notes


def test_the_wheel_alone_in_a_fresh_environment_runs_the_demo(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"convoy-{service.__version__}-")
    fresh = tmp_path / "fresh"
    subprocess.run([sys.executable, "-m", "venv", str(fresh)], check=True)
    # As a stranger would, but in the versions that are tested: the lock without its hashes is a list of constraints.
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in locked(LOCK_OF_DEMO).items()))
    subprocess.run(
        [str(fresh / "bin" / "pip"), "install", "-q", "-c", str(constraints), f"convoy[demo] @ {wheel.as_uri()}"],
        check=True,
        capture_output=True,
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "COLUMNS": "100"}
    convoy = str(fresh / "bin" / "convoy")
    told = subprocess.run([convoy, "--version"], capture_output=True, text=True, check=True, env=environment)
    assert told.stdout == f"convoy {service.__version__}\n"
    # Not from here: the tree must not be what is imported.
    done = subprocess.run(
        [convoy, *DEMO], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "nothing lost, nothing doubled, nothing out of order"
    modules = subprocess.run(
        [str(fresh / "bin" / "python"), "-c", "import service; print(service.__file__)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert modules.stdout.startswith(str(fresh))
    shipped = {path.name for path in (fresh / "share" / "convoy" / "schemas").iterdir()}
    assert shipped == {path.name for path in (ROOT / "docs" / "schemas").iterdir()}
