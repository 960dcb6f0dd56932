"""However a run ends, its end is concluded once, with the reason."""

from __future__ import annotations

import os
import signal

import pytest
import ray.exceptions

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
    ],
)
def test_an_error_is_the_reason_and_goes_on(error, raised, outcome, why):
    ends = []
    with pytest.raises(raised), ending(ends.append, Interruption()):
        raise error
    assert [(end.outcome, end.why) for end in ends] == [(outcome, why)]


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
