"""What the deploy tests share: reading an environment as the service would, and saying loudly what was not tested."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

import pytest

from service.settings import PREFIX, load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from service.settings import Settings

NOT_TESTED = pytest.StashKey[set[str]]()


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
def missing(pytestconfig: pytest.Config) -> Callable[[str], NoReturn]:
    """Ends a test for want of a tool: in CI as a failure, elsewhere as a skip that the summary repeats."""

    def end(what: str) -> NoReturn:
        if os.environ.get("CI", "").lower() not in {"", "0", "false"}:
            pytest.fail(what, pytrace=False)
        pytestconfig.stash.setdefault(NOT_TESTED, set()).add(what)
        pytest.skip(what)

    return end


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for what in sorted(config.stash.get(NOT_TESTED, None) or ()):
        terminalreporter.section("THE CHART WAS NOT TESTED", red=True, bold=True)
        terminalreporter.write_line(what)
