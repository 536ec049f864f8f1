"""The client against the emulator: ids of any kind, pages, and what an answer says of waiting."""

from __future__ import annotations

import contextlib
import datetime as dt
import email.utils
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from service.conversations.client import MAX_PAGES, PAGE_ITEMS, Conversations
from service.core.model import Answered, ErrorForm, Fate, Unanswered
from service.emulator.faults import FaultScript, Html, Match, Rule, Status, When
from service.emulator.server import EmulatorServer
from service.emulator.store import NewItem
from service.settings import ApiSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from typing_extensions import Buffer

    from service.core.model import Answer

KEY = "sk-of-the-client"


def item(text: str) -> bytes:
    return json.dumps({"type": "message", "role": "user", "content": text}).encode()


@contextlib.asynccontextmanager
async def emulated(
    *rules: Rule, prefix: str = "/v1", base_url: str = "", **more: Any
) -> AsyncIterator[tuple[EmulatorServer, Conversations]]:
    async with EmulatorServer(key=KEY, create_on_write=True, faults=FaultScript(rules=rules), prefix=prefix) as api:
        settings = ApiSettings(base_url=base_url or api.base_url, key=KEY, **more)
        async with Conversations(settings, version="0") as conversations:
            yield api, conversations


def listed(answer: Answer) -> Sequence[Buffer]:
    assert isinstance(answer, Answered), answer
    assert answer.items is not None, answer
    return answer.items


def texts(answer: Answer) -> list[str]:
    return [json.loads(bytes(found))["content"][0]["text"] for found in listed(answer)]


def fill(api: EmulatorServer, conversation_id: str, count: int) -> None:
    conversation = api.store.create_conversation(now_ms=0, conversation_id=conversation_id)
    new = [NewItem("user", [{"type": "input_text", "text": str(number)}], {}) for number in range(count)]
    api.store.append(conversation, new, now_ms=0)


@pytest.mark.parametrize(
    "conversation_id",
    [
        "conv_1",
        "a/b",
        "../../admin",
        "a b",
        " leading and trailing ",
        "100%",
        "%2F",
        "%2e%2e",
        "%",
        "a?b=c&d",
        "a#b",
        "a;b,c:d@e",
        "a+b",
        "a\\b",
        'a"b<c>{d}|e^f`g',
        "größe",
        "語語語",
        "👋🏽",
        "e\u0301",
        "\u200bzero width",
        "x" * 256,
        "語" * 85,
        "~tilde-._",
        "...",
        "http://elsewhere/",
    ],
)
async def test_any_conversation_id_reaches_the_api_as_it_is(conversation_id: str) -> None:
    async with emulated() as (api, conversations):
        created = await conversations.create_items(conversation_id, [item("one"), item("two")])
        assert texts(created) == ["one", "two"]
        assert list(api.store.conversations) == [conversation_id]
        assert texts(await conversations.list_items(conversation_id)) == ["one", "two"]
        assert texts(await conversations.list_newest(conversation_id, 1)) == ["two"]
        assert isinstance(created, Answered)
        assert texts(await conversations.list_items(conversation_id, after=created.last_id)) == []


@pytest.mark.parametrize("prefix", ["", "/v1", "/api/v2/apps/protocols/compatible-mode/v1"])
async def test_a_base_url_may_have_any_path(prefix: str) -> None:
    async with emulated(prefix=prefix) as (api, conversations):
        assert texts(await conversations.create_items("a/b", [item("one")])) == ["one"]
        assert list(api.store.conversations) == ["a/b"]


async def test_the_items_of_a_request_arrive_in_order_and_as_they_were_written() -> None:
    async with emulated() as (api, conversations):
        written = [item(f'{number} ü \u2028 \\ " 👋') for number in range(20)]
        answer = await conversations.create_items("conv_1", written)
        assert len(listed(answer)) == 20
        assert isinstance(answer, Answered)
        assert answer.last_id == json.loads(bytes(listed(answer)[-1]))["id"]
        assert api.store.conversations["conv_1"].texts() == [json.loads(one)["content"] for one in written]


