"""Workers that join and leave a run on the real engines: nothing is lost, nothing is generated twice."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest
from conftest import RECIPE

import penstock
from penstock.deploy.view import RunView
from penstock.services.control import Gate, Refused, Remove, Scale, Stop
from penstock.services.mailbox import MailboxControl
from penstock.services.rundir import RunDir

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.story]
STEPS = 400
"""More than the story needs: it ends the run itself."""


class Screen:
    """Keeps what a person would see last."""

    def __init__(self) -> None:
        self.view: RunView | None = None

    def update(self, view: RunView) -> None:
        self.view = view

    def generating(self) -> list[str]:
        """Workers that have joined and are not about to leave."""
        there = self.view.workers if self.view else ()
        return [w.name for w in there if w.role == "rollout" and w.version and w.state != "leaving"]

    def wait(self, what: str, true: Callable[[], bool], deadline: float = 240) -> None:
        ends = time.monotonic() + deadline
        while not true():
            assert time.monotonic() < ends, f"waited {deadline} s until {what}; the last view was {self.view}"
            time.sleep(0.1)

    def pid_of(self, name: str) -> int:
        assert self.view is not None
        return next(worker.pid for worker in self.view.workers if worker.name == name and worker.pid)


def events_of(directory: RunDir, kind: str) -> list[str]:
    return [str(event.facts["name"]) for event in directory.read_events() if event.kind == kind]


class Story(threading.Thread):
    """One worker, three, one of them killed while it joins; one again, one killed while it leaves; two; the end.
    Scorers meanwhile: one, two, one of them killed; one again, the first leaves."""

    def __init__(self, screen: Screen, home) -> None:
        super().__init__(daemon=True)
        self.screen, self.home = screen, home
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self.tell()
        except BaseException as error:  # noqa: BLE001  (raised again by the test)
            self.failure = error

    def tell(self) -> None:
        screen = self.screen
        screen.wait("the run trains", lambda: screen.view is not None and screen.view.step >= 2)
        assert screen.view is not None
        directory = RunDir.open(screen.view.run_dir)
        control = MailboxControl(directory)
        with pytest.raises(Refused, match=r"more than rollout.max_workers, which is 3"):
            control.send(Scale("rollout", 4), "story")
        control.send(Scale("rollout", 3), "story")
        screen.wait("rollout-1 has a process", lambda: "rollout-1" in self.started())
        os.kill(screen.pid_of("rollout-1"), signal.SIGKILL)
        control.send(Scale("scorer", 2), "story")
        screen.wait("three generate", lambda: len(screen.generating()) == 3)
        screen.wait("two score", lambda: "scorer-1" in events_of(directory, "joined"))
        screen.wait("the second scorer has a process", lambda: "scorer-1" in self.started())
        os.kill(screen.pid_of("scorer-1"), signal.SIGKILL)  # the other one judges its groups meanwhile
        screen.wait("it is back", lambda: "scorer-1" in events_of(directory, "restarted"))
        control.send(Remove("scorer-0"), "story")
        screen.wait("the first scorer has left", lambda: "scorer-0" in events_of(directory, "left"))
        control.send(Remove("rollout-2"), "story")
        screen.wait("it has left", lambda: "rollout-2" in events_of(directory, "left"))
        victim = screen.pid_of("rollout-1")
        os.kill(victim, signal.SIGSTOP)  # so that it cannot leave before it is killed
        control.send(Scale("rollout", 1), "story")
        os.kill(victim, signal.SIGKILL)
        screen.wait("the killed one is forgotten", lambda: "rollout-1" in events_of(directory, "left"))
        control.send(Scale("rollout", 2), "story")
        # By the events: a view may be a second old and still show those that have gone.
        screen.wait("the new one generates", lambda: "rollout-3" in events_of(directory, "joined"))
        control.send(Gate(open=False), "story")
        screen.wait("somebody waits at the closed gate", lambda: "waiting: held" in self.states())
        control.send(Gate(open=True), "story")
        assert screen.view is not None
        self.end_after(screen.view.step + 3, control)

    def started(self) -> list[str]:
        there = self.screen.view.workers if self.screen.view else ()
        return [worker.name for worker in there if worker.pid]

    def states(self) -> list[str]:
        there = self.screen.view.workers if self.screen.view else ()
        return [worker.state for worker in there]

    def end_after(self, step: int, control: MailboxControl) -> None:
        self.screen.wait("a few more steps", lambda: self.screen.view is not None and self.screen.view.step >= step)
        control.send(Stop("the story is over"), "story")


def test_workers_join_leave_and_die_on_the_way_and_the_ledger_is_balanced(overrides_of, home):
    screen = Screen()
    story = Story(screen, home)
    story.start()
    overrides = [
        *overrides_of,
        "name=carry-scaled",
        "rollout.workers=1",
        "rollout.max_workers=3",
        "rollout.lease_seconds=5",
        f"limits.steps={STEPS}",
        "algorithm.group_filter=all",
    ]
    run = penstock.train(RECIPE / "grpo.yaml", overrides, display=screen)
    story.join(30)
    if story.failure is not None:
        raise story.failure
    directory = RunDir.open(run.dir)
    assert events_of(directory, "left") == ["scorer-0", "rollout-2", "rollout-1"]
    assert set(events_of(directory, "joined")) >= {"rollout-0", "rollout-2", "rollout-3"}
    ledger = run.summary["ledger"]
    assert ledger["balanced"]
    assert ledger["by_state"]["committed"] == run.summary["steps"] * 32
    assert set(ledger["dropped"]) <= {"run_ended", "stale"}
    assert run.summary["lag"]["max"] <= 2
    steered = [event.facts["by"] for event in run.events if event.kind == "steered"]
    assert steered == ["story"] * 9
    assert run.summary["restarts"]["scorer-1"] == 1
    whole = run.summary["tokens"]["at_workers"]  # but for what a killed worker had not said yet
    assert whole["put"] >= run.summary["tokens"]["trained"]
    assert whole["sampled"] + whole["resumed"] >= whole["put"] + whole["handed_back"]
    assert set(run.summary["peak_memory_bytes"]) >= {"rollout-0", "rollout-1", "rollout-2", "rollout-3"}
