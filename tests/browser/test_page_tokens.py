"""The token inspector and the comparison of runs, as people use them: by pointer and keyboard, in light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compared
import inspected
import pytest
from browsing import LAPTOP, complaints, picture, served, shape, until
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from penstock.services.versions import Version

pytestmark = pytest.mark.engine
LONG = 20_000
NONE = "rgba(0, 0, 0, 0)"
ORANGE, BLUE = "213, 94, 0", "0, 114, 178"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of a run with answers of steps 2 to 12, of which one is archived and two are long."""
    run = inspected.run_dir(tmp_path_factory.mktemp("inspected"))
    run.write_samples(Version(0, 2), [inspected.long_answer(LONG, LONG), inspected.long_answer(LONG, 600)])
    inspected.archive_step(run, Version(0, 4))
    with served(str(run.path)) as found:
        yield f"{found}#inspector"


@pytest.fixture
def page(browser: WebDriver, address: str) -> Iterator[WebDriver]:
    """The inspector with the newest step's first answer; nothing in it is refused by the page's own policy."""
    open_page(browser, address)
    yield browser
    assert [said for said in complaints(browser) if "404" not in said] == []


def open_page(browser: WebDriver, address: str) -> None:
    browser.get(address)
    until("the newest step's first answer is shown", lambda: len(tokens(browser)) == 9)


def tokens(browser: WebDriver) -> list[str]:
    """The texts of all tokens that are in the page."""
    found: list[str] = browser.execute_script("return [...document.querySelectorAll('.tk')].map((t) => t.textContent)")
    return found


def numbers(browser: WebDriver) -> dict[str, str]:
    """What stands beside the tokens."""
    found: dict[str, str] = browser.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('.in-card dt')]"
        ".map((term) => [term.textContent, term.nextElementSibling.textContent]))"
    )
    return found


def at(browser: WebDriver, position: str) -> bool:
    return numbers(browser).get("position", "").startswith(f"{position} of ")


def colour(browser: WebDriver, place: int) -> str:
    return browser.find_element(By.ID, f"in-tk-{place}").value_of_css_property("background-color")


def colour_by(browser: WebDriver, mode: str) -> None:
    browser.find_element(By.CSS_SELECTOR, f".in-modes [value={mode}]").click()


def go_to(browser: WebDriver, step: int) -> Any:
    box = browser.find_element(By.CLASS_NAME, "in-step")
    box.clear()
    box.send_keys(str(step), Keys.ENTER)
    return box


def problem(browser: WebDriver) -> str:
    return browser.find_element(By.CLASS_NAME, "in-problem").text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_numbers_of_the_token_under_the_pointer_are_shown(browser: WebDriver, address: str, scheme: str) -> None:
    shape(browser, LAPTOP, scheme)
    open_page(browser, address)
    ActionChains(browser).move_to_element(browser.find_element(By.ID, "in-tk-2")).perform()
    found = until("numbers are shown", lambda: numbers(browser))
    assert found["token"] == " <b>bold</b>"
    assert (found["id"], found["position"]) == ("102", "2 of 9")
    assert (found["sampled by"], found["lag"]) == ("version 0.9", "2 steps")
    assert (found["log μ"], found["log π"], found["log π/μ"]) == ("−0.5", "−0.7", "−0.2")
    assert found["π/μ"] == "0.8187"
    assert found["advantage"] == "+1"
    assert found["log π_ref"] == "not recorded"
    assert found["in the loss"] == "yes: weight cut at its bound"
    picture(browser, f"tokens-{scheme}")


def test_what_reads_like_html_is_text(page: WebDriver) -> None:
    assert tokens(page)[2] == " <b>bold</b>"
    assert page.find_elements(By.CSS_SELECTOR, ".inspector b, .in-row i, .in-prompt i") == []
    assert page.find_element(By.CLASS_NAME, "in-row-prompt").text == "What is <i>6 × 7</i>?"


def test_the_keyboard_moves_over_tokens_and_from_swap_to_swap(page: WebDriver) -> None:
    host = page.find_element(By.CLASS_NAME, "in-tokens")
    host.send_keys(Keys.ARROW_RIGHT)
    until("the second token", lambda: at(page, "1"))
    assert numbers(page)["in the loss"] == "no: left out by correction or rejection"
    host.send_keys("s")
    until("the swap", lambda: at(page, "4"))
    assert numbers(page)["sampled by"] == "version 0.11"
    assert numbers(page)["lag"] == "0 steps, cache in part by older weights"
    assert host.get_attribute("aria-activedescendant") == "in-tk-4"
    host.send_keys(Keys.END)
    until("the last token", lambda: numbers(page).get("token") == "[eos]")
    host.send_keys(Keys.ARROW_UP)
    until("the line above", lambda: int(numbers(page)["position"].split()[0]) < 4)
    host.send_keys(Keys.HOME)
    until("the first token", lambda: at(page, "0"))
    assert numbers(page)["in the loss"].startswith("no: unscored")


def test_colours_follow_log_ratio_version_and_advantage(page: WebDriver) -> None:
    assert colour(page, 4) == NONE  # sampler and learner agree
    assert ORANGE in colour(page, 1)
    assert BLUE in colour(page, 7)
    colour_by(page, "version")
    assert colour(page, 1) == colour(page, 2) != colour(page, 7) == colour(page, 8)
    assert [chip.text for chip in page.find_elements(By.CLASS_NAME, "in-chip")] == ["0.9 · lag 2", "0.11 · lag 0"]
    colour_by(page, "advantages")
    assert BLUE in colour(page, 1)
    assert ORANGE in colour(page, 7)
    assert colour(page, 0) == NONE  # it is not trained on