async def test_all_items_behind_a_cursor_are_read_page_by_page() -> None:
    async with emulated() as (api, conversations):
        fill(api, "conv_1", 2 * PAGE_ITEMS + 50)
        everything = await conversations.list_all_items("conv_1", after="")
        assert texts(everything) == [str(number) for number in range(2 * PAGE_ITEMS + 50)]
        assert api.stats()["requests"]["list_items"] == {"200": 3}
        cursor = json.loads(bytes(listed(everything)[99]))["id"]
        assert texts(await conversations.list_all_items("conv_1", after=cursor))[0] == "100"
        assert texts(await conversations.list_newest("conv_1", 3)) == ["247", "248", "249"]
        assert isinstance(everything, Answered)
        assert everything.last_id == json.loads(bytes(listed(everything)[-1]))["id"]


async def test_a_conversation_without_end_is_not_read_for_ever() -> None:
    async with emulated() as (api, conversations):
        fill(api, "conv_1", MAX_PAGES * PAGE_ITEMS + 1)
        found = await conversations.list_all_items("conv_1", after="")
        assert isinstance(found, Unanswered)
        assert (found.fate, found.code) == (Fate.UNKNOWN, "endless_list")


async def test_a_page_that_fails_is_the_answer_of_the_whole_reading() -> None:
    second_page = Rule(Status(status=503), Match(operations=("list_items",)), When(every=2))
    async with emulated(second_page) as (api, conversations):
        fill(api, "conv_1", PAGE_ITEMS + 1)
        found = await conversations.list_all_items("conv_1", after="")
        assert isinstance(found, Answered)
        assert (found.status, found.items) == (503, None)


async def test_a_cursor_that_is_gone_and_a_conversation_that_is_not_there_are_told_in_the_apis_own_words() -> None:
    async with emulated() as (api, conversations):
        fill(api, "conv_1", 1)
        gone = await conversations.list_items("conv_1", after="msg_gone/?#")
        assert isinstance(gone, Answered)
        assert gone.status in {400, 404}
        assert gone.error is not None
        missing = await conversations.list_items("conv_2")
        assert isinstance(missing, Answered)
        assert missing.status == 404
        assert missing.error is not None
        assert missing.error.form is ErrorForm.NESTED


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"Retry-After": "0.25"}, 0.25),
        ({"RETRY-AFTER-MS": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "99"}, 1.5),
        ({"retry-after": "later"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "86400"}, 600),
        ({}, None),
    ],
)
async def test_how_long_to_wait_is_read_from_the_headers(headers: dict[str, str], seconds: float | None) -> None:
    async with emulated(Rule(Status(status=429, headers=headers))) as (_, conversations):
        found = await conversations.create_items("conv_1", [item("one")])
        assert isinstance(found, Answered)
        assert (found.status, found.retry_after_seconds) == (429, seconds)


async def test_a_date_to_wait_for_counts_from_now() -> None:
    moment = dt.datetime.fromtimestamp(time.time() + 30, dt.UTC)
    headers = {"retry-after": email.utils.format_datetime(moment, usegmt=True)}
    async with emulated(Rule(Status(status=503, headers=headers))) as (_, conversations):
        found = await conversations.create_items("conv_1", [item("one")])
        assert isinstance(found, Answered)
        assert found.retry_after_seconds is not None
        assert 25 < found.retry_after_seconds <= 30


@pytest.mark.parametrize("form", ["openai", "flat", "dashscope"])
async def test_an_error_is_understood_in_each_form(form: Any) -> None:
    rule = Rule(Status(status=400, code="InvalidParameter", message="no good", param="items[3].content", form=form))
    async with emulated(rule) as (_, conversations):
        found = await conversations.create_items("conv_1", [item("one")])
        assert isinstance(found, Answered)
        assert found.error is not None
        assert found.error.message == "no good"
        if form != "flat":
            assert found.error.code == "InvalidParameter"


async def test_a_page_of_html_is_an_answer_that_lists_nothing() -> None:
    async with emulated(Rule(Html())) as (_, conversations):
        found = await conversations.create_items("conv_1", [item("one")])
        assert isinstance(found, Answered)
        assert (found.status, found.items, found.error) == (200, None, None)


async def test_a_wrong_key_is_an_answer() -> None:
    async with EmulatorServer(key="another") as api:
        settings = ApiSettings(base_url=api.base_url, key=KEY)
        async with Conversations(settings, version="0") as conversations:
            found = await conversations.create_items("conv_1", [item("one")])
        assert isinstance(found, Answered)
        assert found.status == 401
