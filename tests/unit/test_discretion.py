"""The search of what processes write bites: each kind of thing that may not be said is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from discretion import betrayed, overheard
from service_process import chat
from strange_records import strange_records

from service.emulator.server import EmulatorServer
from service.emulator.store import NewItem

if TYPE_CHECKING:
    from pathlib import Path

GIVEN = {
    "API__KEY": "sk-of-somebody",
    "KAFKA__SASL_PASSWORD": "hush-hush",
    "BATCH__MAX_ITEMS": "20",
    "KAFKA__GROUP_ID": "a-group-id",
}


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ('{"message": "stopped"} a-group-id 20', 0),
        ('{"error": "key sk-of-somebody refused"}', 1),
        ('{"error": "hush-hush"}\n{"error": "sk-of-somebody"}', 2),
        ("Authorization: Bearer x", 1),
        ('"content": "conv_003 says 17"', 1),
        ('"content": "conv_slow_0003 says 4"', 1),
    ],
)
def test_a_secret_or_a_text_is_found_and_nothing_else(output: str, found: int) -> None:
    assert len(betrayed(output, GIVEN)) == found


def test_what_the_tests_publish_is_known_as_message_text() -> None:
    for record in [*chat(3, 3), *chat(2, 2, words=" and more")]:
        assert betrayed((record.value or b"").decode(), {})
    known = sum(
        bool(betrayed((record.value or b"").decode(errors="replace"), {})) for record in strange_records(1, 500)
    )
    assert known > 200, "the broken ones may have lost their text"


async def test_a_text_that_the_api_holds_is_found_in_a_log(tmp_path: Path) -> None:
    async with EmulatorServer() as api:
        conversation = api.store.create_conversation(now_ms=0, conversation_id="conv_1")
        api.store.append(
            conversation, [NewItem("user", [{"type": "input_text", "text": "a word in private"}], {})], now_ms=0
        )
        (tmp_path / "deep").mkdir()
        log = tmp_path / "deep" / "convoy-1.log"
        log.write_text("nothing of it\n")
        assert overheard(tmp_path, [api]) == []
        log.write_text('{"error": "a word in private"}\n')
        assert overheard(tmp_path, [api]) == ["a word in private"]
