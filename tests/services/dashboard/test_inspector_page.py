"""The inspector and the comparison in headless Chromium, as people use them: pointer, keyboard, light and dark."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compared
import harness
import inspected
import pytest
from harness import until
from selenium.webdriver import ActionChains, Keys

from penstock.services.dashboard.compare import compare_router
from penstock.services.dashboard.inspector import inspector_router
from penstock.services.versions import Version

pytestmark = pytest.mark.engine
LONG = 20_000


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with harness.browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def inspector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    run = inspected.run_dir(tmp_path_factory.mktemp("inspected"))
    run.write_samples(Version(0, 2), [inspected.long_answer(LONG, LONG), inspected.long_answer(LONG, 600)])
    inspected.archive_step(run, Version(0, 4))
    with harness.page_of("inspector", inspector_router(run)) as address:
        yield address


def opened(driver: Any, address: str, theme: str = "light", **place: Any) -> None:
    """The page with the tokens of an answer on it."""
    driver.get(f"{address}?theme={theme}")
    until(lambda: tokens(driver), "the newest step's first answer is shown")
    if place:
        driver.execute_script("window.mounted.show(arguments[0])", place)
        until(lambda: driver.find_element("class name", "in-step").get_property("value") == str(place["step"]), "step")
        until(lambda: tokens(driver), "its tokens are shown")


def tokens(driver: Any) -> list[Any]:
    found: list[Any] = driver.find_elements("class name", "tk")
    return found


def numbers(driver: Any) -> dict[str, str]:
    """What stands beside the tokens."""
    card = driver.find_element("class name", "in-card")
    terms, values = (card.find_elements("tag name", tag) for tag in ("dt", "dd"))
    return {term.text: value.text for term, value in zip(terms, values, strict=True)}


def colour(driver: Any, at: int) -> str:
    text: str = driver.find_element("id", f"in-tk-{at}").value_of_css_property("background-color")
    return text


def picture(driver: Any, name: str) -> None:
    """An artefact of the test run, where one is asked for."""
    if folder := os.environ.get("PENSTOCK_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        driver.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture(autouse=True)
def nothing_is_refused_by_the_policy(driver: Any) -> Iterator[None]:
    yield
    assert driver.execute_script("return window.refused") == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_numbers_of_the_token_under_the_pointer_are_shown(driver: Any, inspector: str, theme: str) -> None:
    opened(driver, inspector, theme)
    ActionChains(driver).move_to_element(driver.find_element("id", "in-tk-2")).perform()
    found = until(lambda: numbers(driver), "numbers are shown")
    # What reads like HTML is text: of a token as of a prompt.
    assert found["token"] == " <b>bold</b>".strip()
    assert (
        driver.execute_script("return document.querySelectorAll('.inspector b, .inspector i:not(.in-scale i)').length")
        == 0
    )
    assert (found["id"], found["position"]) == ("102", "2 of 9")
    assert (found["sampled by"], found["lag"]) == ("version 0.9", "2 steps")
    assert (found["log μ"], found["log π"], found["log π/μ"]) == ("−0.5", "−0.7", "−0.2")
    assert found["π/μ"] == "0.8187"
    assert found["advantage"] == "+1"
    assert found["log π_ref"] == "not recorded"
    assert found["in the loss"] == "yes: weight cut at its bound"
    picture(driver, f"inspector-{theme}")


def test_the_keyboard_moves_over_tokens_and_from_swap_to_swap(driver: Any, inspector: str) -> None:
    opened(driver, inspector)
    host = driver.find_element("class name", "in-tokens")
    host.send_keys(Keys.ARROW_RIGHT)
    until(lambda: numbers(driver).get("position") == "1 of 9", "the second token")
    assert numbers(driver)["in the loss"] == "no: left out by correction or rejection"
    host.send_keys("s")
    until(lambda: numbers(driver).get("position") == "4 of 9", "the swap")
    assert numbers(driver)["sampled by"] == "version 0.11"
    assert numbers(driver)["lag"] == "0 steps, cache in part by older weights"
    assert host.get_attribute("aria-activedescendant") == "in-tk-4"
    host.send_keys(Keys.END)
    until(lambda: numbers(driver).get("token") == "[eos]", "the last token")
    host.send_keys(Keys.HOME)
    until(lambda: numbers(driver).get("position") == "0 of 9", "the first token")
    assert numbers(driver)["in the loss"].startswith("no: unscored")


def test_colours_follow_log_ratio_version_and_advantage(driver: Any, inspector: str) -> None:
    opened(driver, inspector)
    none, orange, blue = colour(driver, 4), colour(driver, 1), colour(driver, 7)
    assert none == "rgba(0, 0, 0, 0)"  # sampler and learner agree
    assert "213, 94, 0" in orange
    assert "0, 114, 178" in blue
    driver.find_element("css selector", "[value=version]").click()
    assert colour(driver, 1) == colour(driver, 2) != colour(driver, 7) == colour(driver, 8)
    assert [chip.text for chip in driver.find_elements("class name", "in-chip")] == ["0.9 · lag 2", "0.11 · lag 0"]
    driver.find_element("css selector", "[value=advantages]").click()
    assert "0, 114, 178" in colour(driver, 1)
    assert "213, 94, 0" in colour(driver, 7)
    assert colour(driver, 0) == "rgba(0, 0, 0, 0)"  # it is not trained on


def test_a_weight_swap_is_drawn_where_it_happened(driver: Any, inspector: str) -> None:
    opened(driver, inspector)
    (swap,) = driver.find_elements("css selector", ".in-block .in-swap")
    assert swap.text == "0.11"
    after = driver.execute_script("return arguments[0].nextElementSibling.id", swap)
    assert after == "in-tk-4"


def test_steps_are_walked_and_a_wrong_one_names_the_nearest(driver: Any, inspector: str) -> None:
    opened(driver, inspector)
    driver.find_element("css selector", "[aria-label='earlier step']").click()
    box = driver.find_element("class name", "in-step")
    until(lambda: box.get_property("value") == "8" and tokens(driver), "the step before")
    box.clear()
    box.send_keys("9", Keys.ENTER)
    problem = until(lambda: driver.find_element("class name", "in-problem").text, "a problem is told")
    assert "the nearest is 8" in problem
    driver.find_element("xpath", "//button[text()='newest']").click()
    until(lambda: tokens(driver), "the newest step")
    assert box.get_property("value") == "12"


def test_an_answer_that_is_text_alone_says_so_and_the_list_goes_on_working(driver: Any, inspector: str) -> None:
    opened(driver, inspector)
    first, second = driver.find_elements("class name", "in-row")
    second.click()
    until(lambda: "recording.sample_tokens" in driver.find_element("class name", "in-problem").text, "why")
    assert tokens(driver) == []
    first.click()
    until(lambda: len(tokens(driver)) == 9, "the first answer")


def test_an_archived_step_is_looked_at_in_the_same_way(driver: Any, inspector: str) -> None:
    opened(driver, inspector, source="archive", step=4)
    until(lambda: len(tokens(driver)) == 2, "two tokens")
    assert [token.text for token in tokens(driver)] == ["⟨5⟩", "⟨6⟩"]
    assert "0, 114, 178" in colour(driver, 1)


def test_of_a_long_answer_only_what_is_near_is_in_the_page(driver: Any, inspector: str) -> None:
    opened(driver, inspector, step=2)
    assert len(tokens(driver)) < 4_000
    host = driver.find_element("class name", "in-tokens")
    host.send_keys(Keys.END)
    until(lambda: numbers(driver).get("position") == f"19,999 of {LONG:,}", "the last token")
    until(lambda: not driver.find_elements("id", "in-tk-300"), "the beginning is let go")
    assert len(tokens(driver)) < 4_000
    assert driver.find_element("id", f"in-tk-{LONG - 1}").is_displayed()


def test_tokens_that_are_not_recorded_are_told_and_stepped_over(driver: Any, inspector: str) -> None:
    opened(driver, inspector, step=2)
    driver.find_elements("class name", "in-row")[1].click()
    gap = until(lambda: driver.find_elements("class name", "in-gap"), "the gap")[0]
    assert "19,400 tokens not recorded" in gap.text
    host = driver.find_element("class name", "in-tokens")
    for key, position in ((Keys.END, "19,999"), (Keys.HOME, "0")):
        host.send_keys(key)
        until(lambda position=position: numbers(driver).get("position") == f"{position} of {LONG:,}", position)
    host.send_keys(*[Keys.PAGE_DOWN] * 3)
    until(lambda: numbers(driver).get("position") == f"19,700 of {LONG:,}", "the first token behind the gap")


def test_two_runs_are_drawn_and_their_differences_listed(driver: Any, tmp_path: Path) -> None:
    first = compared.end(compared.run_of(tmp_path, "carry", 80))
    second = compared.run_of(tmp_path, "carry", 60, rate=3e-4, max_lag=0, reward=0.02)
    with harness.page_of("compare", compare_router(first)) as address:
        driver.get(address)
        until(lambda: len(driver.execute_script("return window.plotted")) == 4, "four plots")
        plotted = {spec["ylabel"]: spec for spec in driver.execute_script("return window.plotted")}
        assert {"eval/sampled/accuracy", "reward/mean", "off_policy/mean"} <= set(plotted)
        first_curve, second_curve = plotted["reward/mean"]["series"]
        assert (first_curve["label"], second_curve["label"]) == (first.path.name, second.path.name)
        assert (first_curve["x"][-1], second_curve["x"][-1]) == (80, 60)
        text = driver.find_element("class name", "co-tables").text
        assert "learner.learning_rate 0.0001 0.0003" in text
        assert "tokens trained on 800 600 −25 %" in text
        driver.find_element("css selector", "[aria-label='curves over'] [value=seconds]").click()
        until(lambda: len(driver.execute_script("return window.plotted")) == 8, "drawn again")
        for again in driver.execute_script("return window.plotted")[4:]:
            assert (again["xlabel"], again["series"][1]["x"][-1]) == ("seconds of training", 30)
        picture(driver, "compare")
