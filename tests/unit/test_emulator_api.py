"""What the emulated API accepts and refuses, without a socket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.emulator.api import Api, Request
from service.emulator.contract import Answer
from service.emulator.store import Store


def make_api(*, key: str | None = None, create_on_write: bool = False, in_seconds: bool = False) -> Api:
    return Api(
        Store(),
        key=key,
        create_on_write=create_on_write,
        prefix="/v1",
        max_body_bytes=10_000,
        timestamps_in_seconds=in_seconds,
    )


def call(
    api: Api, method: str, path: str, document: Any = None, *, query: str = "", authorization: str | None = None
) -> tuple[int, Any]:
    body = b"" if document is None else document if isinstance(document, bytes) else json.dumps(document).encode()
    headers = [] if authorization is None else [(b"authorization", authorization.encode())]
    scope = {"method": method, "raw_path": path.encode(), "query_string": query.encode(), "headers": headers}
    request = api.read_request(scope, body)
    answer = request if isinstance(request, Answer) else api.perform(request)
    return answer.status, json.loads(answer.body)


def says(text: str, role: str = "user") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text}


@pytest.fixture
def api() -> Api:
    api = make_api()
    api.store.create_conversation(now_ms=0, conversation_id="conv_a")
    return api


ITEMS = "/v1/conversations/conv_a/items"


def test_a_string_comes_back_as_one_part_named_after_its_role(api: Api) -> None:
    status, page = call(api, "POST", ITEMS, {"items": [says("q"), says("a", "assistant"), says("s", "system")]})
    assert status == 200
    assert [item["content"] for item in page["data"]] == [
        [{"type": "input_text", "text": "q"}],
        [{"type": "output_text", "text": "a", "annotations": []}],
        [{"type": "input_text", "text": "s"}],
    ]
    first = page["data"][0]
    assert {**first, "id": "", "content": ""} == {
        "id": "",
        "type": "message",
        "role": "user",
        "content": "",
        "status": "completed",
    }
    assert page["object"] == "list"
    assert page["first_id"] == first["id"]
    assert page["last_id"] == page["data"][2]["id"]
    assert page["has_more"] is False


def test_parts_and_unknown_fields_come_back_as_they_came_but_the_id_is_the_apis(api: Api) -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "https://example.org/i"}]
    item = {"type": "message", "role": "user", "content": parts, "id": "mine", "status": "draft", "phase": "x"}
    stored = call(api, "POST", ITEMS, {"items": [item]})[1]["data"][0]
    assert stored["content"] == parts
    assert stored["phase"] == "x"
    assert stored["id"].startswith("msg_")
    assert stored["status"] == "completed"


@pytest.mark.parametrize(
    ("document", "code", "param"),
    [
        ({}, "missing_required_parameter", "items"),
        ({"items": None}, "missing_required_parameter", "items"),
        ({"items": "x"}, "invalid_type", "items"),
        ({"items": []}, "empty_array", "items"),
        ({"items": [says("x")] * 21}, "array_above_max_length", "items"),
        ({"items": [says("x"), "x"]}, "invalid_type", "items[1]"),
        ({"items": [{"role": "user", "content": "x"}]}, "missing_required_parameter", "items[0].type"),
        ({"items": [{**says("x"), "type": "file"}]}, "invalid_value", "items[0].type"),
        ({"items": [{"type": "message", "content": "x"}]}, "missing_required_parameter", "items[0].role"),
        ({"items": [says("x"), says("x", "tool")]}, "invalid_value", "items[1].role"),
        ({"items": [{**says("x"), "role": 1}]}, "invalid_type", "items[0].role"),
        ({"items": [says("x")] * 3 + [{**says("x"), "content": 5}]}, "invalid_type", "items[3].content"),
        ({"items": [{**says("x"), "content": None}]}, "missing_required_parameter", "items[0].content"),
        ({"items": [{**says("x"), "content": []}]}, "empty_array", "items[0].content"),
        ({"items": [{**says("x"), "content": ["x"]}]}, "invalid_type", "items[0].content[0]"),
        (
            {"items": [{**says("x"), "content": [{"text": "x"}]}]},
            "missing_required_parameter",
            "items[0].content[0].type",
        ),
        (
            {"items": [{**says("x"), "content": [{"type": "smell"}]}]},
            "invalid_value",
            "items[0].content[0].type",
        ),
        (
            {"items": [{**says("x"), "content": [{"type": "input_text"}]}]},
            "missing_required_parameter",
            "items[0].content[0].text",
        ),
        (
            {"items": [{**says("x"), "content": [{"type": "input_text", "text": 1}]}]},
            "invalid_type",
            "items[0].content[0].text",
        ),
    ],
)
def test_a_bad_item_is_refused_by_name_and_nothing_is_stored(api: Api, document: Any, code: str, param: str) -> None:
    status, body = call(api, "POST", ITEMS, document)
    assert status == 400
    assert body["error"]["code"] == code
    assert body["error"]["param"] == param
    assert body["error"]["type"] == "invalid_request_error"
    assert api.store.items_stored == 0


@pytest.mark.parametrize("body", [b"{", b"\xff", b"nonsense", b"[1]", b'"x"', b"[" * 5000])
def test_a_body_that_is_no_json_object_is_refused(api: Api, body: bytes) -> None:
    status, answer = call(api, "POST", ITEMS, body)
    assert status == 400
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_a_body_over_the_limit_is_too_large(api: Api) -> None:
    assert call(api, "POST", ITEMS, {"items": [says("x" * 10_000)]})[0] == 413
    assert api.store.items_stored == 0


def test_lists_default_to_the_newest_twenty(api: Api) -> None:
    for number in range(25):
        call(api, "POST", ITEMS, {"items": [says(str(number))]})
    status, page = call(api, "GET", ITEMS)
    assert status == 200
    assert [item["content"][0]["text"] for item in page["data"]] == [str(n) for n in range(24, 4, -1)]
    assert page["has_more"] is True
    rest = call(api, "GET", ITEMS, query=f"after={page['last_id']}")[1]
    assert [item["content"][0]["text"] for item in rest["data"]] == ["4", "3", "2", "1", "0"]
    assert rest["has_more"] is False
    ascending = call(api, "GET", ITEMS, query=f"order=asc&limit=2&after={rest['last_id']}")[1]
    assert [item["content"][0]["text"] for item in ascending["data"]] == ["1", "2"]
    assert ascending["has_more"] is True


def test_an_empty_list_has_no_first_and_no_last(api: Api) -> None:
    assert call(api, "GET", ITEMS)[1] == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("limit=0", "integer_below_min_value", "limit"),
        ("limit=-3", "integer_below_min_value", "limit"),
        ("limit=101", "integer_above_max_value", "limit"),
        ("limit=many", "invalid_type", "limit"),
        ("limit=", "invalid_type", "limit"),
        ("limit=%C2%B2", "invalid_type", "limit"),
        ("order=up", "invalid_value", "order"),
        ("after=msg_unknown", "invalid_value", "after"),
        ("after=", "invalid_value", "after"),
    ],
)
def test_a_bad_list_query_is_refused_by_name(api: Api, query: str, code: str, param: str) -> None:
    status, body = call(api, "GET", ITEMS, query=query)
    assert (status, body["error"]["code"], body["error"]["param"]) == (400, code, param)


def test_a_conversation_is_created_shown_updated_and_deleted() -> None:
    api = make_api()
    status, created = call(
        api, "POST", "/v1/conversations", {"metadata": {"topic": "demo"}, "items": [says("a"), says("b")]}
    )
    assert status == 200
    assert created["object"] == "conversation"
    assert created["metadata"] == {"topic": "demo"}
    assert created["created_at"] > 10**12, "milliseconds, as Alibaba counts"
    path = f"/v1/conversations/{created['id']}"
    assert call(api, "GET", path) == (200, created)
    assert call(api, "POST", path, {"metadata": {"k": "v"}})[1]["metadata"] == {"k": "v"}
    assert call(api, "POST", path, {})[1]["error"]["param"] == "metadata"
    assert api.store.conversations[created["id"]].texts() == ["a", "b"]
    assert call(api, "DELETE", path) == (
        200,
        {"id": created["id"], "object": "conversation.deleted", "deleted": True},
    )
    assert call(api, "GET", path)[0] == 404


def test_timestamps_are_seconds_on_request() -> None:
    assert call(make_api(in_seconds=True), "POST", "/v1/conversations")[1]["created_at"] < 10**11


@pytest.mark.parametrize(
    "metadata",
    [
        {str(number): "v" for number in range(17)},
        {"k" * 65: "v"},
        {"k": "v" * 513},
        {"k": 1},
        ["k"],
    ],
)
def test_metadata_has_limits(metadata: Any) -> None:
    api = make_api()
    assert call(api, "POST", "/v1/conversations", {"metadata": metadata})[0] == 400
    assert not api.store.conversations
    at_the_limit = {"k" * 63 + chr(ord("a") + number): "v" * 512 for number in range(16)}
    assert call(api, "POST", "/v1/conversations", {"metadata": at_the_limit})[0] == 200


def test_a_conversation_starts_with_up_to_twenty_items() -> None:
    api = make_api()
    assert call(api, "POST", "/v1/conversations", {"items": [says("x")] * 20})[0] == 200
    assert call(api, "POST", "/v1/conversations", {"items": [says("x")] * 21})[0] == 400
    assert call(api, "POST", "/v1/conversations", {"items": []})[0] == 200


def test_an_item_is_retrieved_and_deleted(api: Api) -> None:
    items = call(api, "POST", ITEMS, {"items": [says("a"), says("b")]})[1]["data"]
    assert call(api, "GET", f"{ITEMS}/{items[0]['id']}") == (200, items[0])
    status, conversation = call(api, "DELETE", f"{ITEMS}/{items[0]['id']}")
    assert (status, conversation["id"]) == (200, "conv_a")
    assert call(api, "GET", f"{ITEMS}/{items[0]['id']}")[0] == 404
    assert api.store.conversations["conv_a"].texts() == ["b"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/conversations/conv_b"),
        ("POST", "/v1/conversations/conv_b"),
        ("DELETE", "/v1/conversations/conv_b"),
        ("GET", "/v1/conversations/conv_b/items"),
        ("POST", "/v1/conversations/conv_b/items"),
        ("GET", "/v1/conversations/conv_a/items/msg_b"),
        ("DELETE", "/v1/conversations/conv_a/items/msg_b"),
    ],
)
def test_what_is_not_there_is_a_404_in_the_apis_own_form(api: Api, method: str, path: str) -> None:
    status, body = call(api, method, path, {"items": [says("x")]} if path.endswith("items") else None)
    assert status == 404
    assert body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/conversations",
        "/v1",
        "/v1/conversation",
        "/v1/conversationsx",
        "/v2/conversations/conv_a",
        "/v1/conversations/",
        "/v1/conversations/conv_a/",
        "/v1/conversations/conv_a/messages",
        "/v1/conversations/conv_a/items/msg_a/parts",
        "/v1/conversations//items",
        "/v1/conversations/%FF/items",
    ],
)
def test_a_path_the_api_does_not_have_is_a_404_in_no_form_of_the_apis(api: Api, path: str) -> None:
    assert call(api, "POST", path) == (404, {"detail": "Not Found"})


def test_a_method_the_path_does_not_have_is_a_405(api: Api) -> None:
    assert call(api, "PUT", ITEMS) == (405, {"detail": "Method Not Allowed"})


@pytest.mark.parametrize("conversation_id", ["a/b", "a%2Fb", "ü 東京", "a?b#c", "conv+1", "..x"])
def test_ids_are_decoded_exactly(conversation_id: str) -> None:
    encoded = "".join(f"%{byte:02X}" for byte in conversation_id.encode())
    api = make_api(create_on_write=True)
    assert call(api, "POST", f"/v1/conversations/{encoded}/items", {"items": [says("x")]})[0] == 200
    assert list(api.store.conversations) == [conversation_id]


def test_a_write_creates_its_conversation_only_where_asked_to() -> None:
    api = make_api(create_on_write=True)
    assert call(api, "GET", "/v1/conversations/conv_new/items")[0] == 404
    assert call(api, "POST", "/v1/conversations/conv_new/items", {"items": []})[0] == 400
    assert not api.store.conversations
    assert call(api, "POST", "/v1/conversations/conv_new/items", {"items": [says("x")]})[0] == 200


def test_the_key_is_checked_before_anything_else() -> None:
    api = make_api(key="right")
    status, body = call(api, "GET", "/v1/conversations/none")
    assert (status, body["error"]["code"]) == (401, None)
    status, body = call(api, "POST", "/v1/conversations/none", b"{", authorization="Bearer wrong")
    assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    assert call(api, "GET", "/v1/conversations/none", authorization="Bearer right")[0] == 404


def test_fewer_items_can_be_kept_or_listed_than_were_sent(api: Api) -> None:
    def perform(keep: int | None, listed: int | None) -> list[str]:
        document = {"items": [says(text) for text in "abc"]}
        request = Request("create_items", "conv_a", "", {}, None, 0, document)
        page = json.loads(api.perform(request, keep=keep, listed=listed).body)
        return [item["content"][0]["text"] for item in page["data"]]

    assert perform(None, 1) == ["a"]
    assert perform(2, None) == ["a", "b"]
    assert perform(0, None) == []
    assert api.store.conversations["conv_a"].texts() == ["a", "b", "c", "a", "b"]
