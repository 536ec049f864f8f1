"""Comparing what was sent with what is stored, and remembering where to read from."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.readback import Cursors, found, item_id, likeness


def like(role: str, content: Any, **more: Any) -> Any:
    return likeness(json.dumps({"role": role, "content": content, **more}).encode())


# What is taken for the same item


@pytest.mark.parametrize("part_type", ["input_text", "output_text", "text"])
@pytest.mark.parametrize("role", ["user", "assistant", "system", "developer"])
def test_text_comes_back_as_a_part_and_is_the_same_text(role: str, part_type: str) -> None:
    sent = like(role, "Grüße 👋\n")
    assert sent == like(role, [{"type": part_type, "text": "Grüße 👋\n"}])
    assert sent == like(role, [{"type": part_type, "text": "Grüße 👋\n", "annotations": [], "logprobs": None}])


def test_what_the_api_adds_to_an_item_or_a_part_changes_nothing() -> None:
    sent = like("user", [{"type": "input_image", "image_url": "https://x/y.png"}, {"type": "input_text", "text": "?"}])
    stored = like(
        "user",
        [
            {"image_url": "https://x/y.png", "detail": "auto", "file_id": None, "type": "input_image"},
            {"annotations": [], "text": "?", "type": "input_text"},
        ],
        id="msg_1",
        status="completed",
        type="message",
        object="conversation.item",
    )
    assert sent == stored


def test_the_order_of_keys_and_the_escapes_of_json_change_nothing() -> None:
    one = likeness(b'{"role":"user","content":[{"type":"input_file","file_id":"f","filename":"\\u00fc/"}]}')
    two = likeness('{"content": [{"filename": "ü\\/", "file_id": "f", "type": "input_file"}], "role": "user"}'.encode())
    assert one == two


def test_a_view_of_bytes_is_as_good_as_bytes() -> None:
    assert likeness(memoryview(b'{"role":"user","content":"a"}')) == like("user", "a")
    assert item_id(memoryview(b'{"id":"msg_1"}')) == "msg_1"


@pytest.mark.parametrize(
    ("role", "content"),
    [
        ("assistant", "a"),
        ("user", "A"),
        ("user", "a "),
        ("user", ""),
        ("user", []),
        ("user", None),
        ("user", [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": ""}]),
        ("user", [{"type": "input_image", "text": "a"}]),
        ("user", [{"type": "refusal", "refusal": "a"}]),
        ("user", ["a"]),
        ("user", {"text": "a"}),
    ],
)
def test_another_role_or_other_content_is_another_item(role: str, content: Any) -> None:
    assert like(role, content) != like("user", "a")


def test_parts_that_are_no_text_are_told_apart_by_all_that_was_sent() -> None:
    image = {"type": "input_image", "image_url": "https://x/1.png"}
    assert like("user", [image]) != like("user", [{**image, "image_url": "https://x/2.png"}])
    assert like("user", [image, image]) != like("user", [image])
    assert like("user", [image, {"type": "input_text", "text": "a"}]) != like(
        "user", [{"type": "input_text", "text": "a"}, image]
    )


@pytest.mark.parametrize("item", [b"null", b"[]", b'"text"', b"7", b"{}"])
def test_what_is_no_item_at_all_is_like_no_message(item: bytes) -> None:
    assert likeness(item) != like("user", "a")
    assert likeness(item) != like("user", "")
    assert item_id(item) == ""


@pytest.mark.parametrize("value", [None, 7, ["msg_1"], {"id": "msg_1"}])
def test_an_id_that_is_no_text_is_none(value: Any) -> None:
    assert item_id(json.dumps({"id": value}).encode()) == ""


plain = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
parts = st.one_of(
    st.builds(lambda text: {"type": "input_text", "text": text}, st.text(max_size=8)),
    st.dictionaries(st.text(min_size=1, max_size=4), plain, max_size=3).map(lambda more: {**more, "type": "input_x"}),
)
contents = st.text(max_size=8) | st.lists(parts, min_size=1, max_size=3)


@given(st.sampled_from(["user", "assistant"]), contents, st.booleans(), st.randoms())
def test_whatever_is_sent_is_recognised_in_the_shape_the_api_gives_it(
    role: str, content: Any, annotated: bool, shuffle: Any
) -> None:
    shown: list[dict[str, Any]] = (
        [{"type": "output_text", "text": content}] if isinstance(content, str) else [dict(part) for part in content]
    )
    for part in shown:
        if annotated:
            part["annotations"] = []
            part["logprobs"] = None
        part["of_the_future"] = None
    stored = [("id", "msg_1"), ("role", role), ("content", shown), ("status", "completed")]
    shuffle.shuffle(stored)
    assert likeness(json.dumps(dict(stored)).encode()) == like(role, content)


@given(contents, contents)
def test_two_contents_are_alike_only_if_they_say_the_same(one: Any, two: Any) -> None:
    def said(content: Any) -> Any:
        shown = [{"type": "input_text", "text": content}] if isinstance(content, str) else content
        return [{name: value for name, value in part.items() if value is not None} for part in shown]

    # As JSON, where true is not 1.
    assert (like("user", one) == like("user", two)) == (
        json.dumps(said(one), sort_keys=True) == json.dumps(said(two), sort_keys=True)
    )


# What is found

letters = st.lists(st.sampled_from("aab"), min_size=1, max_size=8)


def likes(texts: list[str]) -> list[Any]:
    return [like("user", text) for text in texts]


@given(letters, st.integers(0, 8), st.lists(st.tuples(st.integers(0, 8), st.just("x")), max_size=5))
def test_a_stored_prefix_is_found_whoever_writes_in_between(
    sent: list[str], stored: int, others: list[tuple[int, str]]
) -> None:
    kept = sent[:stored]
    listed = [(text, True) for text in kept]
    for at, text in others:
        listed.insert(at, (text, False))
    matches = found(likes(sent), likes([text for text, _ in listed]))
    assert matches == [index for index, (_, ours) in enumerate(listed) if ours]


@given(letters, st.lists(st.sampled_from("abx"), max_size=10))
def test_what_is_found_is_a_prefix_in_order_at_its_first_places(sent: list[str], listed: list[str]) -> None:
    matches = found(likes(sent), likes(listed))
    assert len(matches) <= len(sent)
    assert [listed[index] for index in matches] == sent[: len(matches)]
    assert matches == sorted(set(matches))
    if len(matches) < len(sent):
        behind = matches[-1] + 1 if matches else 0
        assert sent[len(matches)] not in listed[behind:]


def test_nothing_sent_or_nothing_listed_is_nothing_found() -> None:
    assert found([], likes(["a"])) == []
    assert found(likes(["a"]), []) == []


def test_what_lies_behind_the_last_match_is_not_looked_at() -> None:
    listed = iter(likes(["a", "b", "c"]))
    assert found(likes(["a"]), listed) == [0]
    assert len(list(listed)) >= 1


# Cursors


def test_an_unknown_conversation_is_not_an_empty_one() -> None:
    cursors = Cursors(10)
    assert cursors.get("c") is None
    cursors.learn("c", "")
    assert cursors.get("c") == ""
    cursors.forget("c")
    assert cursors.get("c") is None
    cursors.forget("c")


def test_a_conversation_heard_of_again_is_remembered_longer_than_one_heard_of_since() -> None:
    cursors = Cursors(2)
    for conversation_id in "abac":
        cursors.learn(conversation_id, "msg")
    assert [cursors.get(conversation_id) for conversation_id in "abc"] == ["msg", None, "msg"]


@given(st.integers(0, 4), st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["learn", "get", "forget"]))))
def test_the_conversations_heard_of_last_are_remembered_and_no_more(limit: int, calls: list[tuple[str, str]]) -> None:
    cursors = Cursors(limit)
    model: OrderedDict[str, str] = OrderedDict()
    for number, (conversation_id, call) in enumerate(calls):
        if call == "learn":
            cursors.learn(conversation_id, f"msg_{number}")
            model[conversation_id] = f"msg_{number}"
            model.move_to_end(conversation_id)
            while len(model) > limit:
                model.popitem(last=False)
        elif call == "forget":
            cursors.forget(conversation_id)
            model.pop(conversation_id, None)
        assert cursors.get(conversation_id) == model.get(conversation_id)
        assert len(cursors) == len(model) <= limit
