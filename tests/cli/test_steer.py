"""Words that steer a run: what they mean, and what is said of words that mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.cli import steer
from penstock.services.control import Gate, NoAnswer, Pause, Refused, Scale, SetCoefficient, SetMaxLag
from penstock.services.mailbox import MailboxControl
from penstock.services.rundir import RunDir, RunDirError


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


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
def test_a_word_that_scales_nothing_is_told_with_what_is_allowed(word: str, said: str) -> None:
    with pytest.raises(Refused) as refused:
        steer.scales(["rollout=1", word])
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "word", ["kl.coef", "kl.coef=", "kl.coef=much", "kl.coef=nan", "kl.coef=1e999", "=0.1", "max_lag=1.5", "max_lag=-1"]
)
def test_a_word_that_sets_nothing_is_told_with_an_example(word: str) -> None:
    with pytest.raises(Refused, match=r"kl\.coef=0\.01|max_lag=4"):
        steer.settings([word])


def test_words_become_commands() -> None:
    assert steer.scales(["rollout=4", "scorer=0"]) == [Scale("rollout", 4), Scale("scorer", 0)]
    assert steer.settings(["kl.coef=1e-2", "staleness.max_lag=8"]) == [SetCoefficient("kl.coef", 0.01), SetMaxLag(8)]
    assert (steer.gate("open"), steer.gate("close")) == (Gate(True), Gate(False))
    with pytest.raises(Refused, match="allowed: open, close"):
        steer.gate("shut")


def test_where_there_is_no_run_the_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=str(tmp_path)):
        list(steer.send("pause", [Pause()], None, tmp_path, None))


def test_a_run_that_has_ended_is_said_to_be_not_running(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "over", "name: over\n")
    for word in (str(run.path), "over", run.path.name):
        with pytest.raises(NoAnswer, match="is not running"):
            list(steer.send("pause", [Pause()], word, tmp_path, None))


def test_of_several_words_those_before_a_refused_one_are_told_as_done(tmp_path: Path, monkeypatch) -> None:
    def answer(_: MailboxControl, command: Scale, by: str) -> str:
        if command.count == 0:
            raise Refused("the last scorer stays")
        return f"{command.count} {command.role}"

    monkeypatch.setattr(MailboxControl, "send", answer)
    RunDir.create(tmp_path, "goes-on", "name: goes-on\n")
    answers = steer.send("scale", steer.scales(["rollout=4", "scorer=0", "rollout=5"]), None, tmp_path, None)
    assert next(answers) == "4 rollout"
    with pytest.raises(Refused, match="the last scorer stays"):
        next(answers)
