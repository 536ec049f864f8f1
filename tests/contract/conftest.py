"""What the contract tests share: saying loudly which client could not be had."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn, TypeAlias

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    Missing: TypeAlias = Callable[[str], NoReturn]

NOT_TESTED = pytest.StashKey[set[str]]()


@pytest.fixture(scope="session")
def missing(pytestconfig: pytest.Config) -> Missing:
    """Ends a test for want of a program: in CI as a failure, elsewhere as a skip that the summary repeats."""

    def end(what: str) -> NoReturn:
        if os.environ.get("CI", "").lower() not in {"", "0", "false"}:
            pytest.fail(what, pytrace=False)
        pytestconfig.stash.setdefault(NOT_TESTED, set()).add(what)
        pytest.skip(what)

    return end


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for what in sorted(config.stash.get(NOT_TESTED, None) or ()):
        terminalreporter.section("NOT TESTED BY EVERY CLIENT", red=True, bold=True)
        terminalreporter.write_line(what)
