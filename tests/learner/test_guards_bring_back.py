"""Runs that go wrong, with guards and without: the real loop on the real engine, steered by the real guards.

Each story is told twice with the same seeds. Without its guard the run does not come back; with it, it does.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import msgspec
import numpy as np
import pytest
import torch
from learner_parts import MemorySender, Worker, tiny_model
from loop_parts import loop_of, many_small_tokens

from penstock.deploy.config import LimitsSection, RecordingSection
from penstock.deploy.fleet import Member
from penstock.deploy.guards.config import GuardSection
from penstock.deploy.guards.guardian import Guardian
from penstock.deploy.guards.live import Live
from penstock.deploy.journal import Journal
from penstock.deploy.steering import Levers, Steering
from penstock.learner.config import AlgorithmSection, LearnerSection
from penstock.learner.dials import Dials
from penstock.services.control import Resume
from penstock.services.logprob_model import LogprobModel
from penstock.services.logprobs import sequence_logprobs
from penstock.services.mailbox import MailboxControl
from penstock.services.replay import LedgerRules
from penstock.services.rundir import RunDir
from penstock.services.store.memory import MemoryStore
from penstock.services.versions import Version

pytestmark = pytest.mark.engine


class Referred(Worker):
    """With the log-probs of the model that the run began with as its reference."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.reference = LogprobModel(tiny_model())

    def answers(self, prompt):
        for trajectory in super().answers(prompt):
            row = (prompt.tokens, trajectory.completion.tokens)
            (logprobs,) = sequence_logprobs(self.reference, [row])
            yield msgspec.structs.replace(trajectory, reference_logprobs=logprobs)


class GuardedRun:
    """The loop, and around it what a driver does: steering, guards, an ear for commands. All of it in this process."""

    def __init__(self, team, folder: Path, guards: list[dict], *, steps: int, learning_rate: float, **cells) -> None:
        self.store, self.sender = MemoryStore(), MemorySender()
        learner = LearnerSection(groups_per_step=4, learning_rate=learning_rate)
        algorithm = AlgorithmSection.model_validate({"name": "grpo", **cells})
        self.loop = loop_of(
            team,
            self.store,
            self.sender,
            folder,
            steps=steps,
            checkpoint={"every": 2, "keep_last": 3},
            staleness={"max_lag": 0},
            archive={"every": 0},
            learner={"learning_rate": learning_rate},
            **cells,
        )
        self.loop._report = self.hear
        (folder / "runs").mkdir()
        self.directory = RunDir.create(folder / "runs", "guarded", "name: guarded\n")
        # The loop writes where the driver looks.
        self.directory.checkpoints.rmdir()
        self.directory.checkpoints.symlink_to(folder / "checkpoints")
        self.journal = Journal(self.directory, "guarded", RecordingSection(), LimitsSection(), None)
        requests = self.loop.requests
        handle = SimpleNamespace(
            request_checkpoint=remote(lambda: setattr(requests, "checkpoint", True)),
            request_pause=remote(requests.pause),
            request_turn=remote(requests.turn),
            request_roll_back=remote(requests.roll_back),
        )
        rank = Member(
            "learner-0", "learner", folder / "none.log", start=lambda _: handle, handle=handle, state="running"
        )
        levers = Levers(lambda why: None, self.store.hold, self._bound)
        self.steering = Steering(
            self.directory, self.journal, SimpleNamespace(), lambda: rank, levers, Dials(algorithm, learner, 0)
        )
        made = [GuardSection.model_validate(guard) for guard in guards]
        self.guardian = Guardian(made, self.directory, self.journal, self.steering)
        self.live = Live()
        self.rows: list[dict[str, float]] = []

    def _bound(self, bound: int) -> None:
        self.store.amend(LedgerRules(bound, 4, None, 10**8))

    def hear(self, report: dict) -> None:
        """As the supervisor does, in the loop's own thread."""
        version = Version.parse(report["version"])
        if report["kind"] in ("started", "rolled_back"):
            self.journal.begin(version)
            self.guardian.begin_again(version.step)
            self.steering.begun(report["coefficients"], report["heard"])
        elif report["kind"] == "step":
            self.rows.append(report["metrics"])
            self.guardian.seen(report["metrics"], version.step)
            self.journal.step(version, report["metrics"], [], report["at"])
            self.steering.learned(report["coefficients"], report["heard"])
            self.live.stepped()
        self.guardian.act()

    def play(self, reward, worker=Referred) -> str:
        sampling = worker(self.store, self.sender, reward)
        sampling.quorum = 2
        sampling.start()
        over = threading.Event()
        glance = threading.Thread(target=self._glance, args=(over,))
        glance.start()
        try:
            return self.loop.run()
        finally:
            over.set()
            glance.join()
            sampling.stop.set()
            sampling.join(10)
            self.guardian.close()
            assert sampling.failure is None
            assert self.store.counts().balanced

    def _glance(self, over: threading.Event) -> None:
        """The driver's look, faster than once a second."""
        while not over.wait(0.05):
            self.guardian.look(self.live.read(self.store.counts()), self.journal.version.step)
            self.guardian.act()
            self.steering.look()

    def series(self, metric: str) -> list[float]:
        return [row[metric] for row in self.rows]

    def firings(self) -> int:
        return sum(event.kind == "guard" for event in self.directory.read_events())


