"""A headless Chromium for tests of pages: nothing but the page itself can be reached, and whatever it complains of is kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Opened:
    """A page, with the errors of its console and the addresses that it asked for and was denied."""

    page: Page
    errors: list[str] = field(default_factory=list)
    denied: list[str] = field(default_factory=list)

    def fresh(self) -> None:
        """Nothing has gone wrong so far."""
        assert self.errors == []
        assert self.denied == []


class Chromium:
    """One browser process; every page has a profile of its own."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser

    @contextmanager
    def open(
        self, address: str, width: int = 1280, height: int = 900, scheme: str = "light", **more: Any
    ) -> Iterator[Opened]:
        """
        Opens `address` (file:// or http://127.0.0.1:...); a request to any other place is denied.

        scheme: light or dark. more: further settings of the browser's context, such as reduced_motion.
        """
        own = address if address.startswith("file:") else "/".join(address.split("/")[:3]) + "/"
        context = self.browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **more)
        opened = Opened(context.new_page())

        def only_own(route: Any) -> None:
            url = route.request.url
            if url.startswith((own, "data:", "blob:")):
                route.continue_()
            else:
                opened.denied.append(url)
                route.abort()

        context.route("**/*", only_own)
        opened.page.on("console", lambda told: opened.errors.append(told.text) if told.type == "error" else None)
        opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
        try:
            opened.page.goto(address)
            yield opened
        finally:
            context.close()


@contextmanager
def chromium() -> Iterator[Chromium]:
    """Debian's Chromium, driven by Playwright, which fetches no browser of its own. Where there is none the test is skipped."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield Chromium(browser)
        finally:
            browser.close()
