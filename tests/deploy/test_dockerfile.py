"""The Dockerfile, read; `test_image.py` runs what it makes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DOCKERFILE = Path(__file__).parents[2] / "Dockerfile"


def test_the_dockerfile_is_clean(tool: Callable[[str], str]) -> None:
    done = subprocess.run(
        [tool("hadolint"), "--failure-threshold=style", DOCKERFILE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_an_unpinned_package_would_be_found(tool: Callable[[str], str]) -> None:
    lax = "FROM python:3.13-slim\nRUN apt-get update && apt-get install -y curl\n"
    command = [tool("hadolint"), "--failure-threshold=style", "-"]
    done = subprocess.run(command, input=lax, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "DL3008" in done.stdout
