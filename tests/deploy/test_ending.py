"""However a run ends, its end is concluded once, with the reason."""

from __future__ import annotations

import errno
import os
import signal

import pytest
import ray.exceptions
from disks import fill, small_disk

from penstock.deploy.ending import ending, tenure
from penstock.deploy.signals import Interruption
from penstock.services.contracts import PenstockError
from penstock.services.rundir import RunDir


class Lost(ray.exceptions.RayError):
    """A call that Ray gave up."""


@pytest.mark.parametrize(
    ("error", "raised", "outcome", "why"),
    [
        (PenstockError("no room"), PenstockError, "failed", "no room"),
        (Lost("gone"), PenstockError, "failed", "a call to an actor failed: Lost: gone"),
        (ZeroDivisionError("by zero"), ZeroDivisionError, "failed", "ZeroDivisionError: by zero"),
        (KeyboardInterrupt(), KeyboardInterrupt, "stopped", "interrupted by SIGINT"),
        (
            OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl"),
            PenstockError,
            "failed",
            "metrics.jsonl could not be written: No space left on device; make room",
        ),
        (OSError(errno.EPIPE, "Broken pipe"), OSError, "failed", "BrokenPipeError: [Errno 32] Broken pipe"),
    ],
)
def test_an_error_is_the_reason_and_goes_on(error, raised, outcome, why):
    ends = []
    with pytest.raises(raised), ending(ends.append, Interruption()):
        raise error
    assert [(end.outcome, end.why) for end in ends] == [(outcome, why)]


def test_on_a_full_disk_the_reason_is_said_though_neither_it_nor_the_summary_can_be_written(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        directory = RunDir.create(disk, "run", "name: run\n")
        fill(disk)
        said = r"events\.jsonl could not be written: No space left on device; make room\. This could not be written"
        with pytest.raises(PenstockError, match=said), ending(lambda end: directory.write_summary(vars(end)), ASKED):
            for number in range(10_000):
                directory.add_event("warning", "x" * 1000, number=number)
        assert all(event.message == "x" * 1000 for event in directory.read_events()), "lines are whole, or not there"


ASKED = Interruption()


def test_a_run_that_comes_to_its_end_says_itself_how():
    ends = []
    with ending(ends.append, Interruption()) as end:
        end.outcome, end.why = "finished", "limits.steps: 3 steps are done"
    assert ends == [end]


def test_a_run_holds_its_directory_until_it_ends_and_a_wish_to_stop_comes_out_behind_it(tmp_path):
    directory = RunDir.create(tmp_path, "run", "name: run\n")
    with tenure(directory) as held:
        assert directory.locked and not held.asked
        held.outcome = "finished"
    assert not directory.locked
    with pytest.raises(KeyboardInterrupt), tenure(directory) as held:
        os.kill(os.getpid(), signal.SIGTERM)
        assert held.asked.name == "SIGTERM"
        held.outcome = "stopped"
    assert not directory.locked


def test_an_error_leaves_the_run_directory_free(tmp_path):
    directory = RunDir.create(tmp_path, "run", "name: run\n")
    with pytest.raises(PenstockError, match="no room"), tenure(directory):
        raise PenstockError("no room")
    assert not directory.locked