def test_the_colours_change_with_the_theme(page: WebDriver) -> None:
    before = colour(page, 1)
    page.find_element(By.ID, "theme").click()
    until("the colours are those of the other theme", lambda: colour(page, 1) != before)


def test_a_weight_swap_is_drawn_where_it_happened(page: WebDriver) -> None:
    (swap,) = page.find_elements(By.CSS_SELECTOR, ".in-block .in-swap")
    assert swap.text == "0.11"
    assert page.execute_script("return arguments[0].nextElementSibling.id", swap) == "in-tk-4"


def test_steps_are_walked_and_a_wrong_one_names_the_nearest(page: WebDriver) -> None:
    page.find_element(By.CSS_SELECTOR, "[aria-label='earlier step']").click()
    box = page.find_element(By.CLASS_NAME, "in-step")
    until("the step before", lambda: box.get_property("value") == "8" and tokens(page))
    go_to(page, 9)
    until("a problem is told", lambda: "the nearest is 8" in problem(page))
    page.find_element(By.XPATH, "//button[text()='newest']").click()
    until("the newest step", lambda: box.get_property("value") == "12" and tokens(page))
    assert problem(page) == ""


def test_an_answer_that_is_text_alone_says_so_and_the_list_goes_on_working(page: WebDriver) -> None:
    first, second = page.find_elements(By.CLASS_NAME, "in-row")
    second.click()
    until("why", lambda: "recording.sample_tokens" in problem(page))
    assert tokens(page) == []
    second.send_keys(Keys.ARROW_UP)
    until("the first answer", lambda: len(tokens(page)) == 9)
    assert first.get_attribute("aria-selected") == "true"


def test_an_archived_step_is_looked_at_in_the_same_way(page: WebDriver) -> None:
    page.find_element(By.CSS_SELECTOR, ".in-bar option[value=archive]").click()
    until("the archive has no step 12", lambda: "the nearest is 4" in problem(page))
    go_to(page, 4)
    until("its tokens", lambda: tokens(page) == ["⟨5⟩", "⟨6⟩"])
    assert BLUE in colour(page, 1)


def test_of_a_long_answer_only_what_is_near_is_in_the_page(page: WebDriver) -> None:
    go_to(page, 2)
    until("a long answer", lambda: len(tokens(page)) > 100)
    assert len(tokens(page)) < 4_000
    page.find_element(By.CLASS_NAME, "in-tokens").send_keys(Keys.END)
    until("the last token", lambda: at(page, "19,999"))
    until("the beginning is let go", lambda: not page.find_elements(By.ID, "in-tk-300"))
    assert len(tokens(page)) < 4_000
    seen = "const [box, room] = [arguments[0], arguments[1]].map((e) => e.getBoundingClientRect());"
    seen += "return box.top >= room.top && box.bottom <= room.bottom + 1"  # scrolling stops at whole pixels
    last, room = page.find_element(By.ID, f"in-tk-{LONG - 1}"), page.find_element(By.ID, "views")
    until("the last token stays in sight", lambda: page.execute_script(seen, last, room))
    picture(page, "tokens-long")


def test_tokens_that_are_not_recorded_are_told_and_stepped_over(page: WebDriver) -> None:
    go_to(page, 2)
    until("a long answer", lambda: len(tokens(page)) > 100)
    page.find_elements(By.CLASS_NAME, "in-row")[1].click()
    gap = until("the gap", lambda: page.find_elements(By.CLASS_NAME, "in-gap"))[0]
    assert "19,400 tokens not recorded" in gap.text
    host = page.find_element(By.CLASS_NAME, "in-tokens")
    host.send_keys(Keys.END)
    until("the last token", lambda: at(page, "19,999"))
    host.send_keys(Keys.HOME)
    until("the first token", lambda: at(page, "0"))
    for position in ("100", "200", "19,700"):
        host.send_keys(Keys.PAGE_DOWN)
        until(f"token {position}", lambda position=position: at(page, position))


def test_two_runs_are_drawn_and_their_differences_listed(browser: WebDriver, tmp_path: Path) -> None:
    first = compared.end(compared.run_of(tmp_path, "carry", 80))
    compared.run_of(tmp_path, "carry", 60, rate=3e-4, max_lag=0, reward=0.02)
    drawn = "return [...document.querySelectorAll('.co-canvas [role=img]')].map((plot) => plot.ariaLabel)"
    with served(str(first.path)) as address:
        browser.get(f"{address}#compare")
        until("four plots", lambda: len(browser.find_elements(By.CSS_SELECTOR, ".co-canvas canvas")) == 4)
        assert browser.execute_script(drawn)[:2] == [
            "eval/sampled/accuracy over train steps",
            "reward/mean over train steps",
        ]
        text = browser.find_element(By.CLASS_NAME, "co-tables").text
        assert "learner.learning_rate 0.0001 0.0003" in text
        assert "tokens trained on 800 600 −25 %" in text
        picture(browser, "compare")
        browser.find_element(By.CSS_SELECTOR, "[aria-label='curves over'] [value=seconds]").click()
        until("drawn anew", lambda: browser.execute_script(drawn)[3].endswith(" over seconds of training"))
        browser.find_element(By.CSS_SELECTOR, "[aria-label='metric of plot 1'] [value='off_policy/max']").click()
        until("another metric", lambda: browser.execute_script(drawn)[0].startswith("off_policy/max over"))
    assert complaints(browser) == []
