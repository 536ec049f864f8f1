"""Makes the pictures of the documentation: `make screenshots`."""

from __future__ import annotations

import asyncio
import fcntl
import io
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

from browser import running_browser
from openai import AsyncOpenAI, OpenAIError
from rich.console import Console
from rich.text import Text

from service.emulator.faults import FaultScript, LognormalLatency, Match, RateThrottle, Rule, Silence
from service.emulator.server import EmulatorServer

PICTURES = Path(__file__).parents[1] / "docs" / "images"

COLUMNS, LINES = 82, 50
REDRAWN = re.compile(r"\r?\x1b\[2K(?:\x1b\[1A\x1b\[2K)*")
"""What a live view writes before it draws itself anew."""

TALK = (
    ("system", "You are the support desk of a parcel service. Be brief and kind."),
    ("user", "Where is my parcel? It was to be here yesterday."),
    ("assistant", "I am sorry to hear that. What is its tracking number?"),
    ("user", "JD0146 0000 2718 28"),
    (
        "assistant",
        "Thank you. It left the depot in Leipzig this morning at 07:40\nand will be with you today before 16:00.",
    ),
    ("user", "Wonderful, thank you!"),
)
QUESTIONS = (
    "Can I change the address?",
    "When do you open on Saturday?",
    "The box arrived damaged.",
    "I would like an invoice, please.",
    "Do you deliver to Norway?",
)
SCRIPT = FaultScript(
    (
        Rule(LognormalLatency(0.04), name="latency"),
        Rule(Silence(), Match(conversation="conv_silent"), name="a conversation nobody answers"),
        Rule(
            RateThrottle(requests_per_second=100, burst=20),
            Match(operations=("create_items",)),
            name="100 requests a second",
        ),
    ),
    lock_busy_conversations=True,
)


def in_a_terminal(command: list[str]) -> str:
    """All that a command writes to a terminal."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as running:
        os.close(theirs)
        written = bytearray()
        try:
            while part := os.read(ours, 1 << 16):
                written += part
        except OSError:  # the other end of a terminal that is closed
            pass
        os.close(ours)
        assert running.wait() == 0, written.decode()
    return written.decode()


async def demo() -> None:
    """What a terminal shows when `convoy demo` has ended: its view as last drawn, and the summary."""
    shown = REDRAWN.split(in_a_terminal([sys.executable, "-m", "service", "demo"]))[-1].replace("\r\n", "\n")
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(f"$ convoy demo\n{shown.rstrip()}"))
    async with running_browser() as browser:
        page = await browser.new_page(viewport={"width": 1100, "height": 900}, device_scale_factor=2)
        await page.set_content(console.export_svg(title="convoy demo"))
        await page.locator("svg").screenshot(path=PICTURES / "demo.png", omit_background=True)


async def emulator_page() -> None:
    async with (
        EmulatorServer(faults=SCRIPT, create_on_write=True, port=8090) as emulator,
        AsyncOpenAI(base_url=emulator.base_url, api_key="sk-any", max_retries=0) as client,
    ):
        talk = await client.conversations.create(metadata={"topic": "parcels"})
        for role, text in TALK:
            await say(client, talk.id, text, role)
        visitors = [f"conv_{0x9E3779B1 * number % 2**32:08x}" for number in range(1, 24)]
        for wave in range(3):
            await asyncio.gather(
                *(
                    say(client, visitor, QUESTIONS[(index + wave) % len(QUESTIONS)])
                    for index, visitor in enumerate(visitors)
                )
            )
        silent = asyncio.create_task(say(client, "conv_silent", "Is anybody there?"))
        async with running_browser() as browser:
            page = await browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light")
            await page.goto(f"{emulator.origin}/?conversation={talk.id}")
            await page.get_by_role("switch", name="moderation").click()
            await say(client, talk.id, "This word is forbidden.")
            await say(client, visitors[4], "Good morning!")
            await page.get_by_role("cell", name="moderation").wait_for()
            await page.screenshot(path=PICTURES / "emulator.png")
        silent.cancel()


async def say(client: AsyncOpenAI, conversation_id: str, text: str, role: str = "user") -> None:
    """Add one message; what the faults refuse is what the picture is to show."""
    item = {"type": "message", "role": role, "content": text}
    try:
        await client.conversations.items.create(conversation_id, items=[item])  # type: ignore[list-item]
    except OpenAIError as refused:
        print(refused)  # noqa: T201 - for whoever makes the picture


async def pictures() -> None:
    await demo()
    await emulator_page()


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    asyncio.run(pictures())
