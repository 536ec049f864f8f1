"""The emulator's store against the simplest thing that could be right: a list."""

from __future__ import annotations

import functools
import timeit
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from service.emulator.store import Conversation, Item, NewItem, Store, text_of

if TYPE_CHECKING:
    from collections.abc import Callable

USER_SAYS = NewItem("user", [{"type": "input_text", "text": "hello"}], {})


def said(text: str) -> NewItem:
    return NewItem("user", [{"type": "input_text", "text": text}], {})


def whole_list(store: Store, conversation: Conversation, *, limit: int, newest_first: bool) -> list[Item]:
    found: list[Item] = []
    while True:
        page, has_more = store.page(
            conversation, after=found[-1] if found else None, limit=limit, newest_first=newest_first
        )
        assert len(page) <= limit
        found += page
        if not has_more:
            return found
        assert len(page) == limit


def test_ids_are_unique_show_no_order_and_repeat_with_the_seed() -> None:
    def ids(seed: int) -> list[str]:
        store = Store(seed=seed)
        conversation = store.create_conversation(now_ms=0)
        return [item.id for item in store.append(conversation, [USER_SAYS] * 500, now_ms=0)]

    assert len(set(ids(1))) == 500
    assert ids(1) != sorted(ids(1))
    assert ids(1) == ids(1)
    assert not set(ids(1)) & set(ids(2))
    assert all(item_id.startswith("msg_") for item_id in ids(1))


def test_items_keep_the_order_in_which_they_were_stored() -> None:
    store = Store()
    conversation = store.create_conversation(now_ms=0)
    store.append(conversation, [said("a"), said("b")], now_ms=1)
    store.append(conversation, [said("c")], now_ms=2)
    assert conversation.texts() == ["a", "b", "c"]
    assert [item.created_ms for item in conversation.items()] == [1, 1, 2]


def test_an_item_belongs_to_its_conversation_alone() -> None:
    store = Store()
    one, other = store.create_conversation(now_ms=0), store.create_conversation(now_ms=0)
    item = store.append(one, [USER_SAYS], now_ms=0)[0]
    assert store.item(one, item.id) is item
    assert store.item(other, item.id) is None


def test_a_deleted_conversation_takes_its_items_with_it() -> None:
    store = Store()
    conversation = store.create_conversation(now_ms=0, conversation_id="conv_a")
    item = store.append(conversation, [USER_SAYS], now_ms=0)[0]
    store.delete_conversation(conversation)
    assert "conv_a" not in store.conversations
    again = store.create_conversation(now_ms=0, conversation_id="conv_a")
    assert store.item(again, item.id) is None


@given(
    batches=st.lists(st.integers(0, 30), max_size=6),
    deletions=st.lists(st.integers(0, 10**6), max_size=60),
    limit=st.integers(1, 25),
    newest_first=st.booleans(),
)
def test_pages_show_every_item_once_in_order_whatever_was_deleted(
    batches: list[int], deletions: list[int], limit: int, newest_first: bool
) -> None:
    store = Store()
    conversation = store.create_conversation(now_ms=0)
    expected: list[Item] = []
    for size in batches:
        expected += store.append(conversation, [USER_SAYS] * size, now_ms=0)
        for number in deletions:
            if expected:
                gone = expected.pop(number % len(expected))
                store.delete_item(gone)
                assert store.item(conversation, gone.id) is None
    wanted = expected[::-1] if newest_first else expected
    assert whole_list(store, conversation, limit=limit, newest_first=newest_first) == wanted
    assert len(conversation) == len(expected)


def test_gaps_do_not_pile_up() -> None:
    store = Store()
    conversation = store.create_conversation(now_ms=0)
    items = store.append(conversation, [USER_SAYS] * 1000, now_ms=0)
    for item in items[:-1]:
        store.delete_item(item)
    assert len(conversation.slots) < 40
    assert list(conversation.items()) == items[-1:]


def test_text_is_all_text_of_all_parts() -> None:
    assert text_of("plain") == "plain"
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_image"}, {"type": "input_text", "text": "b"}]
    assert text_of(parts) == "ab"
    assert text_of(None) == ""
    assert text_of([1, {"text": 2}]) == ""


def best_seconds(work: Callable[[], object], *, times: int = 200) -> float:
    return min(timeit.repeat(work, number=1, repeat=times))


def test_work_costs_the_same_however_much_is_stored() -> None:
    """A look at every item would cost two hundred times as much; what is allowed for is memory that is far away."""

    def costs(size: int) -> dict[str, float]:
        store = Store()
        conversation = store.create_conversation(now_ms=0)
        items = [item for _ in range(size // 100) for item in store.append(conversation, [USER_SAYS] * 100, now_ms=0)]
        middle = items[size // 2]
        page = functools.partial(store.page, conversation, limit=20)
        return {
            "append": best_seconds(lambda: store.append(conversation, [USER_SAYS] * 20, now_ms=0)),
            "find": best_seconds(lambda: store.item(conversation, middle.id)),
            "newest": best_seconds(lambda: page(after=None, newest_first=True)),
            "behind the middle": best_seconds(lambda: page(after=middle, newest_first=False)),
            "delete": best_seconds(lambda: store.delete_item(items.pop())),
        }

    few, many = costs(1000), costs(200_000)
    assert {work: many[work] / few[work] for work in few if many[work] > 10 * few[work]} == {}
