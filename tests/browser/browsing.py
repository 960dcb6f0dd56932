"""A headless browser, and a server of the page, for tests that use it as a person would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "build" / "screenshots"
"""Pictures that the tests leave for people."""
LAPTOP, SMALL = (1440, 900), (1280, 720)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
_NAMES = ("chromium", "chromium-browser", "google-chrome")

PENSTOCK = (sys.executable, "-c", "from penstock.cli.main import run; run()")
"""The command, whatever is on the path."""

T = TypeVar("T")


@contextmanager
def chromium(profile: Path) -> Iterator[WebDriver]:
    """A browser with a fresh profile. Its absence is an error and no reason to skip."""
    binary = next((found for name in _NAMES if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    assert binary and driver, "Chromium and its driver are missing; on Debian: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def shape(browser: WebDriver, size: tuple[int, int], scheme: str = "light") -> None:
    """A window of this size, on a system that prefers light or dark."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )


def picture(browser: WebDriver, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))


def until(what: str, true: Callable[[], T], deadline: float = 10.0, pause: float = 0.05) -> T:
    """The first result that counts as true."""
    ends = time.monotonic() + deadline
    while not (found := true()):
        assert time.monotonic() < ends, f"waited {deadline:g} s until {what}"
        time.sleep(pause)
    return found


def complaints(browser: WebDriver) -> list[str]:
    """What the browser has complained about since the last call: errors of scripts, and of the page's own policy."""
    said: list[dict[str, Any]] = browser.get_log("browser")
    return [f"{line['level']} {line['message']}" for line in said if line["level"] in ("SEVERE", "WARNING")]


@contextmanager
def served(*arguments: str, environment: dict[str, str] | None = None) -> Iterator[str]:
    """`penstock dashboard …` on a free port, by its address."""
    command = [*PENSTOCK, "dashboard", "--port", "0", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | (environment or {})
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().rsplit(" ", 1)[1].strip()
        finally:
            process.terminate()
            process.wait(10)
