"""The official `openai` client, synchronous and asynchronous, against the emulator."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI

from service.emulator.faults import (
    Cut,
    FaultScript,
    HalfJson,
    Lock,
    Match,
    Moderation,
    RateThrottle,
    Rule,
    Silence,
    Status,
    TooLarge,
    Unpaid,
    When,
    WrongPath,
)
from service.emulator.server import EmulatorServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import TypeAlias

    Write: TypeAlias = Callable[..., Awaitable[None]]

KEY = "sk-test"


@pytest_asyncio.fixture
async def emulator() -> AsyncIterator[EmulatorServer]:
    async with EmulatorServer(key=KEY) as emulator:
        emulator.store.create_conversation(now_ms=0, conversation_id="conv_xxx")
        async with asyncio.timeout(20):
            yield emulator


@pytest_asyncio.fixture
async def client(emulator: EmulatorServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key=KEY, base_url=emulator.base_url, max_retries=0) as client:
        yield client


async def in_a_thread(emulator: EmulatorServer, scenario: Callable[[OpenAI], None]) -> None:
    """The synchronous client blocks; the emulator lives in this loop."""

    def run() -> None:
        with OpenAI(api_key=KEY, base_url=emulator.base_url, max_retries=0) as client:
            scenario(client)

    await asyncio.to_thread(run)


def says(text: str, role: Any = "user") -> Any:
    return {"type": "message", "role": role, "content": text}


async def test_the_vendors_example_runs_unchanged(emulator: EmulatorServer, capsys: pytest.CaptureFixture[str]) -> None:
    def scenario(client: OpenAI) -> None:
        items = client.conversations.items.create(
            "conv_xxx",
            items=[
                {
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": "Alice's major is teacher education"}],
                },
                {"type": "message", "role": "user", "content": "Alice's best friend is Bob"},
            ],
        )
        print(items.data)  # noqa: T201 - as the vendor's page does
        document = items.to_dict()
        first, second = items.data
        assert document == {
            "object": "list",
            "data": [
                {
                    "id": first.id,
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": text}],
                    "status": "completed",
                }
                for first, text in (
                    (first, "Alice's major is teacher education"),
                    (second, "Alice's best friend is Bob"),
                )
            ],
            "first_id": first.id,
            "last_id": second.id,
            "has_more": False,
        }

    await in_a_thread(emulator, scenario)
    printed = capsys.readouterr().out
    assert "Message(id='msg_" in printed
    assert "text='Alice\\'s best friend is Bob'" in printed or 'text="Alice\'s best friend is Bob"' in printed


async def test_the_synchronous_client_does_everything_there_is(emulator: EmulatorServer) -> None:
    def scenario(client: OpenAI) -> None:
        created = client.conversations.create(metadata={"topic": "demo"}, items=[says("hello", "system")])
        assert created.object == "conversation"
        assert created.metadata == {"topic": "demo"}
        assert client.conversations.retrieve(created.id) == created
        assert client.conversations.update(created.id, metadata={"topic": "x"}).metadata == {"topic": "x"}

        answered = client.conversations.items.create(
            created.id, items=[says(f"text {number}") for number in range(19)] + [says("bye", "assistant")]
        )
        assert len(answered.data) == 20
        listed = list(client.conversations.items.list(created.id, limit=6, order="asc"))
        assert [item.id for item in listed[1:]] == [item.id for item in answered.data]
        newest = client.conversations.items.list(created.id, limit=1)
        assert newest.data[0] == answered.data[-1]
        assert newest.has_more

        item = client.conversations.items.retrieve(listed[3].id or "", conversation_id=created.id)
        assert item == listed[3]
        assert client.conversations.items.delete(listed[3].id or "", conversation_id=created.id).id == created.id
        assert len(list(client.conversations.items.list(created.id))) == 20

        deleted = client.conversations.delete(created.id)
        assert (deleted.id, deleted.deleted, deleted.object) == (created.id, True, "conversation.deleted")
        with pytest.raises(openai.NotFoundError):
            client.conversations.retrieve(created.id)

    await in_a_thread(emulator, scenario)


async def test_the_asynchronous_client_does_everything_there_is(client: AsyncOpenAI) -> None:
    created = await client.conversations.create()
    assert await client.conversations.retrieve(created.id) == created
    assert (await client.conversations.update(created.id, metadata={"a": "b"})).metadata == {"a": "b"}
    for number in range(5):
        await client.conversations.items.create(created.id, items=[says(f"{number}.{n}") for n in range(20)])
    texts = [
        item.content[0].text  # type: ignore[index, union-attr]
        async for item in client.conversations.items.list(created.id, limit=7, order="asc")
    ]
    assert texts == [f"{number}.{n}" for number in range(5) for n in range(20)]
    newest = await client.conversations.items.list(created.id)
    assert len(newest.data) == 20
    item_id = newest.data[0].id
    assert item_id
    assert await client.conversations.items.retrieve(item_id, conversation_id=created.id) == newest.data[0]
    await client.conversations.items.delete(item_id, conversation_id=created.id)
    with pytest.raises(openai.NotFoundError):
        await client.conversations.items.retrieve(item_id, conversation_id=created.id)
    assert (await client.conversations.delete(created.id)).deleted


async def test_ids_that_need_encoding_survive_the_client(emulator: EmulatorServer, client: AsyncOpenAI) -> None:
    for conversation_id in ("a/b?c#d%2Fe", "ü 東京", "a+b&c"):
        emulator.store.create_conversation(now_ms=0, conversation_id=conversation_id)
        await client.conversations.items.create(conversation_id, items=[says(conversation_id)])
        assert emulator.store.conversations[conversation_id].texts() == [conversation_id]


async def test_a_refused_item_is_a_bad_request_that_names_it(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.conversations.items.create("conv_xxx", items=[says("a"), says("b", "tool")])
    assert refused.value.param == "items[1].role"
    assert refused.value.code == "invalid_value"
    with pytest.raises(openai.BadRequestError) as refused:
        await client.conversations.items.create("conv_xxx", items=[says("a")] * 21)
    assert refused.value.param == "items"
    with pytest.raises(openai.BadRequestError):
        await client.conversations.items.create("conv_xxx", items=[])
    with pytest.raises(openai.BadRequestError):
        await client.conversations.items.list("conv_xxx", after="msg_unknown")


async def test_what_is_not_there_is_not_found(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.conversations.items.create("conv_unknown", items=[says("a")])
    assert missing.value.type == "invalid_request_error"
    assert "conv_unknown" in missing.value.message


async def write_async(emulator: EmulatorServer, text: str, **options: Any) -> None:
    async with AsyncOpenAI(base_url=emulator.base_url, **{"api_key": KEY, "max_retries": 0, **options}) as client:
        await client.conversations.items.create("conv_xxx", items=[says(text)])


async def write_sync(emulator: EmulatorServer, text: str, **options: Any) -> None:
    def run() -> None:
        with OpenAI(base_url=emulator.base_url, **{"api_key": KEY, "max_retries": 0, **options}) as client:
            client.conversations.items.create("conv_xxx", items=[says(text)])

    await asyncio.to_thread(run)


both_clients = pytest.mark.parametrize("write", [write_sync, write_async])


def stored(emulator: EmulatorServer) -> list[str]:
    return emulator.store.conversations["conv_xxx"].texts()


def applied(emulator: EmulatorServer) -> list[int]:
    return [fault["applied"] for fault in emulator.stats()["faults"]]


@both_clients
async def test_a_wrong_key_is_an_authentication_error(emulator: EmulatorServer, write: Write) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        await write(emulator, "a", api_key="sk-wrong")
    assert refused.value.code == "invalid_api_key"
    assert stored(emulator) == []


@both_clients
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
async def test_a_status_is_an_error_of_its_own_that_says_what_was_wrong(
    emulator: EmulatorServer, write: Write, status: int, error: type[openai.APIStatusError]
) -> None:
    emulator.play(FaultScript((Rule(Status(status=status, code="c", message="Told so.", param="items[0]", type="t")),)))
    with pytest.raises(error) as refused:
        await write(emulator, "a")
    assert type(refused.value) is error
    assert (refused.value.status_code, refused.value.code) == (status, "c")
    assert (refused.value.param, refused.value.type) == ("items[0]", "t")
    assert "Told so." in refused.value.message
    assert refused.value.request_id == "req_0000000000000001"


@both_clients
@pytest.mark.parametrize(
    ("rule", "error", "code"),
    [
        (Rule(Lock()), openai.BadRequestError, "conversation_locked"),
        (Rule(Unpaid()), openai.BadRequestError, "Arrearage"),
        (Rule(Moderation(), Match(text="bad")), openai.BadRequestError, "DataInspectionFailed"),
        (
            Rule(Status(status=429, code="insufficient_quota", type="insufficient_quota")),
            openai.RateLimitError,
            "insufficient_quota",
        ),
        (Rule(TooLarge(max_bytes=10)), openai.APIStatusError, "request_too_large"),
        (Rule(WrongPath()), openai.NotFoundError, None),
        (Rule(Status(status=503, form="html")), openai.InternalServerError, None),
        (Rule(Cut()), openai.APIConnectionError, None),
        (Rule(Cut(reset=True)), openai.APIConnectionError, None),
        (Rule(HalfJson(cut=True)), openai.APIConnectionError, None),
    ],
)
async def test_every_trouble_is_the_clients_own_error(
    emulator: EmulatorServer, write: Write, rule: Rule, error: type[openai.APIError], code: str | None
) -> None:
    emulator.play(FaultScript((rule,)))
    with pytest.raises(error) as refused:
        await write(emulator, "a bad word")
    assert refused.value.code == code


@both_clients
async def test_silence_is_a_time_out(emulator: EmulatorServer, write: Write) -> None:
    emulator.play(FaultScript((Rule(Silence()),)))
    with pytest.raises(openai.APITimeoutError):
        await write(emulator, "a", timeout=0.1)


@both_clients
@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
async def test_a_client_tries_again_as_soon_as_it_is_told_and_stores_once(
    emulator: EmulatorServer, write: Write, status: int
) -> None:
    emulator.play(FaultScript((Rule(Status(status=status, headers={"retry-after-ms": "1"}), when=When(first=2)),)))
    await write(emulator, "once", max_retries=2)
    assert stored(emulator) == ["once"]
    assert emulator.stats()["requests"]["create_items"] == {"200": 1, str(status): 2}


@both_clients
async def test_a_client_gives_up_after_as_many_retries_as_it_was_given(emulator: EmulatorServer, write: Write) -> None:
    emulator.play(FaultScript((Rule(Status(status=429, headers={"retry-after-ms": "1"})),)))
    with pytest.raises(openai.RateLimitError):
        await write(emulator, "never", max_retries=3)
    assert applied(emulator) == [4]


@both_clients
async def test_a_client_waits_out_a_throttle(emulator: EmulatorServer, write: Write) -> None:
    emulator.play(FaultScript((Rule(RateThrottle(requests_per_second=20, retry_after_ms=60)),)))
    await asyncio.gather(*(write(emulator, text, max_retries=20) for text in "abcdef"))
    assert sorted(stored(emulator)) == list("abcdef")
    assert applied(emulator)[0] >= 1


@both_clients
async def test_a_client_obeys_should_retry_either_way(emulator: EmulatorServer, write: Write) -> None:
    def told(answer: str, status: int) -> Rule:
        headers = {"retry-after-ms": "1", "x-should-retry": answer}
        return Rule(Status(status=status, headers=headers), when=When(first=1))

    emulator.play(FaultScript((told("false", 500),)))
    with pytest.raises(openai.InternalServerError):
        await write(emulator, "never", max_retries=2)
    emulator.play(FaultScript((told("true", 400),)))
    await write(emulator, "once", max_retries=2)
    assert stored(emulator) == ["once"]


@both_clients
async def test_a_client_that_retries_after_a_cut_stores_twice(emulator: EmulatorServer, write: Write) -> None:
    """The API has no idempotency key: this is the trouble that delivery has to settle by reading back."""
    emulator.play(FaultScript((Rule(Cut(stores="all"), when=When(first=1)),)))
    await write(emulator, "twice", max_retries=1)
    assert stored(emulator) == ["twice", "twice"]
