"""When a learner's ranks are started again, and when the run ends instead. Actors without processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from penstock.deploy import recovery
from penstock.deploy.config import LimitsSection, RecordingSection
from penstock.deploy.fleet import ActorLost, Member
from penstock.deploy.journal import Journal
from penstock.deploy.recovery import Recovery
from penstock.learner.loop import NonFinite
from penstock.learner.rank import RankLate, RankLost
from penstock.services.contracts import DeadlinePassed
from penstock.services.rundir import RunDir

BLAME = 5.0


class Scene:
    """Ranks, a clock and checkpoints that a test sets."""

    def __init__(self, directory: RunDir, monkeypatch, ranks: int = 2, most: int = 2) -> None:
        self.now, self.latest, self.from_ = 100.0, None, []
        handle = SimpleNamespace(ready=SimpleNamespace(remote=lambda: None))
        self.ranks = [Member(f"learner-{n}", "learner", Path("none.log"), lambda _: handle) for n in range(ranks)]
        for rank in self.ranks:
            rank.launch()
            rank.state = "running"
        self.directory, self.restarts = directory, {}
        journal = Journal(directory, "run", RecordingSection(), LimitsSection(), None)
        file = SimpleNamespace(
            learner=SimpleNamespace(max_restarts=most), deadlines=SimpleNamespace(start=60.0, silence=10.0, blame=BLAME)
        )
        parts = SimpleNamespace(learners=self.ranks, prepare_learning=self.prepare)
        self.recovery, self.answers = Recovery(parts, file, journal, self.restarts), ["there"]
        monkeypatch.setattr(recovery.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(recovery.checkpoints, "latest", lambda _: self.latest)
        monkeypatch.setattr(ray, "kill", lambda *_, **__: None)
        monkeypatch.setattr(ray, "get", lambda answers: answers)
        monkeypatch.setattr(
            ray, "wait", lambda refs, num_returns, timeout: (refs, []) if refs[0] == "there" else ([], refs)
        )

    def prepare(self, checkpoint):
        self.from_.append(checkpoint)
        return self.answers

    def dies(self, rank: int, raised: BaseException | None = None) -> None:
        self.ranks[rank].state, self.ranks[rank].raised, self.ranks[rank].gone = "dead", raised, raised is None
        self.ranks[rank].cause = f"learner-{rank} died: {raised or 'gone'}"

    def come_back(self) -> None:
        """All ranks start, hear what to do, publish."""
        for rank in self.ranks:
            rank.state = "ready"
        assert not self.recovery.look(True)
        assert self.recovery.look(True)
        for rank in self.ranks:
            rank.state = "running"
        self.recovery.begun()

    def told(self, kind: str) -> list[str]:
        return [event.message for event in self.directory.read_events() if event.kind == kind]


@pytest.fixture
def scene(tmp_path, monkeypatch) -> Scene:
    return Scene(RunDir.create(tmp_path, "run", "name: run\n"), monkeypatch)


def checkpoint(name: str) -> SimpleNamespace:
    return SimpleNamespace(folder=Path(name))


def test_a_process_that_is_gone_takes_all_ranks_along_and_all_begin_again_from_the_newest_checkpoint(scene):
    scene.latest = checkpoint("step-4")
    scene.dies(1)
    assert not scene.recovery.look(True)
    assert [rank.state for rank in scene.ranks] == ["starting", "starting"]
    assert scene.restarts == {"learner-0": 1, "learner-1": 1}
    scene.now += 7.0
    scene.come_back()
    assert scene.from_ == [Path("step-4")]
    assert scene.told("died") == ["learner-1 died: gone"]
    assert scene.told("restarted") == [
        "the learner's ranks are started again, from step-4",
        "the learner goes on from step-4, 7.0 s after it was lost",
    ]


def test_without_a_checkpoint_they_begin_from_the_beginning(scene):
    scene.dies(0)
    scene.recovery.look(True)
    scene.come_back()
    assert scene.from_ == [None]
    assert "from the beginning, since there is no checkpoint yet" in scene.told("restarted")[0]


@pytest.mark.parametrize("error", [NonFinite("3 steps in a row"), DeadlinePassed("nothing to take"), OSError("full")])
def test_what_would_be_raised_again_ends_the_run_with_its_cause_and_the_way_on(scene, error):
    scene.dies(0, error)
    scene.dies(1, RankLost("lost contact with rank 0"))
    with pytest.raises(ActorLost, match=r"(3 steps in a row|nothing to take|full)\n  go on from .*: penstock resume "):
        scene.recovery.look(True)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), RankLost("lost contact")])
def test_what_torch_raises_and_lost_contact_are_tried_again(scene, error):
    for rank in range(2):
        scene.dies(rank, error)
    scene.recovery.look(True)
    assert scene.recovery.stage == "starting"


def test_a_rank_that_lost_contact_waits_for_the_death_that_explains_it(scene):
    scene.dies(0, RankLate("waited 30 s for rank 1"))
    scene.recovery.look(True)
    assert scene.recovery.stage == "" and scene.told("died") == []
    scene.now += BLAME / 2
    scene.dies(1)
    scene.recovery.look(True)
    assert scene.told("died") == ["learner-0 died: waited 30 s for rank 1", "learner-1 died: gone"]


def test_of_two_that_stand_still_the_one_is_named_whose_process_hangs_and_not_the_one_that_waits_for_it(scene):
    scene.recovery._run_file.learner.max_restarts = 0
    for rank in range(2):
        scene.dies(rank)
        scene.ranks[rank].gone = False
    scene.ranks[1].mute = True
    with pytest.raises(ActorLost, match=r"^learner-1 died: gone"):
        scene.recovery.look(True)


def test_what_torch_raises_in_a_collective_waits_for_the_death_that_explains_it_too(scene):
    """DeepSpeed's own collectives raise nothing but RuntimeError."""
    scene.recovery._run_file.learner.max_restarts = 0
    scene.dies(0, RuntimeError("Connection closed by peer"))
    assert not scene.recovery.look(True) and scene.told("died") == []
    scene.now += BLAME / 2
    scene.dies(1)
    with pytest.raises(ActorLost, match=r"^learner-1 died: gone"):
        scene.recovery.look(True)


