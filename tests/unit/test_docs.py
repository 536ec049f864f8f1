"""Pages made from the code are as the code would make them."""

from __future__ import annotations

from pathlib import Path

from service.commands.metrics_page import metrics_page
from service.commands.reference import reference
from service.commands.settings_schema import document

DOCS = Path(__file__).parents[2] / "docs"


def test_the_configuration_page_is_what_the_settings_say() -> None:
    assert (DOCS / "configuration.md").read_text() == reference(), "run `make docs`"


def test_the_schema_of_the_settings_is_what_the_settings_say() -> None:
    assert (DOCS / "configuration.schema.json").read_text() == document() + "\n", "run `make docs`"


def test_the_page_of_metrics_is_what_their_table_says() -> None:
    assert (DOCS / "metrics.md").read_text() == metrics_page(), "run `make docs`"
