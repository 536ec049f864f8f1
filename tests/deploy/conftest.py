"""What the deploy tests share: reading an environment as the service would, and the tools they need."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from rendering import Chart

from service.settings import PREFIX, load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from service.settings import Settings


@pytest.fixture
def read_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Mapping[str, str]], Settings]:
    """The service's own judgement of an environment: unknown names and wrong values end the start."""

    def read(environment: Mapping[str, str]) -> Settings:
        for name in os.environ:
            if name.upper().startswith(PREFIX):
                monkeypatch.delenv(name)
        monkeypatch.delenv("DASHSCOPE_API_KEY", raising=False)
        monkeypatch.chdir(tmp_path)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return load()

    return read


@pytest.fixture(scope="session")
def tools(missing: Callable[[str], NoReturn]) -> Path:
    """The folder with promtool and Prometheus in `bin`, Grafana's types and TypeScript in `node_modules`."""
    install = Path(__file__).parents[2] / ".ci" / "install-observability-tools"
    done = subprocess.run([install], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing(f"no tools for alerts and dashboard: {done.stderr.strip()}")
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def tool(missing: Callable[[str], NoReturn]) -> Callable[[str], str]:
    """A program by name; its absence ends the test."""

    def find(name: str) -> str:
        found = shutil.which(name)
        if found is None:
            missing(f"no {name} on PATH; .ci/install-deploy-tools provides it")
        return found

    return find


@pytest.fixture(scope="session")
def chart(tool: Callable[[str], str]) -> Chart:
    """The chart, rendered by the helm of this machine."""
    return Chart(tool("helm"))
