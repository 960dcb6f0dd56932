"""When an evaluation beside training is due. The workers are fakes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from penstock.deploy import evaluations
from penstock.deploy.config import LimitsSection, RecordingSection
from penstock.deploy.evaluating import Evaluating
from penstock.deploy.journal import Journal
from penstock.deploy.parts import Parts
from penstock.services.contracts import PenstockError
from penstock.services.rundir import RunDir
from penstock.services.versions import Version


class Asked:
    """An evaluation that the test answers."""

    made: list[Asked] = []  # noqa: RUF012  (emptied for every test)

    def __init__(self, job: object, workers: object, most: int) -> None:
        self.there, self.overdue, self.missing, self.error = False, None, "rollout-0", ""
        assert most == 1, "beside training one worker does it"
        Asked.made.append(self)

    def collect(self) -> bool:
        if self.error:
            raise PenstockError(self.error)
        return self.there

    def result(self) -> tuple[Version, dict[str, float]]:
        return Version(0, 10), {"eval/accuracy": 0.5}


class Scene:
    def __init__(self, folder: Any) -> None:
        self.directory = RunDir.create(folder, "evaluated", "")
        self.workers = [SimpleNamespace(state="running")]
        parts = SimpleNamespace(evaluation="a job", workers=self.workers, rollout=SimpleNamespace(staying=self.workers))
        journal = Journal(self.directory, "evaluated", RecordingSection(), LimitsSection(), None)
        self.found: list[Version] = []
        self.evaluating = Evaluating(cast(Parts, parts), 10, journal, lambda version, _: self.found.append(version))

    def steps(self, *steps: int) -> int:
        """How many have been begun by then."""
        for step in steps:
            self.evaluating.stepped(Version(0, step))
        return len(Asked.made)


@pytest.fixture
def scene(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(Asked, "made", [])
    monkeypatch.setattr(evaluations, "Pending", Asked)
    return Scene(tmp_path)


def test_one_begins_every_so_many_steps_also_where_a_step_was_passed_over(scene: Scene) -> None:
    assert scene.steps(8, 9) == 0
    assert scene.steps(11) == 1
    Asked.made[0].there = True
    scene.evaluating.collect()
    assert scene.found == [Version(0, 10)]
    assert scene.steps(12, 19) == 1 and scene.steps(20) == 2


def test_none_begins_while_one_is_going_on_or_nobody_generates(scene: Scene) -> None:
    scene.workers[0].state = "starting"
    assert scene.steps(10) == 0 and not scene.evaluating.possible
    scene.workers[0].state = "running"
    assert scene.steps(11) == 1 and scene.steps(20, 30) == 1


def test_after_a_fall_back_what_was_given_up_is_evaluated_again(scene: Scene) -> None:
    scene.steps(10)
    Asked.made[0].there = True
    scene.evaluating.collect()
    scene.evaluating.went_back(6)
    assert scene.steps(10) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"overdue": 3700.0}, "waited 3700 s (evaluation.deadline) for an evaluation by rollout-0; it is given up"),
        ({"error": "it failed 3 times"}, "an evaluation was lost: it failed 3 times"),
    ],
)
def test_one_that_is_late_or_fails_is_given_up_with_a_warning_and_the_next_one_comes(
    scene: Scene, change: dict[str, Any], said: str
) -> None:
    scene.steps(10)
    for name, value in change.items():
        setattr(Asked.made[0], name, value)
    scene.evaluating.collect()
    assert scene.found == [] and [e.message for e in scene.directory.read_events() if e.kind == "warning"] == [said]
    assert scene.steps(20) == 2
