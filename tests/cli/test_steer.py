"""`penstock scale`: what its words mean, and what is said of words that mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.cli import steer
from penstock.services.control import NoAnswer, Refused
from penstock.services.rundir import RunDir, RunDirError


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("rolout=4", "'rolout=4' names no role that can be scaled; allowed: rollout, scorer; nearest: rollout"),
        ("learner=2", "names no role that can be scaled; allowed: rollout, scorer"),
        ("rollout", "does not say how many; allowed: rollout= and a whole number from 0 on, as rollout=4"),
        ("rollout=-1", "does not say how many"),
        ("rollout=2.5", "does not say how many"),
        ("rollout=\u0664", "does not say how many"),
    ],
)
def test_a_word_that_asks_for_nothing_is_told_before_a_run_is_looked_for(tmp_path: Path, word: str, said: str) -> None:
    with pytest.raises(Refused) as refused:
        steer.scale(["rollout=1", word], None, tmp_path)
    assert said in str(refused.value)


def test_where_there_is_no_run_the_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=str(tmp_path)):
        steer.scale(["rollout=1"], None, tmp_path)


def test_a_run_that_has_ended_is_said_to_be_not_running(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "over", "name: over\n")
    with pytest.raises(NoAnswer, match="is not running"):
        steer.scale(["rollout=1"], run.path, tmp_path)
