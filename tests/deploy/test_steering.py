"""What is asked of a run is carried out, or refused with the reason; either leaves an event. The actors are fakes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray.exceptions
from deploy_parts import Method, crew_of, scaling_of

from penstock.deploy import fleet
from penstock.deploy.config import LimitsSection, RecordingSection
from penstock.deploy.journal import Journal
from penstock.deploy.steering import Levers, Steering
from penstock.learner import checkpoints
from penstock.learner.config import AlgorithmSection, LearnerSection
from penstock.learner.dials import Dials
from penstock.services.contracts import StoreError
from penstock.services.control import (
    Answer,
    Asked,
    Checkpoint,
    Gate,
    Pause,
    Remove,
    Resume,
    RollBack,
    Scale,
    ScaleCoefficient,
    SetCoefficient,
    SetMaxLag,
    Stop,
)
from penstock.services.rundir import RunDir
from penstock.services.versions import Version


class Run:
    """Steering over a learner that only counts its calls, and a gate that remembers."""

    def __init__(self, directory: RunDir, workers: int = 1) -> None:
        self.directory = directory
        self.journal = Journal(directory, "steered", RecordingSection(), LimitsSection(), None)
        self.learner = crew_of(1).members[0]
        self.calls = {name: Method() for name in ("checkpoint", "pause", "turn", "roll_back")}
        self.learner.handle = SimpleNamespace(**{f"request_{name}": call for name, call in self.calls.items()})
        self.stops: list[str] = []
        self.gate: list[bool] = []
        self.bounds: list[int] = []
        self.store_away = False
        algorithm = AlgorithmSection.model_validate({"name": "grpo", "kl": {"coefficient": 0.01}})
        dials = Dials(algorithm, LearnerSection(learning_rate=1e-3), 2)
        self.steering = Steering(
            directory,
            self.journal,
            scaling_of(self.journal, workers),
            lambda: self.learner,
            Levers(self.stops.append, self._hold, self._bound),
            dials,
        )
        self.steering.begun(dials.start, 0)

    def _hold(self, held: bool) -> None:
        self._answer()
        self.gate.append(held)

    def _bound(self, bound: int) -> None:
        self._answer()
        self.bounds.append(bound)

    def _answer(self) -> None:
        if self.store_away:
            raise StoreError("the store does not answer")

    def ask(self, command) -> Answer:
        return self.steering.carry_out(Asked("1", "ada", 5.0, command))

    def turned(self) -> list[dict]:
        return [changes for changes, _ in self.calls["turn"].calls]


@pytest.fixture(autouse=True)
def no_processes(monkeypatch) -> None:
    monkeypatch.setattr(fleet.ray, "kill", lambda handle, no_restart: None)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(RunDir.create(tmp_path, "steered", "name: steered\n"))


def test_every_command_leaves_an_event_with_who_asked_and_what(run):
    run.journal.version = Version(0, 7)
    assert run.ask(Scale("rollout", 2)).done
    assert run.ask(Remove("rollout-9")) == Answer(
        False, "there is no worker or scorer 'rollout-9' that could leave; there are: rollout-0, rollout-1, scorer-0"
    )
    _, steered, refused = run.directory.read_events()
    assert (steered.kind, refused.kind) == ("steered", "refused")
    command = {"type": "scale", "role": "rollout", "count": 2}
    assert steered.facts == {"by": "ada", "asked": command, "at": 5.0, "step": 7}
    assert refused.message.startswith("ada: there is no worker or scorer")


def test_a_run_that_was_paused_when_its_driver_ended_is_paused_still_and_whoever_comes_lets_it_go_on(run):
    assert not run.steering.paused
    run.ask(Pause())
    assert run.steering.controls.paused_by == "ada"
    again = Run(run.directory)
    assert again.steering.controls.paused_by == "ada"
    assert again.gate == [True], "the ledger is told once the learner has begun"
    assert not again.ask(Pause()).done
    assert again.ask(Resume()).done
    assert again.gate == [True, False]
    assert not Run(run.directory).steering.paused


def test_a_cluster_that_does_not_answer_refuses_what_is_asked_and_ends_nothing(run, monkeypatch):
    def away(_: int) -> str:
        raise ray.exceptions.RpcError("the head is away")

    monkeypatch.setattr(run.steering._scaling["rollout"]._crew, "require_room", away)
    answer = run.ask(Scale("rollout", 2))
    assert not answer.done and "the head is away" in answer.text
    assert run.directory.read_events()[-1].kind == "refused"


def test_checkpoint_and_stop_reach_the_learner_and_are_refused_while_it_does_not_train(run):
    assert run.ask(Checkpoint()).done
    assert len(run.calls["checkpoint"].calls) == 1
    assert run.ask(Stop("enough")).done
    assert run.stops == ["stopped: enough"]
    run.learner.state = "ended"
    for command in (Checkpoint(), Stop(), Pause(), RollBack(), SetMaxLag(1), SetCoefficient("lr", 1e-4)):
        assert "the learner is not training" in run.ask(command).text
    assert len(run.stops) == 1


def test_before_the_first_weights_nothing_of_the_learner_can_be_steered(run):
    run.steering.learned({}, 0)
    assert "has not begun yet" in run.ask(Pause()).text


def test_the_gate_is_closed_and_opened_by_hand_and_a_store_that_is_away_is_an_answer(run):
    assert "no new prompts" in run.ask(Gate(open=False)).text
    assert not run.steering.controls.gate_open
    assert "left to the lag" in run.ask(Gate(open=True)).text
    assert run.gate == [True, False]
    run.store_away = True
    assert run.ask(Gate(open=False)) == Answer(False, "the store does not answer")
    assert run.steering.controls.gate_open


def test_a_pause_closes_the_gate_and_stops_the_learner_until_someone_lets_it_go_on(run):
    assert "is not paused" in run.ask(Resume()).text
    assert run.ask(Pause()).done
    assert run.steering.controls.paused_by == "ada"
    assert "paused already, by ada" in run.ask(Pause()).text
    assert run.ask(Resume()).done
    assert run.gate == [True, False]
    assert run.calls["pause"].calls == [(True, 1), (False, 2)]


def test_a_gate_closed_by_hand_stays_closed_after_a_pause_and_one_opened_during_a_pause_opens_after_it(run):
    for command in (Gate(open=False), Pause(), Resume()):
        run.ask(command)
    assert run.gate == [True, True, True]
    for command in (Pause(), Gate(open=True), Resume()):
        run.ask(command)
    assert run.gate[3:] == [True, True, False]


def test_a_coefficient_is_set_by_any_of_its_names_and_known_at_once(run):
    assert run.ask(SetCoefficient("kl.coef", 0.03)).text == "kl.coefficient 0.01 → 0.03, from the next train step on"
    assert run.ask(SetCoefficient("learner.learning_rate", 5e-4)).done
    assert run.turned() == [{"kl.coefficient": 0.03}, {"learning_rate": 5e-4}]
    assert run.steering.controls.coefficients["kl.coefficient"] == 0.03


def test_clip_means_both_bounds_and_each_is_multiplied(run):
    assert run.ask(ScaleCoefficient("clip", 0.5)).done
    assert run.turned() == [{"objective.clip_low": 0.1, "objective.clip_high": 0.1}]


def test_a_coefficient_is_multiplied_no_further_than_its_bounds_and_one_beyond_is_not_thrown_back(run):
    run.ask(ScaleCoefficient("kl.coef", 1.5, at_most=0.012))
    run.ask(ScaleCoefficient("kl.coef", 1.5, at_most=0.001))
    run.ask(ScaleCoefficient("kl.coef", 0.5, at_most=0.001))
    assert [changes["kl.coefficient"] for changes in run.turned()] == pytest.approx([0.012, 0.012, 0.006])


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (SetCoefficient("kl.ceof", 1.0), "nearest: kl.coef"),
        (SetCoefficient("learning_rate", 0.0), "learning_rate cannot be 0: input should be greater than 0"),
        (SetCoefficient("learning_rate", float("nan")), "must be a number"),
        (SetCoefficient("max_lag", 3), "has a command of its own"),
        (SetMaxLag(-1), "max_lag cannot be -1; allowed: whole numbers from 0 to 1024"),
        (ScaleCoefficient("clip", 100.0), "objective.clip_low cannot be 20: input should be less than or equal to 1"),
        (RollBack(), "none has been written yet"),
    ],
)
def test_what_cannot_be_is_refused_with_what_is_allowed_and_nothing_is_turned(run, command, said):
    answer = run.ask(command)
    assert not answer.done and said in answer.text
    assert run.turned() == []


def test_the_bound_on_the_lag_reaches_ledger_workers_and_learner(run):
    assert run.ask(SetMaxLag(5)).text == "max_lag 2 → 5"
    assert run.bounds == [5]
    assert run.turned() == [{"max_lag": 5.0}]
    run.store_away = True
    assert not run.ask(SetMaxLag(6)).done
    assert run.turned() == [{"max_lag": 5.0}], "where the ledger does not know of it, nobody does"


def test_what_was_asked_for_holds_again_after_the_learner_began_anew_also_when_the_store_is_away_at_first(run):
    run.ask(Pause())
    run.store_away = True
    run.steering.begun({**run.steering.controls.coefficients, "max_lag": 4.0}, 9)
    run.steering.look()
    assert (run.gate, run.bounds) == ([True], [])
    run.store_away = False
    run.steering.look()
    run.steering.look()
    assert (run.gate, run.bounds) == ([True, True], [4])


def test_a_roll_back_needs_a_checkpoint_that_is_old_enough(run, monkeypatch):
    run.journal.version = Version(0, 30)
    kept = [SimpleNamespace(version=Version(0, step)) for step in (10, 20)]
    monkeypatch.setattr(checkpoints, "find", lambda root: kept)
    assert "the kept ones are of steps 10, 20" in run.ask(RollBack(until=9)).text
    assert run.ask(RollBack(until=15)).done
    assert run.ask(RollBack()).done
    assert run.calls["roll_back"].calls == [(15, 0), (30, 0)]


def test_a_report_that_is_older_than_what_was_asked_for_undoes_nothing(run):
    before = dict(run.steering.coefficients)
    run.ask(SetMaxLag(4))
    run.ask(SetMaxLag(3))
    run.ask(ScaleCoefficient("lr", 0.5))
    run.steering.learned(before, 0)
    assert run.steering.coefficients["max_lag"] == 3.0
    run.ask(ScaleCoefficient("lr", 0.5))
    assert run.turned()[-1] == {"learning_rate": 1e-3 * 0.25}
    run.steering.begun({**before, "max_lag": 4.0}, 1)
    assert run.bounds == [4, 3, 3], "what was asked for last holds at the ledger, too"
    run.steering.learned({**before, "max_lag": 3.0, "learning_rate": 2.5e-4}, 4)
    assert run.steering.coefficients["learning_rate"] == 2.5e-4


def test_everyone_who_closes_the_gate_has_a_reason_of_his_own_and_a_person_opens_it_for_all(run):
    def gate(by: str, is_open: bool) -> Answer:
        return run.steering.carry_out(Asked("1", by, 5.0, Gate(open=is_open)))

    gate("guard a", False)
    gate("ada", False)
    assert gate("guard a", True).text == "the gate stays closed, by ada"
    gate("guard b", False)
    assert "left to the lag" in gate("ada", True).text
    assert run.gate == [True, True, True, True, False]
