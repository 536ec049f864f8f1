"""What the API's bytes say: lists, errors in each form they come in, and how long to wait."""

from __future__ import annotations

import email.utils
import json
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.conversations.answers import MAX_MESSAGE_CHARACTERS, MAX_WAIT_SECONDS, read_answer
from service.core.model import Answered, ErrorBody, ErrorForm

NOW = 1_700_000_000.0


def read(status: int, body: Any = b"", headers: dict[str, str] | None = None) -> Answered:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_answer(status, httpx.Headers(headers or {}), raw, wall_clock=NOW)


def error_of(body: Any, status: int = 400) -> ErrorBody | None:
    answer = read(status, body)
    assert answer.items is None
    return answer.error


# Lists


def test_a_list_gives_its_items_as_they_were_written() -> None:
    answer = read(
        200, b'{"object":"list","data":[ {"id":"a","n":1.50} ,{"id":"b"}],"first_id":"a","last_id":"b","has_more":true}'
    )
    assert answer.items is not None
    assert [bytes(item) for item in answer.items] == [b'{"id":"a","n":1.50}', b'{"id":"b"}']
    assert (answer.status, answer.last_id, answer.has_more) == (200, "b", True)


@pytest.mark.parametrize(
    ("body", "last_id"),
    [
        ({"data": []}, ""),
        ({"data": [{"id": "a"}, {"id": "b"}]}, "b"),
        ({"data": [{"id": "a"}], "last_id": None, "has_more": None}, "a"),
        ({"data": [{"id": "a"}], "last_id": ""}, "a"),
        ({"data": [{"no": "id"}]}, ""),
        ({"data": [{"id": "a"}], "last_id": "z", "object": 17, "more": {"x": 1}}, "z"),
    ],
)
def test_a_list_may_lack_all_but_its_data(body: Any, last_id: str) -> None:
    answer = read(200, body)
    assert answer.items is not None
    assert len(answer.items) == len(body["data"])
    assert (answer.last_id, answer.has_more) == (last_id, False)


@pytest.mark.parametrize("status", [200, 201, 204, 299])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"OK",
        b"<html>Welcome</html>",
        b"{}",
        b"[]",
        b'{"data":null}',
        b'{"data":{}}',
        b'{"data":[5]}',
        b'{"data":[{"id":1}',
    ],
)
def test_a_success_that_is_no_list_lists_nothing(status: int, body: bytes) -> None:
    answer = read(status, body)
    assert (answer.status, answer.items, answer.error, answer.last_id) == (status, None, None, "")


def test_an_item_in_a_broken_encoding_is_mended_since_it_goes_into_a_reply() -> None:
    answer = read(200, b'{"data":[{"id":"a","text":"hell\xff"}]}')
    assert answer.items is not None
    assert json.loads(bytes(answer.items[0]).decode()) == {"id": "a", "text": "hell\ufffd"}


# Errors


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"error": {"code": "c", "message": "m", "type": "t"}}, "c", "m"),
        ({"error": {"code": None, "message": "m", "type": "t"}}, "t", "m"),
        ({"error": {"message": "m", "type": "t"}}, "t", "m"),
        ({"error": {"code": 404, "message": None}}, "404", ""),
        ({"error": {}}, "", ""),
        ({"error": {"code": "c", "message": {"nested": 1}}, "request_id": "r"}, "c", "{'nested': 1}"),
    ],
)
def test_an_error_in_openais_form(body: Any, code: str, message: str) -> None:
    assert error_of(body) == ErrorBody(ErrorForm.NESTED, code, message)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"code": "DataInspectionFailed", "message": "m", "request_id": "r"}, "DataInspectionFailed", "m"),
        ({"code": "c", "message": ""}, "c", ""),
        ({"code": "c", "message": None, "extra": 1}, "c", ""),
    ],
)
def test_an_error_in_dashscopes_form(body: Any, code: str, message: str) -> None:
    assert error_of(body) == ErrorBody(ErrorForm.DASHSCOPE, code, message)


