"""However a run ends, its end is concluded once, with the reason."""

from __future__ import annotations

import pytest
import ray.exceptions

from penstock.deploy.ending import ending
from penstock.deploy.signals import Interruption
from penstock.services.contracts import PenstockError


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
