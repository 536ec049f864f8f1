"""The emulator's page in a real browser, while a client is at work."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from browser import BrowserUnavailableError, find_browser, running_browser
from openai import AsyncOpenAI, BadRequestError, InternalServerError
from playwright.async_api import expect

from service.emulator.faults import FaultScript, Lock, Match, Rule, Silence
from service.emulator.page import CONVERSATIONS, ITEMS
from service.emulator.server import EmulatorServer
from service.emulator.store import NewItem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from typing import NoReturn

    from playwright.async_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.asyncio(loop_scope="module")

NASTY = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">&amp;{{ 7 * 7 }}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(missing: Callable[[str], NoReturn]) -> AsyncIterator[Browser]:
    try:
        find_browser()
    except BrowserUnavailableError as unavailable:
        missing(str(unavailable))
    async with running_browser() as browser:
        yield browser


@dataclass
class Desk:
    """An emulator, a client of it, and somebody who watches."""

    emulator: EmulatorServer
    client: AsyncOpenAI
    context: BrowserContext
    page: Page
    complaints: list[str] = field(default_factory=list)

    async def open(self, path: str = "/") -> None:
        await self.page.goto(self.emulator.origin + path)

    async def say(self, conversation_id: str, *texts: str) -> None:
        items: list[Any] = [{"type": "message", "role": "user", "content": text} for text in texts]
        await self.client.conversations.items.create(conversation_id, items=items)


@pytest_asyncio.fixture(loop_scope="module")
async def desk(browser: Browser) -> AsyncIterator[Desk]:
    async with contextlib.AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(EmulatorServer(create_on_write=True))
        client = await stack.enter_async_context(
            AsyncOpenAI(base_url=emulator.base_url, api_key="sk-any", max_retries=0)
        )
        context = await stack.enter_async_context(await browser.new_context())
        context.set_default_timeout(8000)
        page = await context.new_page()
        desk = Desk(emulator, client, context, page)
        page.on("console", lambda message: desk.complaints.append(message.text))
        page.on("pageerror", lambda error: desk.complaints.append(str(error)))
        yield desk
        # What the content security policy forbids is a message here too: the page asks for nothing it may not have.
        assert desk.complaints == []


def fill(emulator: EmulatorServer, conversation_id: str, texts: Iterable[str]) -> None:
    conversation = emulator.store.create_conversation(now_ms=0, conversation_id=conversation_id)
    new = [NewItem("user", [{"type": "input_text", "text": text}], {}) for text in texts]
    emulator.store.append(conversation, new, now_ms=0)


async def test_a_conversation_is_shown_as_a_chat(desk: Desk) -> None:
    image: Any = {"type": "input_image", "image_url": "https://x.invalid/a"}
    created = await desk.client.conversations.create(
        metadata={"topic": "parcels"},
        items=[
            {"type": "message", "role": "user", "content": "Where is it?\nIt is late."},
            {"type": "message", "role": "assistant", "content": "On its way."},
            {"type": "message", "role": "user", "content": [image]},
        ],
    )
    await desk.open()
    await expect(desk.page.get_by_text("Choose a conversation.")).to_be_visible()
    await desk.page.get_by_role("navigation").get_by_role("link", name=created.id).click()
    chat = desk.page.get_by_role("region", name="conversation")
    await expect(chat.get_by_role("heading")).to_contain_text(f"{created.id} 3 items")
    await expect(chat.get_by_role("heading")).to_contain_text("topic: parcels")
    bubbles = chat.locator("article .bubble")
    # The newest is first in the document, and last on the screen.
    await expect(bubbles).to_have_text(["input_image", "On its way.", "Where is it? It is late."])
    places = [await bubble.bounding_box() for bubble in await bubbles.all()]
    assert all(places)
    heights = [place["y"] for place in places if place]
    assert heights == sorted(heights, reverse=True)


async def test_nothing_anybody_wrote_is_taken_for_markup(desk: Desk) -> None:
    desk.emulator.play(FaultScript((Rule(Lock(), Match(conversation="none"), name=NASTY),)))
    await desk.say(NASTY, NASTY)
    created = await desk.client.conversations.create(metadata={NASTY[:60]: NASTY})
    await desk.open()
    await desk.page.get_by_role("navigation").get_by_role("link", name=NASTY).click()
    chat = desk.page.get_by_role("region", name="conversation")
    await expect(chat.locator("article .bubble")).to_have_text(NASTY)
    await expect(chat.get_by_role("heading")).to_contain_text(NASTY)
    assert NASTY in await desk.page.title()
    await expect(desk.page.get_by_role("complementary")).to_contain_text(NASTY)
    await expect(desk.page.get_by_role("cell", name=NASTY)).to_be_visible()
    await desk.open(f"/?conversation={created.id}&q=%22%3E%3Cscript%3E")
    await expect(desk.page.get_by_role("heading", name=created.id)).to_contain_text(NASTY)
    await expect(desk.page.get_by_role("searchbox")).to_have_value('"><script>')
    assert "taken" not in (await desk.page.title()).replace(NASTY, "")


async def test_messages_and_requests_appear_as_they_come(desk: Desk) -> None:
    await desk.say("conv_a", "first")
    await desk.open("/?conversation=conv_a")
    bubbles = desk.page.locator("article .bubble")
    await expect(bubbles).to_have_text(["first"])
    await desk.say("conv_a", "second")
    await desk.say("conv_b", "elsewhere")
    await expect(bubbles).to_have_text(["second", "first"])
    await expect(desk.page.get_by_role("navigation").get_by_role("link", name="conv_b")).to_contain_text("elsewhere")
    await expect(desk.page.locator("tbody tr.good")).to_have_count(3)
    await expect(desk.page.locator("#figures")).to_contain_text("items stored3")


async def test_a_request_under_way_is_shown_until_it_ends(desk: Desk) -> None:
    desk.emulator.play(FaultScript((Rule(Silence(), name="nobody answers"),)))
    await desk.open()
    asked = asyncio.create_task(desk.client.conversations.retrieve("conv_a"))
    under_way = desk.page.locator("tbody tr.open")
    await expect(under_way).to_contain_text("retrieve conversation")
    await expect(under_way).to_contain_text("nobody answers")
    await expect(desk.page.locator("#figures")).to_contain_text("in flight1")
    asked.cancel()
    await expect(desk.page.locator("tbody tr.broken")).to_contain_text("silence")
    await expect(under_way).to_have_count(0)


async def test_a_fault_is_switched_on_and_off(desk: Desk) -> None:
    await desk.say("conv_a", "works")
    await desk.open("/?conversation=conv_a")
    down = desk.page.get_by_role("switch", name="down")
    await expect(down).to_have_attribute("aria-checked", "false")
    await down.click()
    await expect(down).to_have_attribute("aria-checked", "true")
    with pytest.raises(InternalServerError):
        await desk.say("conv_a", "does not")
    await expect(desk.page.locator("tbody tr.bad")).to_contain_text("503")
    await expect(desk.page.locator("tbody tr.bad")).to_contain_text("down")
    await expect(desk.page.locator("#faults")).to_contain_text("1 of 1")
    await desk.page.get_by_role("switch", name="down").click()
    await expect(down).to_have_attribute("aria-checked", "false")
    await desk.say("conv_a", "works again")
    # Switching has not led away from what was being read.
    await expect(desk.page.locator("article .bubble")).to_have_text(["works again", "works"])


async def test_a_rule_of_the_script_is_switched_off_and_on(desk: Desk) -> None:
    desk.emulator.play(FaultScript((Rule(Lock(), name="all locked"),)))
    await desk.open()
    switch = desk.page.get_by_role("switch", name="all locked")
    await expect(switch).to_have_attribute("aria-checked", "true")
    await switch.click()
    await expect(switch).to_have_attribute("aria-checked", "false")
    await desk.say("conv_a", "gets through")
    await switch.click()
    await expect(switch).to_have_attribute("aria-checked", "true")
    with pytest.raises(BadRequestError, match="operating on this conversation"):
        await desk.say("conv_a", "does not")


async def test_the_page_works_without_its_script(desk: Desk, browser: Browser) -> None:
    await desk.say("conv_a", "plain")
    async with await browser.new_context(java_script_enabled=False) as context:
        page = await context.new_page()
        await page.goto(f"{desk.emulator.origin}/?conversation=conv_a")
        await expect(page.locator("article .bubble")).to_have_text("plain")
        await page.get_by_role("switch", name="unpaid").click()
        await expect(page.get_by_role("switch", name="unpaid")).to_have_attribute("aria-checked", "true")
        await expect(page.locator("article .bubble")).to_have_text("plain")
    with pytest.raises(BadRequestError, match="good standing"):
        await desk.say("conv_a", "not paid")


@pytest.mark.parametrize("elsewhere", ["http://elsewhere.invalid/", "http://localhost:1/"])
async def test_another_sites_form_switches_nothing(desk: Desk, browser: Browser, elsewhere: str) -> None:
    form = f"""<form method="post" action="{desk.emulator.origin}/_emulator/switch">
      <input name="fault" value="everyday-2"><input name="on" value="1"><button>Win a prize</button></form>"""
    async with await browser.new_context() as context:
        page = await context.new_page()
        await page.route(elsewhere, lambda route: route.fulfill(body=form, content_type="text/html"))
        await page.goto(elsewhere)
        async with page.expect_response("**/_emulator/switch") as refused:
            await page.get_by_role("button").click()
        assert (await refused.value).status == 403
    assert not any(one.on for switches in desk.emulator.faults.switches() for one in switches)


@contextlib.asynccontextmanager
async def another_site(html: str) -> AsyncIterator[str]:
    """Serve one page, whatever is asked for, at the address given."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {len(html)}\r\nconnection: close"
        writer.write(f"{head}\r\n\r\n{html}".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1") as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def test_a_page_cannot_be_framed_by_another_site(desk: Desk, browser: Browser) -> None:
    frames = "".join(f'<iframe src="{desk.emulator.origin}{path}"></iframe>' for path in ("/openapi.json", "/"))
    async with another_site(frames) as elsewhere, await browser.new_context() as context:
        page = await context.new_page()
        await page.goto(elsewhere)
        _, description, itself = page.frames
        assert description.url == f"{desk.emulator.origin}/openapi.json"
        assert itself.url.startswith("chrome-error:")


async def test_long_conversations_and_lists_are_read_page_by_page(desk: Desk) -> None:
    fill(desk.emulator, "conv_long", (f"message {number}" for number in range(2 * ITEMS + 3)))
    for number in range(CONVERSATIONS + 2):
        fill(desk.emulator, f"conv_{number}", [])
    await desk.open("/?conversation=conv_long")
    bubbles = desk.page.locator("article .bubble")
    await expect(bubbles).to_have_count(ITEMS)
    await expect(bubbles.first).to_have_text(f"message {2 * ITEMS + 2}")
    await desk.page.get_by_role("link", name="older ↑").click()
    await expect(bubbles.first).to_have_text(f"message {ITEMS + 2}")
    await desk.page.get_by_role("link", name="older ↑").click()
    await expect(bubbles).to_have_text(["message 2", "message 1", "message 0"])
    await desk.page.get_by_role("link", name="newest ↓").click()
    await expect(bubbles).to_have_count(ITEMS)

    listed = desk.page.get_by_role("navigation").locator(".id")
    await expect(listed).to_have_count(CONVERSATIONS)
    await desk.page.get_by_role("link", name="older →").click()
    await expect(listed).to_have_text(["conv_1", "conv_0", "conv_long"])
    await desk.page.get_by_role("link", name="← newer").click()
    await expect(listed.first).to_have_text(f"conv_{CONVERSATIONS + 1}")
    await desk.page.get_by_role("searchbox").fill("LONG")
    await desk.page.get_by_role("searchbox").press("Enter")
    await expect(listed).to_have_text(["conv_long"])


async def test_it_fits_a_telephone(desk: Desk) -> None:
    fill(desk.emulator, "conv_" + "x" * 120, ["w" * 400])
    await desk.page.set_viewport_size({"width": 390, "height": 844})
    await desk.open(f"/?conversation=conv_{'x' * 120}")
    await expect(desk.page.locator("article")).to_be_visible()
    assert await desk.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    cut_off = "[...document.querySelectorAll('p, h2')].filter((text) => text.scrollWidth > text.clientWidth)"
    assert await desk.page.evaluate(f"{cut_off}.map((text) => text.outerHTML)") == []


async def test_an_emulator_that_is_gone_is_said_to_be(desk: Desk) -> None:
    await desk.open()
    await desk.emulator.stop()
    await expect(desk.page.locator("body.lost")).to_be_visible()
    desk.complaints.clear()  # the browser's own: the connection was refused