def remote(call) -> SimpleNamespace:
    return SimpleNamespace(remote=call)


def told_twice(team, folder: Path, guard: dict, **settings) -> list[GuardedRun]:
    """The same run without the guard and with it."""
    runs = []
    for name, guards in (("without", []), ("with", [guard])):
        (folder / name).mkdir()
        torch.manual_seed(0)
        run = GuardedRun(team, folder / name, guards, learning_rate=0.02, group_filter="all", **settings)
        assert run.play(many_small_tokens) == "steps"
        runs.append(run)
    return runs


def test_a_kl_that_explodes_is_brought_back_by_a_roll_back_smaller_steps_and_a_heavier_penalty(team, tmp_path):
    guard = {
        "name": "kl_high",
        "when": "kl/reference > 0.8",
        "do": ["roll_back", {"scale": "learning_rate", "by": 0.1}, {"scale": "kl.coef", "by": 500, "at_most": 1.0}],
        "cooldown": 3,
        "exhausted": "stop",
    }
    without, guarded = told_twice(team, tmp_path, guard, steps=26, kl={"coefficient": 0.001})
    assert np.mean(without.series("kl/reference")[-5:]) > 1.6
    assert without.firings() == 0
    assert max(guarded.series("kl/reference")) > 0.8, "it began to explode here too"
    assert max(guarded.series("kl/reference")[-5:]) < 0.8
    assert 1 <= guarded.firings() <= 3
    assert guarded.loop.version.lineage == guarded.firings()
    assert guarded.series("actor/lr")[-1] == pytest.approx(0.02 * 0.1 ** guarded.firings())


def test_an_entropy_that_collapses_is_brought_back_by_a_bonus_and_smaller_steps(team, tmp_path):
    bonus = {"set": "entropy_coefficient", "to": 1.0}
    guard = {"when": "actor/entropy < 2", "do": [bonus, {"scale": "lr", "by": 0.5}], "cooldown": 10}
    without, guarded = told_twice(team, tmp_path, guard, steps=26)
    assert max(without.series("actor/entropy")[-5:]) < 0.5
    assert min(guarded.series("actor/entropy")) < 2, "it began to collapse here too"
    assert min(guarded.series("actor/entropy")[-5:]) > 2
    assert guarded.firings() >= 1


class Judge:
    """Scores until it breaks, and again once somebody has mended it."""

    def __init__(self, run: GuardedRun) -> None:
        self.run, self.mended = run, threading.Event()

    def __call__(self, tokens) -> float | None:
        broken = self.run.journal.version.step >= 3 and not self.mended.is_set()
        return None if broken else many_small_tokens(tokens)


class OnCall(BaseHTTPRequestHandler):
    """Whom the webhook wakes: mends the judge and lets the run go on."""

    judge: Judge
    told: list[dict]

    def do_POST(self) -> None:
        self.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()
        self.judge.mended.set()
        MailboxControl(self.judge.run.directory).send(Resume(), "on call")

    def log_message(self, *_: object) -> None:
        pass


def judged(team, folder: Path, guards: list[dict]) -> tuple[GuardedRun, Judge]:
    folder.mkdir()
    run = GuardedRun(team, folder, guards, steps=6, learning_rate=0.01, group_filter="all")
    run.directory.lock()  # as a driver does; whoever sends a command looks at it
    return run, Judge(run)


def test_a_run_whose_rewards_fail_ends_without_a_guard_and_goes_on_with_one_that_pauses_and_calls(team, tmp_path):
    run, judge = judged(team, tmp_path / "without", [])
    why = run.play(judge)
    assert "unscored" in why and len(run.rows) == 3

    class Called(OnCall):
        told: ClassVar[list[dict]] = []

    server = HTTPServer(("127.0.0.1", 0), Called)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    webhook = {"webhook": f"http://127.0.0.1:{server.server_port}/"}
    guard = {"when": "ledger/refused_share > 0.5", "for": 2, "do": ["pause", webhook], "cooldown": 100_000}
    run, judge = judged(team, tmp_path / "with", [guard])
    Called.judge = judge
    assert run.play(judge) == "steps"
    server.shutdown()
    assert len(run.rows) == 6
    assert [message["guard"] for message in Called.told] == ["ledger_refused_share"]
    steered = [
        (event.facts["by"], event.facts["asked"]["type"])
        for event in run.directory.read_events()
        if event.kind == "steered"
    ]
    assert steered == [("guard ledger_refused_share", "pause"), ("on call", "resume")]
