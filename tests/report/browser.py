"""A page in a real browser that may read its own file and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the system's Chromium, or skip."""
    if CHROMIUM is None:
        pytest.skip("needs a Chromium on the path (Debian, Ubuntu: apt install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@contextmanager
def page_of(browser: Any, file: Path, *, address: str = "", width: int = 1200, dark: bool = False) -> Iterator[Any]:
    """Open a file; errors on the console and requests for anything else fail the test."""
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(10_000)
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    own = file.as_uri()

    def only_own(route: Any) -> None:
        if route.request.url.split("#")[0] == own:
            route.continue_()
        else:
            troubles.append(f"request: {route.request.url}")
            route.abort()

    page.route("**/*", only_own)
    page.goto(own + address)
    yield page
    context.close()
    assert troubles == []
