"""A real browser: the system's Chromium, or one that is installed on first use."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")

OPTIONS = [
    "--no-sandbox",  # containers have none
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--use-fake-device-for-media-stream",  # a camera that shows a test picture
    "--use-fake-ui-for-media-stream",
]


@contextlib.contextmanager
def running_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_find(playwright), args=OPTIONS)
        with contextlib.closing(browser):
            yield browser


def _find(playwright: Playwright) -> str:
    paths = [path for path in map(shutil.which, NAMES) if path]
    if paths:
        return paths[0]
    if not Path(playwright.chromium.executable_path).exists():
        installed = subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"])
        if installed.returncode:
            apt = ["apt-get", "-y", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"]
            subprocess.run([*apt, "update"], check=True)
            subprocess.run([*apt, "install", "--no-install-recommends", "chromium"], check=True)
            return _find(playwright)
    return playwright.chromium.executable_path