def test_one_that_stood_still_and_answered_waits_for_the_one_that_it_may_have_waited_for(scene):
    scene.recovery._run_file.learner.max_restarts = 0
    scene.dies(0)
    scene.ranks[0].gone = False
    assert not scene.recovery.look(True)
    scene.dies(1)
    scene.ranks[1].gone, scene.ranks[1].mute = False, True
    with pytest.raises(ActorLost, match=r"^learner-1 died: gone"):
        scene.recovery.look(True)


def test_after_the_grace_it_is_acted_on_alone(scene):
    scene.dies(0, RankLost("lost contact"))
    scene.recovery.look(True)
    scene.now += BLAME
    scene.recovery.look(True)
    assert scene.recovery.stage == "starting"


def test_so_many_deaths_without_a_new_checkpoint_end_the_run_and_a_new_one_begins_the_count_again(scene):
    for name in ("step-4", "step-8"):
        scene.latest = checkpoint(name)
        for _ in range(2):
            scene.dies(0)
            scene.recovery.look(True)
            scene.come_back()
    scene.dies(0)
    with pytest.raises(ActorLost, match=r"started again 2 times without a new checkpoint \(learner.max_restarts\)"):
        scene.recovery.look(True)


def test_a_death_while_they_load_is_one_more(scene):
    scene.dies(0)
    scene.recovery.look(True)
    scene.dies(1)
    scene.recovery.look(True)
    assert scene.restarts == {"learner-0": 2, "learner-1": 2}


def test_a_start_that_takes_too_long_says_what_it_waits_for(scene):
    scene.dies(0)
    scene.recovery.look(True)
    scene.now += 61
    with pytest.raises(
        DeadlinePassed, match=r"waited 60 s \(deadlines.start\) for the learner, .* learner-1: starting"
    ):
        scene.recovery.look(True)


def test_while_the_driver_was_stopped_no_deadline_has_passed(scene):
    scene.dies(0, RankLost("lost contact"))
    scene.recovery.look(True)
    scene.now += 3600
    scene.recovery.excuse(3600)
    scene.recovery.look(True)
    assert scene.recovery.stage == "", "whoever explains it has had no time yet"
    scene.dies(1)
    scene.recovery.look(True)
    scene.now += 3600
    scene.recovery.excuse(3600)
    scene.recovery.look(True)
    assert scene.recovery.stage == "starting"


def test_ranks_that_do_not_know_their_part_yet_are_not_let_go(scene):
    scene.dies(0)
    scene.recovery.look(True)
    scene.answers = ["pending"]
    for rank in scene.ranks:
        rank.state = "ready"
    assert not any(scene.recovery.look(True) for _ in range(3))


def test_before_the_first_weights_and_after_the_end_nothing_is_started_again(scene):
    scene.ranks[0].state = "ended"
    scene.dies(1)
    assert not scene.recovery.look(True) and scene.recovery.stage == ""
    scene.dies(0)
    with pytest.raises(ActorLost, match="learner-0 died: gone"):
        scene.recovery.look(False)
