"""What the command line refuses before anything is begun."""

from __future__ import annotations

import pytest
import typer.main
from typer.core import TyperGroup
from typer.testing import CliRunner

from service.cli import cli


def numbers(command: TyperGroup, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every option that takes a number with a fraction, with the command it belongs to."""
    found = []
    for name, member in command.commands.items():
        if isinstance(member, TyperGroup):
            found += numbers(member, (*path, name))
            continue
        found += [(*path, name, option.opts[0]) for option in member.params if option.type.name.startswith("float")]
    return found


ROOT = typer.main.get_group(cli)


def test_there_are_such_options() -> None:
    assert ("dlq", "redrive", "--rate") in numbers(ROOT)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "-1", "many"])
@pytest.mark.parametrize("option", numbers(ROOT), ids=" ".join)
def test_a_number_that_is_none_ends_it_as_wrong_usage(option: tuple[str, ...], value: str) -> None:
    done = CliRunner().invoke(cli, [*option[:-1], f"{option[-1]}={value}"])
    assert done.exit_code == 2, done.output
