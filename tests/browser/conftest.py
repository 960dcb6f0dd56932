"""One browser for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browsing import LAPTOP, chromium, shape
from selenium.webdriver.chrome.webdriver import WebDriver

from penstock.services.rundir import RunDir


@pytest.fixture(scope="session")
def one_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(one_browser: WebDriver) -> WebDriver:
    """The browser, as a laptop in daylight, with nothing that an earlier test has left."""
    shape(one_browser, LAPTOP)
    one_browser.get("about:blank")
    one_browser.execute_cdp_cmd("Network.clearBrowserCookies", {})
    one_browser.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": "*", "storageTypes": "local_storage"})
    one_browser.get_log("browser")
    return one_browser


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run directory as a run of 600 steps leaves it, without having been one."""
    from benchmarks.page_run import write

    return write(tmp_path_factory.mktemp("runs") / "carry-20261126-1", 600)
