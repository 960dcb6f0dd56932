"""However a run ends, its end is concluded once, with the reason."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import ray
import ray.exceptions
from disks import fill, small_disk

from penstock.deploy.config import LimitsSection, RecordingSection
from penstock.deploy.ending import ending, tenure
from penstock.deploy.fleet import Member
from penstock.deploy.journal import Journal
from penstock.deploy.run import Conductor, require_more_to_do
from penstock.deploy.signals import Interruption
from penstock.deploy.supervisor import Supervisor
from penstock.deploy.tune import _Tuning
from penstock.learner import checkpoints
from penstock.services.contracts import DeadlinePassed, PenstockError
from penstock.services.metrics import read_rows
from penstock.services.replay import LedgerMemo
from penstock.services.rundir import RunDir, RunDirError
from penstock.services.versions import Version

RUN = Path("runs/one")


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
        (
            OSError(errno.ENOSPC, "No space left on device"),
            PenstockError,
            "failed",
            "a file in runs/one could not be written: No space left on device; make room",
        ),
        (OSError(errno.EPIPE, "Broken pipe"), OSError, "failed", "BrokenPipeError: [Errno 32] Broken pipe"),
    ],
)
def test_an_error_is_the_reason_and_goes_on(error, raised, outcome, why):
    ends = []
    with pytest.raises(raised), ending(ends.append, Interruption(), RUN):
        raise error
    assert [(end.outcome, end.why) for end in ends] == [(outcome, why)]


def test_on_a_full_disk_the_reason_is_said_though_neither_it_nor_the_summary_can_be_written(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        directory = RunDir.create(disk, "run", "name: run\n")
        fill(disk)
        said = r"events\.jsonl could not be written: No space left on device; make room\. This could not be written"
        with pytest.raises(PenstockError, match=said), end_of(directory):
            for number in range(10_000):
                directory.add_event("warning", "x" * 1000, number=number)
        assert all(event.message == "x" * 1000 for event in directory.read_events()), "lines are whole, or not there"


def end_of(directory: RunDir):
    return ending(lambda end: directory.write_summary(vars(end)), Interruption(), directory.path)


def test_a_run_that_comes_to_its_end_says_itself_how():
    ends = []
    with ending(ends.append, Interruption(), RUN) as end:
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


def test_a_run_that_died_after_its_last_step_is_brought_to_its_end_and_one_that_has_ended_is_left_alone(tmp_path):
    directory = RunDir.create(tmp_path, "sort", "name: sort\n")
    version = Version(0, 50)
    checkpoints.begin(directory.checkpoints, version)
    facts = {"ranks": 1, "zero_stage": 0, "dtype": "float32", "config_hash": "", "updates": 50, "tokens": 5}
    checkpoints.seal(directory.checkpoints, version, LedgerMemo(1, 1, {}, (), {}), {}, facts)
    at_its_limit = SimpleNamespace(limits=LimitsSection(steps=50))
    require_more_to_do(at_its_limit, directory)  # killed while it was evaluated
    directory.write_summary({"outcome": "failed", "why": "the store did not answer"})
    require_more_to_do(at_its_limit, directory)
    directory.write_summary({"outcome": "finished"})
    with pytest.raises(RunDirError, match=r"has ended: limits.steps: 50 steps are done. .*limits.steps=150"):
        require_more_to_do(at_its_limit, directory)
    require_more_to_do(SimpleNamespace(limits=LimitsSection(steps=51)), directory)


def test_a_store_that_dies_while_workers_hand_back_what_they_have_is_started_again_for_them(tmp_path):
    """They wait for it, and the end waits for them: nobody else would look."""

    class Store:
        lives, asked = False, 0

        def keep(self):
            self.asked += 1
            self.lives = self.asked > 2

    store, noted = Store(), []
    worker = SimpleNamespace(name="rollout-0", state="running", handle=SimpleNamespace(request_drain=Mock()))
    worker.poll = lambda _: setattr(worker, "state", "ended" if store.lives else "running")
    parts = SimpleNamespace(workers=[worker], members=[worker], host=SimpleNamespace(surely=Mock()))
    conductor = object.__new__(Conductor)
    conductor._journal = SimpleNamespace(enter=Mock(), show=Mock(), event=lambda *said: noted.append(said))
    conductor._supervisor = SimpleNamespace(
        steering=Mock(), mending=Mock(), keep_store=store.keep, stopped_by_signal=False, ledger=None
    )
    deadlines, recording = SimpleNamespace(drain=10.0, start=10.0), SimpleNamespace(plots=False)
    conductor._run_file = SimpleNamespace(deadlines=deadlines, recording=recording)
    conductor._end(parts)
    assert worker.state == "ended" and store.asked == 3 and noted == []


def conductor_of(workers: list, **deadlines: float) -> tuple[Conductor, list]:
    """One whose parts are fakes, and the events it tells of."""
    noted: list = []
    conductor = object.__new__(Conductor)
    conductor._journal = SimpleNamespace(enter=Mock(), show=Mock(), event=lambda *said: noted.append(said))
    learner = SimpleNamespace(stats={"doing": "publishing the first weights"}, log="logs/learner-0.log")
    conductor._supervisor = Mock(started=False, stopped_by_signal=False, learner=learner)
    section = SimpleNamespace(**({"drain": 10.0, "start": 10.0} | deadlines))
    conductor._run_file = SimpleNamespace(deadlines=section, recording=SimpleNamespace(plots=False))
    conductor._asked = Interruption()
    return conductor, noted


def test_a_worker_that_does_not_drain_in_time_is_named_and_the_run_ends_without_it(tmp_path):
    def worker(name: str, ends: bool) -> SimpleNamespace:
        one = SimpleNamespace(name=name, state="running", handle=SimpleNamespace(request_drain=Mock()))
        one.poll = lambda _: setattr(one, "state", "ended" if ends else "running")
        return one

    workers = [worker("rollout-0", True), worker("rollout-1", False)]
    conductor, noted = conductor_of(workers, drain=0.3)
    began = time.monotonic()
    conductor._end(SimpleNamespace(workers=workers, members=workers, host=SimpleNamespace(surely=Mock())))
    assert 0.3 <= time.monotonic() - began < 5
    assert noted == [("warning", "rollout-1 did not drain within 0.3 s (deadlines.drain) and is ended")]


def test_first_weights_that_never_come_end_the_run_with_what_the_learner_does(tmp_path):
    rank = SimpleNamespace(state="ready", poll=Mock(), run=Mock())
    conductor, _ = conductor_of([], start=0.3)
    parts = SimpleNamespace(members=[rank], learners=[rank], learners_prepared=lambda _: True)
    said = (
        r"waited 0 s \(deadlines\.start\) for the learner to publish its first weights; it is publishing the first "
        r"weights\. Its log is logs/learner-0\.log"
    )
    with pytest.raises(DeadlinePassed, match=said):
        conductor._start(parts)


KILLED = (ray.exceptions.ActorDiedError, "learner-0 was killed after its work was done")
HANGS = (ray.exceptions.GetTimeoutError, r"waited 7 s (deadlines.drain) for the last report of learner-0, whose work")


@pytest.mark.parametrize(("raised", "said"), [KILLED, HANGS], ids=["killed", "hangs"])
@pytest.mark.parametrize("told", [True, False], ids=["has told of its last step", "has not"])
def test_a_learner_that_is_gone_after_its_work_was_done_does_not_make_the_run_fail(
    tmp_path, monkeypatch, told, raised, said
):
    """Its checkpoint and its model are on disk; what it had not told is read from the checkpoint."""
    directory = RunDir.create(tmp_path, "sort", "name: sort\n")
    checkpoints.begin(directory.checkpoints, Version(0, 7))
    facts = {"ranks": 1, "zero_stage": 0, "dtype": "float32", "config_hash": "", "updates": 7, "tokens": 70}
    checkpoints.seal(directory.checkpoints, Version(0, 7), LedgerMemo(1, 1, {}, (), {}), {"reward/mean": 0.5}, facts)

    monkeypatch.setattr(ray, "get", Mock(side_effect=raised))
    journal = Journal(directory, "sort", RecordingSection(), LimitsSection(), None)
    journal.begin(Version(0, 0))
    journal.step(Version(0, 7 if told else 6), {"reward/mean": 0.5 if told else 0.25}, [], 1.0)
    learner = Member("learner-0", "learner", tmp_path / "none.log", start=lambda _: None)
    learner.handle, learner.state = SimpleNamespace(stats=Mock()), "ended"
    supervisor = object.__new__(Supervisor)
    supervisor._parts, supervisor._journal = SimpleNamespace(learners=[learner]), journal
    supervisor._directory, supervisor.ended_at = directory, 0.0
    supervisor.hear_the_end(7)
    assert journal.version == Version(0, 7) and supervisor.ended_at > 0
    assert read_rows(directory.metrics)[-1]["reward/mean"] == 0.5
    (warning,) = [event for event in directory.read_events() if event.kind == "warning"]
    assert said in warning.message


def test_nor_does_one_that_is_killed_after_its_fine_tuning(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "get", Mock(side_effect=ray.exceptions.ActorDiedError))
    rank = Member("sft-0", "learner", tmp_path / "none.log", start=lambda _: None)
    rank.handle, rank.state, rank.result = Mock(), "ended", "the data is used up"
    monkeypatch.setattr(rank, "run", lambda: None)
    tuning = object.__new__(_Tuning)
    tuning._journal, tuning._asked, tuning._record = Mock(), Interruption(), Mock()
    tuning._run_file = SimpleNamespace(
        deadlines=SimpleNamespace(drain=10.0, start=10.0, silence=10.0, blame=5.0),
        recording=SimpleNamespace(plots=False),
    )
    assert tuning._follow([rank]) == "the data is used up"
    assert "sft-0 was killed after its work was done" in tuning._journal.warn.call_args.args[0]
