"""The workflows: valid, every action pinned to a commit, no more rights than they need, calling what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS: dict[str, dict[Any, Any]] = {file.name: yaml.safe_load(file.read_text()) for file in FILES}
PINNED = re.compile(r"[\w./-]+@[0-9a-f]{40}")

every_workflow = pytest.mark.parametrize("name", WORKFLOWS)


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in WORKFLOWS[name]["jobs"].values() for step in job.get("steps", ())]


def test_there_is_one_for_each_thing_that_is_published() -> None:
    assert {"ci.yml", "release.yml", "image.yml", "chart.yml"} <= set(WORKFLOWS)


def test_actionlint_finds_nothing(missing: Callable[[str], NoReturn]) -> None:
    program = shutil.which("actionlint")
    if program is None:
        missing("actionlint is not on the PATH (.ci/install-docs-tools)")
    if shutil.which("shellcheck") is None:
        missing("shellcheck is not on the PATH: the scripts within the workflows would not be looked at")
    done = subprocess.run([program, *map(str, FILES)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@every_workflow
def test_an_action_of_others_is_pinned_to_a_commit(name: str) -> None:
    used = [step["uses"] for step in steps(name) if "uses" in step]
    assert used
    for action in used:
        assert PINNED.fullmatch(action), action


@every_workflow
def test_a_workflow_may_read_and_what_may_write_is_a_job_of_its_own(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    for job in WORKFLOWS[name]["jobs"].values():
        for step in job.get("steps", ()):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


@every_workflow
def test_what_it_calls_is_there(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for step in steps(name):
        script = step.get("run", "")
        for called in re.findall(r"(?<![\w-])make ((?:-s )?[a-z -]+)", script):
            assert set(called.replace("-s ", "").split()) <= targets, called
        for path in re.findall(r"(?<!/)(?:\.ci|deploy)/[\w-]+(?:\.sh)?", script):
            assert (ROOT / path).is_file(), path


@every_workflow
def test_what_it_watches_for_is_there(name: str) -> None:
    # YAML takes the key `on` for a truth value.
    events: dict[str, Any] = WORKFLOWS[name][True]
    for event in events.values():
        for pattern in (event or {}).get("paths", ()) if isinstance(event, dict) else ():
            assert list(ROOT.glob(pattern)), pattern


@pytest.mark.parametrize("name", ["release.yml", "image.yml", "chart.yml"])
def test_what_is_published_carries_the_version_of_the_package(name: str) -> None:
    scripts = [step.get("run", "") for step in steps(name)]
    assert any("make -s version" in script and "GITHUB_REF_NAME" in script for script in scripts)
