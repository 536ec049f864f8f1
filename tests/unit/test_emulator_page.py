"""The emulator's page without a browser: what is rendered, and which forms are believed."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import pytest

from service.emulator.everyday import EVERYDAY
from service.emulator.fault_play import FaultPlay
from service.emulator.faults import FaultScript, Lock, Rule
from service.emulator.page import Page, file
from service.emulator.recent import KEPT, Recent, Seen
from service.emulator.store import NewItem, Store
from service.emulator.tally import Tally

if TYPE_CHECKING:
    from service.emulator.contract import Answer

NOW = 7.0


class Front:
    """The page over things that can be changed under it."""

    def __init__(self, script: FaultScript | None = None) -> None:
        self.store = Store()
        self.faults = FaultPlay(script or FaultScript(), everyday=[one.rule for one in EVERYDAY])
        self.recent = Recent()
        self.page = Page(self.store, self.faults, Tally(now=0.0), self.recent, base_path="/v1", clock=lambda: NOW)

    def text(self, query: str = "") -> str:
        answer = self.page.show(query.encode(), "127.0.0.1:8090")
        assert answer.status == 200
        return answer.body.decode()

    def post(self, body: str, **headers: str) -> Answer:
        named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        return self.page.switch(body.encode(), named)

    @property
    def on(self) -> list[str]:
        return [switch.name for switches in self.faults.switches() for switch in switches if switch.on]


OWN = {"host": "127.0.0.1:8090", "origin": "http://127.0.0.1:8090"}


def test_it_may_load_and_run_nothing_but_its_own_files_and_be_framed_by_nobody() -> None:
    headers = dict(Front().page.show(b"", "h").headers)
    policy = headers[b"content-security-policy"].decode().split("; ")
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert not any("unsafe" in rule for rule in policy)
    assert headers[b"x-content-type-options"] == b"nosniff"
    for name in ("page.css", "page.js", "icon.svg"):
        found = file(name)
        assert found is not None
        assert found.body
    assert file("page.html") is None
    assert file("../store.py") is None


@pytest.mark.parametrize("text", ["<mark>", "a & b", '"quoted"', "</mark>", "{{ 7 * 7 }}", "\u202eright to left", "\0"])
def test_every_text_is_escaped(text: str) -> None:
    front = Front(FaultScript((Rule(Lock(), name=text),)))
    conversation = front.store.create_conversation(now_ms=0, conversation_id=f"c{text}", metadata={text: text})
    part = {"type": "input_text", "text": text}
    front.store.append(conversation, [NewItem("user", [part, {"type": "refusal", "refusal": text}], {})], now_ms=0)
    front.recent.add(Seen(1, 0, 0.0, "GET", text, text, 0, outcome="200", rule=text))
    shown = (
        front.text(f"conversation={'c' + text}".replace("&", "%26")).replace("&#39;", "'").replace("&#34;", "&quot;")
    )
    assert shown.count(html.escape(text, quote=True)) >= 6
    assert "49" not in shown
    if text != html.escape(text):
        assert text not in shown


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "127.0.0.1:8090"},
        {"host": "127.0.0.1:8090", "origin": "null"},
        {"host": "127.0.0.1:8090", "origin": "http://127.0.0.1:8091"},
        {"host": "127.0.0.1:8090", "origin": "http://evil.example"},
        {"host": "127.0.0.1:8090", "origin": "http://127.0.0.1:8090.evil.example"},
        {"origin": "http://127.0.0.1:8090"},
        {**OWN, "sec_fetch_site": "cross-site"},
        {**OWN, "sec_fetch_site": "same-site"},
        {**OWN, "sec_fetch_site": "none"},
    ],
)
def test_a_form_for_which_no_browser_vouches_switches_nothing(headers: dict[str, str]) -> None:
    front = Front()
    assert front.post("fault=everyday-2&on=1", **headers).status == 403
    assert front.on == []


def test_a_form_of_its_own_switches_and_leads_back_to_where_it_was_sent() -> None:
    front = Front()
    for headers in (OWN, {**OWN, "sec_fetch_site": "same-origin"}):
        answer = front.post("fault=everyday-2&on=1&conversation=conv_%26%0D%0Aa&q=//x", **headers)
        assert answer.status == 303
        assert dict(answer.headers)[b"location"] == b"/?q=%2F%2Fx&conversation=conv_%26%0D%0Aa"
        assert front.on == ["down"]
    assert front.post("fault=everyday-2&on=0", **OWN).status == 303
    assert front.on == []
    assert front.post("fault=everyday-99&on=1", **OWN).status == 404
    assert front.post("nonsense", **OWN).status == 404
    assert front.on == []


@pytest.mark.parametrize(
    "query", ["skip=-1", "skip=x", "skip=99999999999999", "skip=%C2%B2", "before=gone", "%FF=%FF", "a;b"]
)
def test_a_query_nobody_meant_is_no_trouble(query: str) -> None:
    front = Front()
    front.store.create_conversation(now_ms=0, conversation_id="conv_a")
    assert "conv_a" in front.text(f"conversation=conv_a&{query}")


def test_a_conversation_that_is_not_there_is_said_not_to_be() -> None:
    assert "There is no conversation" in Front().text("conversation=conv_gone")


def test_only_the_newest_requests_are_remembered() -> None:
    recent = Recent()
    for number in range(KEPT + 5):
        recent.add(Seen(number, 0, 0.0, "GET", "list_items", "conv_a", 0))
    numbers = [seen.number for seen in recent.newest_first()]
    assert numbers == list(range(KEPT + 4, 4, -1))


def test_a_request_under_way_shows_how_long_it_has_been() -> None:
    front = Front()
    front.recent.add(Seen(1, 0, NOW - 5, "POST", "create_items", "conv_a", 3))
    shown = front.text()
    assert "5.0 s" in shown
    assert 'class="open"' in shown


def test_every_everyday_fault_has_a_name_of_its_own_and_says_what_it_does() -> None:
    names = [one.rule.name for one in EVERYDAY]
    assert len(set(names)) == len(names)
    assert all(names)
    shown = html.unescape(Front().text())
    assert all(one.says in shown for one in EVERYDAY)
