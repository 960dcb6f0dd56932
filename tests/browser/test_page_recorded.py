"""The page of a run that is over, in a real browser: it loads whole, fits the screen, and is usable by keyboard."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import LAPTOP, SMALL, complaints, picture, served, shape, until
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from penstock.services.rundir import RunDir

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def address(recorded: RunDir) -> Iterator[str]:
    with served(str(recorded.path)) as found:
        yield found


def load(browser: WebDriver, address: str) -> None:
    """Until the curves are drawn."""
    browser.get(address)
    until("the page has painted", lambda: painted(browser) is not None)
    until("every chart is there", lambda: len(browser.find_elements(By.CSS_SELECTOR, ".plot canvas")) == 12)


def painted(browser: WebDriver) -> str | None:
    """The newest step that is drawn."""
    found: str | None = browser.execute_script("return document.body.dataset.painted")
    return found


def text(browser: WebDriver, element: str) -> str:
    return str(browser.execute_script("return document.getElementById(arguments[0])?.textContent", element))


def press(browser: WebDriver, key: str) -> None:
    browser.switch_to.active_element.send_keys(key)


# The share of a canvas that something is drawn on.
INK = """
const canvas = arguments[0], data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
let drawn = 0;
for (let at = 3; at < data.length; at += 4) if (data[at]) drawn++;
return drawn / (data.length / 4);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, SMALL], ids=["1440x900", "1280x720"])
def test_everything_is_drawn_on_one_screen_and_nothing_complains(
    browser: WebDriver, address: str, size: tuple[int, int], scheme: str
) -> None:
    shape(browser, size, scheme)
    load(browser, address)
    assert browser.execute_script("return document.documentElement.dataset.bsTheme") == scheme
    for canvas in browser.find_elements(By.CSS_SELECTOR, ".overview canvas"):
        assert browser.execute_script(INK, canvas) > 0.005
    for where in ("document.documentElement", "document.getElementById('views')"):
        wanted, there = browser.execute_script(f"const e = {where}; return [e.scrollHeight, e.clientHeight]")
        assert wanted <= there
        wide, room = browser.execute_script(f"const e = {where}; return [e.scrollWidth, e.clientWidth]")
        assert wide <= room
    picture(browser, f"overview-{size[0]}x{size[1]}-{scheme}")
    assert complaints(browser) == []


def test_it_says_where_the_run_stands(browser: WebDriver, address: str) -> None:
    load(browser, address)
    assert text(browser, "name") == "carry-20261126-1"
    assert "step 600 of 1,200" in text(browser, "where")
    assert text(browser, "phase").startswith("died while training")
    questions = [found.text.split("\n")[0] for found in browser.find_elements(By.CSS_SELECTOR, ".question h2")]
    assert [question.lower() for question in questions] == [
        "is it learning?",
        "is it safe?",
        "is it fresh?",
        "is it busy?",
        "who is alive?",
    ]
    assert "killed by SIGKILL" in browser.find_element(By.CSS_SELECTOR, ".deaths").text


def test_a_run_that_is_over_cannot_be_steered_and_the_buttons_say_why(browser: WebDriver, address: str) -> None:
    load(browser, address)
    buttons = browser.find_elements(By.CSS_SELECTOR, "#steer button")
    assert len(buttons) == 7
    assert not any(button.is_enabled() for button in buttons)
    assert all("the run has ended" in (button.get_attribute("title") or "") for button in buttons)


def test_tabs_events_help_and_theme_have_keys(browser: WebDriver, address: str) -> None:
    load(browser, address)
    press(browser, "4")
    until("all metrics are listed", lambda: len(browser.find_elements(By.CSS_SELECTOR, ".metric-grid .card")) == 24)
    press(browser, "1")
    assert browser.find_element(By.ID, "overview").is_displayed()
    press(browser, "e")
    events = browser.find_element(By.CSS_SELECTOR, "#log .events")
    assert "kl.coefficient 0.02 → 0.03" in events.text
    press(browser, Keys.ESCAPE)
    assert not browser.find_element(By.ID, "log").is_displayed()
    press(browser, "?")
    assert browser.find_element(By.ID, "help").is_displayed()
    press(browser, Keys.ESCAPE)
    before = browser.execute_script("return document.documentElement.dataset.bsTheme")
    press(browser, "t")
    assert browser.execute_script("return document.documentElement.dataset.bsTheme") != before
    press(browser, "t")


def test_every_control_can_be_reached_and_has_a_name(browser: WebDriver, address: str) -> None:
    load(browser, address)
    nameless = browser.execute_script("""
        return [...document.querySelectorAll("button, input, select, [tabindex='0'], dialog")].filter((element) =>
            !(element.getAttribute("aria-label") || element.getAttribute("aria-labelledby") ||
              element.textContent.trim() || element.labels?.length || element.querySelector("table, ul")))
          .map((element) => element.outerHTML)""")
    assert nameless == []
    reached = set()
    for _ in range(40):
        press(browser, Keys.TAB)
        reached.add(browser.execute_script("return document.activeElement.textContent.trim().slice(0, 30)"))
    assert {"Reward", "KL to reference", "Tokens per second"} <= reached


