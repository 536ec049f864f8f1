"""The emulator as users' tests have it: in a project that knows nothing of this one but the documentation."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from openai import NotFoundError, OpenAI

from service.emulator.faults import Lock, Rule, load_faults
from service.emulator.testing import Emulator

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[2] / "docs" / "emulator.md"


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


def documented() -> dict[str, str]:
    """Return the files that the documentation shows."""
    found = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return dict(found)


async def test_the_documented_fixture_works_in_a_project_of_its_own(tmp_path: Path) -> None:
    for name, text in documented().items():
        (tmp_path / name).write_text(text)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert b"1 passed" in output


def test_the_documented_script_can_be_played(tmp_path: Path) -> None:
    file = tmp_path / "faults.toml"
    file.write_text(documented()["faults.toml"])
    script = load_faults(file)
    assert script.lock_busy_conversations
    assert [rule.name for rule in script.rules] == ["slow", "cut after storing", "throttle"]


def test_a_test_that_blocks_can_use_it(emulator: Emulator) -> None:
    conversation_id = emulator.create_conversation(metadata={"of": "a test"})
    with OpenAI(base_url=emulator.base_url, api_key=emulator.key, max_retries=0) as client:
        assert client.conversations.retrieve(conversation_id).metadata == {"of": "a test"}
        item = {"type": "message", "role": "user", "content": "hello"}
        created = client.conversations.items.create(conversation_id, items=[item])  # type: ignore[list-item]
        assert emulator.texts(conversation_id) == ["hello"]
        assert emulator.items(conversation_id) == [created.data[0].to_dict()]
        emulator.play(Rule(Lock(), name="locked"))
        with pytest.raises(Exception, match="operating on this conversation"):
            client.conversations.retrieve(conversation_id)
        emulator.play()
        with pytest.raises(NotFoundError):
            client.conversations.retrieve("conv_none")
    assert emulator.stats()["requests"]["retrieve_conversation"] == {"200": 1, "400": 1, "404": 1}


def test_what_cannot_be_done_is_said_where_it_was_asked_for(emulator: Emulator) -> None:
    emulator.create_conversation("conv_a")
    with pytest.raises(ValueError, match="conv_a"):
        emulator.create_conversation("conv_a")
    with pytest.raises(KeyError):
        emulator.texts("conv_none")
    taken = int(emulator.origin.rpartition(":")[2])
    with pytest.raises(OSError, match="in use"), Emulator(port=taken):
        pass
