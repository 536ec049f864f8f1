"""A real browser, without a window: Chromium where the machine has one, driven over its own protocol.

`.ci/install-browser` brings one on Debian; `CONVOY_TEST_BROWSER` names another.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

from playwright.async_api import async_playwright

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class BrowserUnavailableError(Exception):
    """There is no browser; the message says how to get one."""


def find_browser() -> str:
    named = os.environ.get("CONVOY_TEST_BROWSER")
    found = named or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise BrowserUnavailableError("no Chromium: run .ci/install-browser, or name one in CONVOY_TEST_BROWSER")
    return found


@contextlib.asynccontextmanager
async def running_browser() -> AsyncIterator[Browser]:
    # Chromium refuses its sandbox to root, which is who runs in a container.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_browser(), args=arguments)
        try:
            yield browser
        finally:
            await browser.close()
