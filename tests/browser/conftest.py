"""One browser for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browsing import LAPTOP, chromium, shape
from drilling import Drill, drilling
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


@pytest.fixture(scope="session", autouse=True)
def drill(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill | None]:
    """A run that goes on, for the tests that ask for it. It begins before the first test of any kind, so that its
    start, half a minute, passes while the others use the browser."""
    if not any(item.path.name == "test_page_underway.py" for item in request.session.items):
        yield None
        return
    with drilling(tmp_path_factory.mktemp("drill")) as begun:
        yield begun