def test_the_arrows_move_the_cursor_of_all_charts_step_by_step(browser: WebDriver, address: str) -> None:
    load(browser, address)
    chart = browser.find_element(By.CSS_SELECTOR, "[aria-label^='Entropy']")
    chart.send_keys(Keys.HOME)
    until("the first step is told", lambda: text(browser, "readout").startswith("step 0–1 "))
    chart.send_keys(Keys.ARROW_RIGHT)
    chart.send_keys(Keys.ARROW_RIGHT)
    until("two steps further", lambda: text(browser, "readout").startswith("step 4–5 "))
    chart.send_keys(Keys.ENTER)
    assert "large" in (chart.get_attribute("class") or "")
    chart.send_keys(Keys.ESCAPE)
    assert "large" not in (chart.get_attribute("class") or "")


def test_a_guard_that_is_exhausted_is_no_firing(browser: WebDriver, address: str) -> None:
    load(browser, address)
    chart = browser.find_element(By.CSS_SELECTOR, "[aria-label^='Entropy']")
    chart.send_keys(Keys.END, *[Keys.PAGE_UP] * 4, *[Keys.ARROW_LEFT] * 9)
    until("it is told", lambda: "· guard, exhausted: guard kl: " in text(browser, "readout"))
    chart.send_keys(Keys.PAGE_UP, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    until("a firing is told as one", lambda: "· guard: kl/reference > 0.1" in text(browser, "readout"))


@pytest.mark.parametrize(
    ("splits", "marks"),
    [
        ([0, 0.5, 1], ["0", "0.5", "1"]),
        ([2.619, 2.6192, 2.6194], ["2.619", "2.6192", "2.6194"]),
        ([0, 5e-5, 1e-4], ["0", "5e-5", "1.0e-4"]),
        ([0.0002, 0.00025, 0.0003], ["2.0e-4", "2.5e-4", "3.0e-4"]),
        ([10_000, 10_500, 11_000], ["10k", "10.5k", "11k"]),
        ([0, 2_000_000, 4_000_000], ["0", "2M", "4M"]),
        ([-0.25, 0, 0.25], ["-0.25", "0", "0.25"]),
    ],
)
def test_the_marks_of_an_axis_can_be_told_apart(
    browser: WebDriver, address: str, splits: list[float], marks: list[str]
) -> None:
    browser.get(address)
    found = browser.execute_async_script(
        "import('/static/charts.js').then((charts) => arguments[1](charts.axisValues(arguments[0])))", splits
    )
    assert found == marks


def test_a_range_of_steps_is_asked_for_anew(browser: WebDriver, address: str) -> None:
    load(browser, address)
    over = browser.find_element(By.CSS_SELECTOR, "[aria-label^='Entropy'] .u-over")
    ActionChains(browser).move_to_element(over).click_and_hold().move_by_offset(30, 0).release().perform()
    button = until("the range is told", lambda: browser.find_elements(By.CSS_SELECTOR, "#range button"))[0]
    first, last = (int(word) for word in re.findall(r"\d+", button.text))
    assert 250 < first < last < 450
    until("only these are drawn", lambda: first <= int(painted(browser) or 0) <= last)
    press(browser, Keys.ESCAPE)
    until("all steps are back", lambda: not browser.find_elements(By.CSS_SELECTOR, "#range button"))


def test_another_run_at_the_same_address_leaves_nothing_of_the_one_before(
    browser: WebDriver, recorded: RunDir, tmp_path: Path
) -> None:
    other = RunDir.create(tmp_path, "other", "name: other\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with served(str(recorded.path), "--port", port) as address:
        load(browser, address)
    with served(str(other.path), "--port", port):
        until("the other one is shown", lambda: text(browser, "name") == other.path.name, 20)
        until("its charts are empty", lambda: not browser.find_elements(By.CSS_SELECTOR, ".plot canvas"))
        assert text(browser, "phase") == "never started"
        assert not browser.find_element(By.ID, "track").is_displayed()


def test_signing_in_with_a_wrong_and_with_the_right_token(browser: WebDriver, recorded: RunDir) -> None:
    token = "correct-horse-battery-staple"
    with served(str(recorded.path), environment={"PENSTOCK_DASHBOARD_TOKEN": token}) as address:
        browser.get(address)
        field = browser.find_element(By.ID, "token")
        field.send_keys("a guess", Keys.ENTER)
        wrong = browser.find_element(By.ID, "wrong")
        until("it is told", wrong.is_displayed)
        assert "this is not the token" in wrong.text
        picture(browser, "sign-in")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(token, Keys.ENTER)
        until("the page opens", lambda: browser.find_elements(By.CSS_SELECTOR, ".plot canvas"))
        assert token not in json.dumps(browser.execute_script("return document.cookie"))
