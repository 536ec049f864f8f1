"""The mutants of `make mutants` fit the code they break: a slip that nobody can make any more guards nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import mutants
import pytest

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("ledger_mutants", ROOT / "tests/model/mutants.py")
assert _spec is not None
assert _spec.loader is not None
ledger_mutants = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ledger_mutants)

EVERY = [
    pytest.param(guarded.file, mutant, id=f"{Path(guarded.file).stem}: {mutant.name}")
    for guarded in (*mutants.GUARDED, *ledger_mutants.GUARDED)
    for mutant in guarded.mutants
]


@pytest.mark.parametrize(("file", "mutant"), EVERY)
def test_what_a_mutant_changes_stands_once_in_its_file(file: str, mutant: mutants.Mutant) -> None:
    assert (ROOT / file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old
