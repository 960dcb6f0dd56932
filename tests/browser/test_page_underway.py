"""The page of a run that goes on: a real one, with Ray's actors, the store and the learner, whose workers answer at a
set pace. It is watched and steered as a person would."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import msgspec
import psutil
import pytest
from browsing import complaints, picture, until
from drilling import START, Drill
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By

from penstock.services.lanes import Line

pytestmark = pytest.mark.engine


@pytest.fixture
def page(browser: WebDriver, drill: Drill) -> WebDriver:
    browser.get(drill.address())
    until("it trains", lambda: drill.view().get("step", 0) >= 2, START)
    until("the page says so", lambda: _phase(browser) == "training", 20)
    return browser


def _phase(browser: WebDriver) -> str:
    return browser.find_element(By.ID, "phase").text


def _button(browser: WebDriver, words: str) -> Any:
    found = browser.find_elements(By.CSS_SELECTOR, "#steer button, .alive .caption button")
    return next(button for button in found if words in (button.text, button.get_attribute("aria-label")))


def _notes(browser: WebDriver) -> str:
    return " ".join(note.text for note in browser.find_elements(By.CSS_SELECTOR, ".note"))


def test_steps_of_a_real_run_are_on_the_page_within_two_seconds(page: WebDriver, drill: Drill) -> None:
    for _ in range(3):
        before = _newest_step(drill)
        until("another step is done", lambda before=before: _newest_step(drill) > before, 30, 0.02)
        step, began = _newest_step(drill), time.monotonic()
        until(
            f"step {step} is drawn",
            lambda step=step: int(page.execute_script("return document.body.dataset.painted") or 0) >= step,
            5,
            0.02,
        )
        assert time.monotonic() - began < 2.0


def _newest_step(drill: Drill) -> int:
    with drill.directory.metrics.open("rb") as file:
        file.seek(max(0, drill.directory.metrics.stat().st_size - 20_000))
        lines = [line for line in file.read().split(b"\n")[1:-1] if line]
    return int(json.loads(lines[-1])["step"]) if lines else 0


def test_a_click_adds_a_worker_that_really_works(page: WebDriver, drill: Drill) -> None:
    _button(page, "One rollout worker more").click()
    until("the run takes it up", lambda: drill.events("joining"), 10)
    until("the new worker generates", lambda: len(drill.events("joined")) == 2, 120)
    fleet = page.find_element(By.CSS_SELECTOR, ".fleet")
    until("the page shows it at work", lambda: "rollout-1\ngenerating" in fleet.text.replace(" ", "\n"), 20)
    until("it has sampled tokens", lambda: drill.worker("rollout-1").get("tokens_per_second", 0) > 0, 60)
    assert psutil.pid_exists(drill.worker("rollout-1")["pid"])
    (steered,) = drill.events("steered")
    assert steered.facts["asked"] == {"type": "scale", "role": "rollout", "count": 2}
    assert steered.facts["by"].startswith("page from 127.0.0.1, served by ")


def test_lanes_show_what_every_actor_does(page: WebDriver, drill: Drill) -> None:
    lanes = page.find_element(By.CSS_SELECTOR, "[aria-label='What every actor is doing']")
    said = until("there are lanes", lambda: lanes.get_attribute("textContent"), 20)
    assert "learner-0 busy" in said
    assert "rollout-0 busy" in said
    lines = [msgspec.json.decode(line, type=Line) for line in drill.directory.activity.read_bytes().splitlines()]
    phases = {span.phase for line in lines for spans in line.lanes.values() for span in spans}
    assert {"generating", "waiting for groups", "training"} <= phases


def test_pause_and_resume(page: WebDriver, drill: Drill) -> None:
    _button(page, "Pause").click()
    until("it is told", lambda: _phase(page) == "paused", 10)
    step = drill.view()["step"]
    time.sleep(1.5)
    assert drill.view()["step"] <= step + 1
    _button(page, "Resume").click()
    until("it goes on", lambda: _phase(page) == "training", 10)
    until("steps are made again", lambda: drill.view()["step"] > step + 1, 30)


def test_the_gate_is_closed_and_opened(page: WebDriver, drill: Drill) -> None:
    _button(page, "Close gate").click()
    until("workers find it closed", lambda: drill.worker("rollout-0").get("state") == "waiting: held", 20)
    assert drill.view()["controls"]["gate_open"] is False
    until("the button says so", lambda: "Open gate" in page.find_element(By.ID, "steer").text, 5)
    _button(page, "Open gate").click()
    until("they generate again", lambda: drill.worker("rollout-0").get("state") == "generating", 20)


def test_answers_of_a_step_can_be_inspected_token_by_token(page: WebDriver, drill: Drill) -> None:
    page.find_element(By.ID, "tab-inspector").click()
    until("tokens are shown", lambda: page.find_elements(By.CSS_SELECTOR, "#inspector .tk"), 15)
    picture(page, "live-tokens")
    page.find_element(By.ID, "tab-overview").click()


def test_scorers_come_and_go_by_clicks(page: WebDriver, drill: Drill) -> None:
    assert not _button(page, "One scorer less").is_enabled(), "the last one stays"
    _button(page, "One scorer more").click()
    until("it works", lambda: _named(drill, "joined", "scorer-1"), 60)
    button = "[aria-label='Let scorer-1 part with its work and leave']"
    until("it can be let go", lambda: page.find_elements(By.CSS_SELECTOR, button), 10)
    page.find_element(By.CSS_SELECTOR, button).click()
    until("it has left", lambda: _named(drill, "left", "scorer-1"), 30)


def _named(drill: Drill, kind: str, name: str) -> bool:
    return any(event.facts.get("name") == name for event in drill.events(kind))


def test_a_page_whose_process_is_killed_comes_back_by_itself(page: WebDriver, drill: Drill) -> None:
    children = psutil.Process(drill.process.pid).children()
    (served,) = [child for child in children if "penstock.deploy.page" in child.cmdline()]
    served.kill()
    until("it is told", lambda: _named(drill, "warning", "dashboard"), 10)
    step = _newest_step(drill)
    until("the page goes on", lambda: int(page.execute_script("return document.body.dataset.painted")) > step, 20)
    page.get_log("browser")  # that the connection was reset


def test_what_the_run_refuses_is_said_with_the_reason(page: WebDriver, drill: Drill) -> None:
    _button(page, "Tune…").click()
    page.find_element(By.ID, "set-learning_rate").send_keys("-1")
    page.find_element(By.CSS_SELECTOR, "#ask .btn-primary").click()
    until("the reason is shown", lambda: "learning_rate cannot be -1" in _notes(page))
    assert drill.events("refused")
    _button(page, "Tune…").click()
    page.find_element(By.ID, "set-learning_rate").send_keys("2e-6")
    page.find_element(By.CSS_SELECTOR, "#ask .btn-primary").click()
    until("it is changed", lambda: drill.view()["controls"]["coefficients"]["learning_rate"] == 2e-6)


def test_checkpoint_now(page: WebDriver, drill: Drill) -> None:
    before = len(drill.events("checkpoint"))
    _button(page, "Checkpoint").click()
    until("it is written", lambda: len(drill.events("checkpoint")) > before, 30)


def test_a_worker_leaves_by_a_click_and_its_last_words_stay(page: WebDriver, drill: Drill) -> None:
    row = next(row for row in page.find_elements(By.CSS_SELECTOR, ".fleet tr") if "rollout-1" in row.text)
    row.find_element(By.CSS_SELECTOR, ".remove").click()
    until("it has left", lambda: drill.events("left"), 60)
    os.kill(drill.worker("rollout-0")["pid"], signal.SIGKILL)
    words = until("its death is told", lambda: page.find_element(By.CSS_SELECTOR, ".deaths").text, 30)
    assert "rollout-0" in words
    assert "SIGKILL" in words


def test_the_end_by_a_click(page: WebDriver, drill: Drill) -> None:
    picture(page, "live")
    assert complaints(page) == []
    _button(page, "Stop…").click()
    page.find_element(By.CSS_SELECTOR, "#ask .btn-danger").click()
    assert drill.process.wait(120) == 0
    summary = drill.directory.read_summary()
    assert summary is not None
    assert summary["ledger"]["balanced"]
    assert summary["why"] == "stopped: asked for on the page"
