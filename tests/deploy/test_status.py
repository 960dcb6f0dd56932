"""What a run is doing, read from its directory."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from views import view

from penstock.deploy.status import duration, status, status_of
from penstock.deploy.view import Controls
from penstock.services.rundir import RunDir, RunDirError


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "runs", "sort", "name: sort\n")


def test_what_the_driver_wrote_comes_back_whole(run: RunDir) -> None:
    written = view()
    run.write_status(written)
    assert status(run.path).view == written


def test_the_newest_run_is_the_default(run: RunDir) -> None:
    assert status(None, run.path.parent).run_dir == run.path


def test_a_run_that_is_locked_is_alive(run: RunDir) -> None:
    run.write_status(view(phase="training"))
    run.lock()
    facts = status(run.path)
    run.unlock()
    assert facts.alive
    assert facts.verdict == "training"


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        (Controls(paused_by="guard kl"), "training, paused by guard kl; `penstock go` lets it go on"),
        (Controls(gate_open=False), "training, its gate closed by hand; `penstock gate open` opens it"),
    ],
)
def test_a_run_that_somebody_holds_says_so_and_how_it_goes_on(run: RunDir, controls: Controls, said: str) -> None:
    run.write_status(view(phase="training", controls=controls))
    run.lock()
    verdict = status(run.path).verdict
    run.unlock()
    assert verdict == said


def test_a_run_directory_that_is_deleted_meanwhile_is_said_to_be_gone(run: RunDir) -> None:
    run.write_status(view())
    shutil.rmtree(run.path)
    with pytest.raises(RunDirError, match=r"is no run directory any more: .*config\.yaml is gone"):
        status_of(run)


def test_a_driver_that_died_without_a_word_is_told_with_the_way_on(run: RunDir) -> None:
    run.write_status(view(phase="training"))
    assert "died while training" in status(run.path).verdict
    assert f"penstock resume {run.path}" in status(run.path).verdict


def test_a_driver_that_is_silent_is_told(run: RunDir) -> None:
    run.write_status(view(phase="training"))
    long_ago = time.time() - 200
    os.utime(run.status, (long_ago, long_ago))
    run.lock()
    verdict = status(run.path).verdict
    run.unlock()
    assert verdict == "training, but silent for 3 min 20 s; see logs/"


def test_a_run_that_ended_says_how(run: RunDir) -> None:
    run.write_status(view(phase="failed", message="the store did not answer"))
    assert status(run.path).verdict == "failed: the store did not answer"


def test_a_run_that_has_not_written_yet(run: RunDir) -> None:
    assert status(run.path).verdict.startswith("never started")
    run.lock()
    assert status(run.path).verdict == "starting"
    run.unlock()


def test_a_status_of_another_version_is_refused_by_name(run: RunDir) -> None:
    run.status.write_text('{"phase": "dancing"}')
    with pytest.raises(RunDirError, match="written by another version of Penstock"):
        status(run.path)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (7500, "2 h 5 min")]
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
