"""The page of a run that goes on: a real one, with Ray's actors, the store and the learner, whose workers answer at a
set pace. It is watched and steered as a person would."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from browsing import PENSTOCK, ROOT, complaints, picture, until
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By

from penstock.services.lanes import Line
from penstock.services.rundir import RunDir, RunEvent

pytestmark = pytest.mark.engine
START = 240.0
"""Seconds that a run may take to begin on a busy machine."""


@dataclass
class Live:
    """A run in a process of its own, as a person starts it."""

    process: subprocess.Popen[str]
    address: str
    directory: RunDir

    def events(self, kind: str) -> list[RunEvent]:
        return [event for event in self.directory.read_events() if event.kind == kind]

    def view(self) -> dict[str, Any]:
        return self.directory.read_status() or {}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("live")
    subprocess.run([sys.executable, "recipes/drill/prepare.py", home / "inputs"], cwd=ROOT, check=True)
    overrides = [
        f"model.path={home}/inputs/model",
        f"data.sources.sums.path={home}/inputs/sums.jsonl",
        f"runs_dir={home}/runs",
        "limits.steps=100000",
        "dashboard.enabled=true",
    ]
    command = [*PENSTOCK, "train", "recipes/drill/drill.yaml", *overrides]
    with (home / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True)
        try:
            yield _begun(process, home)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _begun(process: subprocess.Popen[str], home: Path) -> Live:
    """The page is there from the first moment on, long before the run trains."""

    def said() -> re.Match[str] | None:
        assert process.poll() is None, (home / "output").read_text()
        return re.search(r"watch the run at (http://\S+)", (home / "output").read_text())

    address = until("the page's address is printed", said, START)[1]
    return Live(process, address, RunDir.newest(home / "runs"))


@pytest.fixture
def page(browser: WebDriver, live: Live) -> WebDriver:
    browser.get(live.address)
    until("it trains", lambda: live.view().get("step", 0) >= 2, START)
    until("the page says so", lambda: _phase(browser) == "training", 20)
    return browser


def _phase(browser: WebDriver) -> str:
    return browser.find_element(By.ID, "phase").text


def _button(browser: WebDriver, words: str) -> Any:
    found = browser.find_elements(By.CSS_SELECTOR, "#steer button")
    return next(button for button in found if words in (button.text, button.get_attribute("aria-label")))


def _notes(browser: WebDriver) -> str:
    return " ".join(note.text for note in browser.find_elements(By.CSS_SELECTOR, ".note"))


def test_steps_of_a_real_run_are_on_the_page_within_two_seconds(page: WebDriver, live: Live) -> None:
    for _ in range(3):
        before = _newest_step(live)
        until("another step is done", lambda before=before: _newest_step(live) > before, 30, 0.02)
        step, began = _newest_step(live), time.monotonic()
        until(
            f"step {step} is drawn",
            lambda step=step: int(page.execute_script("return document.body.dataset.painted") or 0) >= step,
            5,
            0.02,
        )
        assert time.monotonic() - began < 2.0


def _newest_step(live: Live) -> int:
    with live.directory.metrics.open("rb") as file:
        file.seek(max(0, live.directory.metrics.stat().st_size - 20_000))
        lines = [line for line in file.read().split(b"\n")[1:-1] if line]
    return int(json.loads(lines[-1])["step"]) if lines else 0


def test_a_click_adds_a_worker_that_really_works(page: WebDriver, live: Live) -> None:
    _button(page, "One rollout worker more").click()
    until("the run takes it up", lambda: live.events("joining"), 10)
    until("the new worker generates", lambda: len(live.events("joined")) == 2, 120)
    rows = until(
        "the page shows it at work",
        lambda: [row.text for row in page.find_elements(By.CSS_SELECTOR, ".fleet tr") if "rollout-1" in row.text],
        20,
    )
    assert "remove" not in rows[0]
    until("it has sampled tokens", lambda: _worker(live, "rollout-1").get("tokens_per_second", 0) > 0, 60)
    assert psutil.pid_exists(_worker(live, "rollout-1")["pid"])
    (steered,) = live.events("steered")
    assert steered.facts["asked"] == {"type": "scale", "role": "rollout", "count": 2}
    assert steered.facts["by"].startswith("page from 127.0.0.1, served by ")


def _worker(live: Live, name: str) -> dict[str, Any]:
    return next((worker for worker in live.view().get("workers", ()) if worker["name"] == name), {})


def test_lanes_show_what_every_actor_does(page: WebDriver, live: Live) -> None:
    lanes = page.find_element(By.CSS_SELECTOR, "[aria-label='What every actor is doing']")
    said = until("there are lanes", lambda: lanes.get_attribute("textContent"), 20)
    assert "learner-0 busy" in said
    assert "rollout-0 busy" in said
    lines = [msgspec.json.decode(line, type=Line) for line in live.directory.activity.read_bytes().splitlines()]
    phases = {span.phase for line in lines for spans in line.lanes.values() for span in spans}
    assert {"generating", "waiting for groups", "training"} <= phases


def test_pause_and_resume(page: WebDriver, live: Live) -> None:
    _button(page, "Pause").click()
    until("it is told", lambda: _phase(page) == "paused", 10)
    step = live.view()["step"]
    time.sleep(1.5)
    assert live.view()["step"] <= step + 1
    _button(page, "Resume").click()
    until("it goes on", lambda: _phase(page) == "training", 10)
    until("steps are made again", lambda: live.view()["step"] > step + 1, 30)


def test_what_the_run_refuses_is_said_with_the_reason(page: WebDriver, live: Live) -> None:
    _button(page, "Tune…").click()
    page.find_element(By.ID, "set-learning_rate").send_keys("-1")
    page.find_element(By.CSS_SELECTOR, "#ask .btn-primary").click()
    until("the reason is shown", lambda: "learning_rate cannot be -1" in _notes(page))
    assert live.events("refused")
    _button(page, "Tune…").click()
    page.find_element(By.ID, "set-learning_rate").send_keys("2e-6")
    page.find_element(By.CSS_SELECTOR, "#ask .btn-primary").click()
    until("it is changed", lambda: live.view()["controls"]["coefficients"]["learning_rate"] == 2e-6)


def test_checkpoint_now(page: WebDriver, live: Live) -> None:
    before = len(live.events("checkpoint"))
    _button(page, "Checkpoint").click()
    until("it is written", lambda: len(live.events("checkpoint")) > before, 30)


def test_a_worker_leaves_by_a_click_and_its_last_words_stay(page: WebDriver, live: Live) -> None:
    row = next(row for row in page.find_elements(By.CSS_SELECTOR, ".fleet tr") if "rollout-1" in row.text)
    row.find_element(By.CSS_SELECTOR, ".remove").click()
    until("it has left", lambda: live.events("left"), 60)
    os.kill(_worker(live, "rollout-0")["pid"], signal.SIGKILL)
    words = until("its death is told", lambda: page.find_element(By.CSS_SELECTOR, ".deaths").text, 30)
    assert "rollout-0" in words
    assert "SIGKILL" in words


def test_the_end_by_a_click(page: WebDriver, live: Live) -> None:
    picture(page, "live")
    assert complaints(page) == []
    _button(page, "Stop…").click()
    page.find_element(By.CSS_SELECTOR, "#ask .btn-danger").click()
    assert live.process.wait(120) == 0
    summary = live.directory.read_summary()
    assert summary is not None
    assert summary["ledger"]["balanced"]
    assert summary["why"] == "stopped: asked for on the page"
