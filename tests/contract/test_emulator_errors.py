"""Every error the vendors document, whole: status, body and what a client is told of waiting."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from service.emulator.faults import (
    Effect,
    FaultScript,
    Lock,
    Match,
    Moderation,
    RateThrottle,
    Rule,
    Status,
    Unauthorized,
    Unpaid,
)
from service.emulator.server import EmulatorServer

KEY = "sk-of-the-errors"
MAX_BODY_BYTES = 2000
ITEMS = "/conversations/conv_a/items"

NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth"
    " (i.e. Authorization: Bearer YOUR_KEY)."
)
SUPPORTED_ROLES = "'user', 'assistant', 'system', 'developer'"


def says(text: str, role: str = "user") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text}


async def ask(emulator: EmulatorServer, method: str, path: str, document: Any = None, key: str | None = KEY) -> Any:
    headers = {} if key is None else {"Authorization": key if " " in key else f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=emulator.base_url, trust_env=False, headers=headers) as http:
        return await http.request(method, path, **({} if document is None else {"json": document}))


def error(message: str, code: str | None = None, param: str | None = None, type_: str = "invalid_request_error") -> Any:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


@pytest.mark.parametrize(
    ("asked", "status", "body"),
    [
        (("GET", "/conversations/conv_a", None, None), 401, error(NO_KEY)),
        (
            ("GET", "/conversations/conv_a", None, "sk-wrong"),
            401,
            error("Incorrect API key provided.", "invalid_api_key"),
        ),
        (
            ("GET", "/conversations/conv_a", None, f"Basic {KEY}"),
            401,
            error("Incorrect API key provided.", "invalid_api_key"),
        ),
        (("GET", "/conversations/conv_b", None), 404, error("Conversation with id 'conv_b' not found.")),
        (
            ("POST", "/conversations/conv_b/items", {"items": [says("x")]}),
            404,
            error("Conversation with id 'conv_b' not found."),
        ),
        (
            ("GET", f"{ITEMS}/msg_b", None),
            404,
            error("Item with id 'msg_b' not found in conversation with id 'conv_a'."),
        ),
        (
            ("GET", f"{ITEMS}?after=msg_b", None),
            400,
            error("Invalid 'after': no item with id 'msg_b' in this conversation.", "invalid_value", "after"),
        ),
        (
            ("GET", f"{ITEMS}?limit=101", None),
            400,
            error(
                "Invalid 'limit': expected a value from 1 to 100, but got 101 instead.",
                "integer_above_max_value",
                "limit",
            ),
        ),
        (
            ("POST", ITEMS, {"items": [says("x"), says("y", "tool")]}),
            400,
            error(f"Invalid value: 'tool'. Supported values are: {SUPPORTED_ROLES}.", "invalid_value", "items[1].role"),
        ),
        (
            ("POST", ITEMS, {"items": [says("x")] * 21}),
            400,
            error(
                "Invalid 'items': array too long. Expected an array with maximum length 20, but got an array with"
                " length 21 instead.",
                "array_above_max_length",
                "items",
            ),
        ),
        (
            ("POST", "/conversations/conv_a", {}),
            400,
            error("Missing required parameter: 'metadata'.", "missing_required_parameter", "metadata"),
        ),
        (
            ("POST", ITEMS, {"items": [says("x" * MAX_BODY_BYTES)]}),
            413,
            error("Request body too large: more than 2000 bytes.", "request_too_large"),
        ),
        (("PUT", ITEMS, {}), 405, {"detail": "Method Not Allowed"}),
        (("GET", "/conversation/conv_a", None), 404, {"detail": "Not Found"}),
    ],
)
async def test_the_api_refuses_in_these_words(asked: Any, status: int, body: Any) -> None:
    async with EmulatorServer(key=KEY, max_body_bytes=MAX_BODY_BYTES) as emulator:
        emulator.store.create_conversation(now_ms=0, conversation_id="conv_a")
        answer = await ask(emulator, *asked)
    assert (answer.status_code, answer.json()) == (status, body)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("effect", "status", "body", "waiting"),
    [
        (
            Lock(),
            400,
            error(
                "Another process is currently operating on this conversation. Please retry in a few seconds.",
                "conversation_locked",
                "conversation",
            ),
            {},
        ),
        (
            Moderation(names_item=True),
            400,
            error(
                "Input data may contain inappropriate content.",
                "DataInspectionFailed",
                "items[1].content",
                "data_inspection_failed",
            ),
            {},
        ),
        (
            Moderation(form="dashscope"),
            400,
            {
                "code": "DataInspectionFailed",
                "message": "Input data may contain inappropriate content.",
                "request_id": "req_0000000000000001",
            },
            {},
        ),
        (
            Unpaid(),
            400,
            error("Access denied, please make sure your account is in good standing.", "Arrearage", type_="Arrearage"),
            {},
        ),
        (Unauthorized(), 401, error("Incorrect API key provided.", "invalid_api_key"), {}),
        (
            RateThrottle(requests_per_second=0.001, retry_after_seconds=1.5),
            429,
            {
                "code": "Throttling.RateQuota",
                "message": "Requests rate limit exceeded, please try again later.",
                "request_id": "req_0000000000000002",
            },
            {"retry-after": "1.5"},
        ),
        (
            RateThrottle(requests_per_second=0.001, form="openai", retry_after_ms=700),
            429,
            error("Rate limit reached.", "rate_limit_exceeded", type_="requests"),
            {"retry-after-ms": "700"},
        ),
        (
            Status(
                status=429,
                code="insufficient_quota",
                message="You exceeded your current quota.",
                type="insufficient_quota",
            ),
            429,
            error("You exceeded your current quota.", "insufficient_quota", type_="insufficient_quota"),
            {},
        ),
        (Status(status=500), 500, error("The server had an error.", type_="server_error"), {}),
    ],
)
async def test_a_vendors_own_trouble_is_told_in_these_words(
    effect: Effect, status: int, body: Any, waiting: dict[str, str]
) -> None:
    rule = Rule(effect, Match(text="bad"))
    async with EmulatorServer(key=KEY, faults=FaultScript((rule,)), create_on_write=True) as emulator:
        document = {"items": [says("good"), says("bad")]}
        answer = await ask(emulator, "POST", ITEMS, document)
        if isinstance(effect, RateThrottle):
            # The first one had room.
            assert answer.status_code == 200
            answer = await ask(emulator, "POST", ITEMS, document)
    assert (answer.status_code, answer.json()) == (status, body)
    assert {
        name: answer.headers[name] for name in ("retry-after", "retry-after-ms") if name in answer.headers
    } == waiting