@pytest.mark.parametrize("body", [{"error": "no such thing"}, {"error": "no such thing", "request_id": "r"}])
def test_an_error_in_the_flat_form(body: Any) -> None:
    assert error_of(body) == ErrorBody(ErrorForm.FLAT, "", "no such thing")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"Bad Gateway",
        b"<html>502</html>",
        b"null",
        b"17",
        b'"text"',
        b"[]",
        b'[{"error":{"code":"c"}}]',
        b"{}",
        b'{"detail":"Not Found"}',
        b'{"error":"Not Found","path":"/x","status":404}',
        b'{"error":5}',
        b'{"error":["x"]}',
        b'{"code":5,"message":"m"}',
        b'{"code":"c"}',
        b'{"error":{"code":"c"',
        b'{"error":{"code":"\xff"}}',
        b'\xef\xbb\xbf{"error":{"code":"c"}}',
    ],
)
def test_what_no_api_of_this_kind_writes_is_no_error_of_its_own(body: bytes) -> None:
    assert error_of(body) is None


@pytest.mark.parametrize(
    ("param", "culprit"),
    [
        ("items[3]", 3),
        ("items[3].content", 3),
        ("items.3.content[0]", 3),
        ("body.items[12].role", 12),
        ("items[0]", 0),
        ("items[99999]", 9999),
        ("items", None),
        ("items[x]", None),
        ("items[-1]", None),
        ("conversation_id", None),
        ("", None),
        (None, None),
        (7, None),
        ({"items": 3}, None),
    ],
)
def test_the_item_an_error_names_is_found_in_its_param(param: Any, culprit: int | None) -> None:
    nested = error_of({"error": {"code": "c", "message": "items[5] in words", "param": param}})
    dashscope = error_of({"code": "c", "message": "items[5] in words", "param": param})
    assert nested is not None
    assert dashscope is not None
    assert nested.culprit == dashscope.culprit == culprit


def test_what_an_error_says_is_kept_short() -> None:
    error = error_of({"error": {"code": "c" * 9000, "message": "m" * 9000}})
    assert error is not None
    assert len(error.code) == len(error.message) == MAX_MESSAGE_CHARACTERS


# Waiting


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, MAX_WAIT_SECONDS),
        ({"retry-after": "1e9"}, MAX_WAIT_SECONDS),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "0", "retry-after": "7"}, None),
        ({"retry-after": email.utils.formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": email.utils.formatdate(NOW - 30, usegmt=True)}, None),
        ({"retry-after": email.utils.formatdate(NOW + 1e6, usegmt=True)}, MAX_WAIT_SECONDS),
        ({"retry-after": "Sun, 99 Nov 2023 22:13:50 GMT"}, None),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert read(429, b"", headers).retry_after_seconds == seconds


@pytest.mark.parametrize(
    ("said", "understood"),
    [("true", True), ("True", True), ("false", False), ("", None), ("maybe", None), (None, None)],
)
def test_whether_it_is_worth_trying_again_may_be_said(said: str | None, understood: bool | None) -> None:
    headers = {} if said is None else {"x-should-retry": said}
    assert read(400, b"", headers).should_retry is understood


# Nothing raises

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["data", "error", "code", "message", "param", "id", "last_id"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)
statuses = st.integers(100, 599)
waits = st.dictionaries(
    st.sampled_from(["retry-after", "retry-after-ms", "x-should-retry"]),
    st.text(st.characters(max_codepoint=255), max_size=20),
)


def check(answer: Answered) -> None:
    for item in answer.items or ():
        json.loads(bytes(item).decode())
    assert answer.retry_after_seconds is None or 0 < answer.retry_after_seconds <= MAX_WAIT_SECONDS
    assert answer.items is None or answer.error is None


@given(statuses, st.binary(max_size=300), waits)
@example(200, b'{"data":[' + b"[" * 100_000, {})
@example(400, b'{"error":' * 100_000, {})
@example(200, b'{"data":[{"id":"a","x":"\xff"}]}', {})
@example(429, b"", {"retry-after": "Mon, 01 Jan 0001 00:00:00 -2359"})
@example(429, b"", {"retry-after": "9" * 400})
def test_no_bytes_raise(status: int, body: bytes, headers: dict[str, str]) -> None:
    check(read_answer(status, headers, body, wall_clock=NOW))


@given(statuses, values, waits)
def test_no_json_raises(status: int, body: Any, headers: dict[str, str]) -> None:
    check(read_answer(status, headers, json.dumps(body).encode(), wall_clock=NOW))
