"""Every part of a run hangs in turn, alive and without a word, in a drill: the run says so within the deadline and goes
on or ends with the right error. A learner's rank that hangs is in `test_learner_recovery`."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import demo
import pytest
from frozen_thread import busiest
from frozen_thread import freeze as freeze_thread

import penstock
from benchmarks.drills import RECIPE, Onlooker, inputs_in, played
from penstock.deploy.fleet import ActorLost
from penstock.services.control import Stop
from penstock.services.store.server import PrivateServer

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.story]

DRILL = RECIPE / "drill.yaml"
OVERRIDES = ("limits.steps=100000", "store.deadline=12", "deadlines.silence=13", "rollout.workers=2")
NEVER = """
import time

def forever(completions, **columns):
    time.sleep(3600)
"""


def events(onlooker: Onlooker, kind: str, word: str) -> list[str]:
    return [e.message for e in onlooker.directory.read_events() if e.kind == kind and word in e.message]


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """(run, seconds until each was told of): the store, a rollout worker and a scorer are stopped with SIGSTOP, of the
    other worker only the thread that its engine steps in."""
    told: dict[str, float] = {}

    def freeze(onlooker: Onlooker, pid: int, name: str, kind: str, word: str, one_thread: bool = False) -> None:
        thread = busiest(pid) if one_thread else None
        began, before = time.monotonic(), len(events(onlooker, kind, word))
        if thread is not None:
            freeze_thread(pid, thread)
        else:
            os.kill(pid, signal.SIGSTOP)
        onlooker.wait(f"{name} is told of", lambda: len(events(onlooker, kind, word)) > before, 60)
        told[name] = time.monotonic() - began
        step = onlooker.step
        onlooker.wait(f"the run goes on without {name}", lambda: onlooker.step >= step + 5, 120)

    def play(onlooker: Onlooker) -> None:
        server = json.loads((onlooker.directory.store / "live" / "server.json").read_text())["pid"]
        freeze(onlooker, server, "store", "warning", "Whoever needs it waits")
        freeze(onlooker, onlooker.pid_of("rollout-1"), "rollout-1", "died", "rollout-1 has been silent")
        freeze(
            onlooker, onlooker.pid_of("rollout-0"), "rollout-0", "died", "rollout-0 has been silent", one_thread=True
        )
        freeze(onlooker, onlooker.pid_of("scorer-0"), "scorer-0", "died", "scorer-0 has been silent")
        onlooker.control.send(Stop("the story is over"), "story")

    folder: Path = tmp_path_factory.mktemp("hung")
    return played(DRILL, [*inputs_in(folder), *OVERRIDES, "name=drill-hung"], play), told


def test_each_is_told_of_within_its_deadline(frozen):
    _, told = frozen
    assert told["store"] < 12 and max(told["rollout-0"], told["rollout-1"], told["scorer-0"]) < 25


def test_of_an_engine_that_stops_stepping_in_a_process_that_answers_is_said_where_it_stands(frozen):
    run, _ = frozen
    cause = {event.facts["name"]: event.message for event in run.events if event.kind == "died"}
    assert "its process has not answered; it was ended" in cause["rollout-1"]
    assert "while generating" in cause["rollout-0"]
    assert re.search(r"its process answers, it stands in step, penstock/rollout/paced\.py:\d+; ", cause["rollout-0"])
    assert "--- thread" in (run.dir / "logs" / "rollout-0.log").read_text(), "and in its log what else goes on there"


def test_the_store_was_ended_and_began_again_from_its_file_before_anybody_gave_it_up(frozen):
    run, _ = frozen
    restarted = [e for e in run.events if e.kind == "restarted" and e.facts["name"] == "store"]
    assert len(restarted) == 1 and "had not answered for" in restarted[0].facts["cause"]
    assert run.summary["restarts"] == {"store": 1, "rollout-1": 1, "rollout-0": 1, "scorer-0": 1}


def test_nothing_is_lost(frozen):
    run, _ = frozen
    assert run.summary["outcome"] == "finished" and run.summary["ledger"]["balanced"]
    assert run.summary["ledger"]["by_state"]["committed"] == 8 * run.summary["steps"]
    assert set(run.summary["ledger"]["dropped"]) <= {"run_ended", "stale"}


def test_a_real_engine_whose_thread_stands_still_is_replaced_and_the_line_is_told(tmp_path):
    died = "rollout-0 has been silent"

    def play(onlooker: Onlooker) -> None:
        pid = onlooker.pid_of("rollout-0")
        freeze_thread(pid, busiest(pid))
        onlooker.wait("it is told of", lambda: events(onlooker, "died", died), 60)
        onlooker.wait("it is back", lambda: events(onlooker, "restarted", "rollout-0 is back"), 120)
        step = onlooker.step
        onlooker.wait("the run goes on", lambda: onlooker.step >= step + 3, 60)
        onlooker.control.send(Stop("the story is over"), "story")

    made = demo.prepare(0, tmp_path)  # the engine's kernels have no heads as small as a drill's
    engine = (
        *("engine.kind=vllm", "engine.kv_cache_gib=0.25", "engine.enforce_eager=true", "engine.max_model_len=32"),
        *("rollout.workers=1", "rollout.sampling.max_tokens=6", f"model.path={made / 'model'}", f"runs_dir={tmp_path}"),
        *demo.data_of(made, **{"data.sources.sums.path": "train.jsonl"}),
    )
    run = played(DRILL, [*OVERRIDES, *engine, "name=drill-engine"], play)
    (cause,) = [event.message for event in run.events if event.kind == "died"]
    assert re.search(r"silence is 13 s\): its process answers, it stands in \w+, penstock/\S+\.py:\d+", cause), cause
    assert run.summary["restarts"] == {"rollout-0": 1} and run.summary["ledger"]["balanced"]


def test_a_store_of_somebody_elses_that_hangs_ends_the_run_with_the_address_and_the_deadline(tmp_path, monkeypatch):
    with PrivateServer(tmp_path / "server", tmp_path / "redis.log") as server:
        monkeypatch.setenv("PENSTOCK_STORE_PASSWORD", server.address("drill").password or "")

        def play(onlooker: Onlooker) -> None:
            assert server.pid is not None
            os.kill(server.pid, signal.SIGSTOP)

        with pytest.raises(ActorLost, match=r"did not answer for 1\d\.\d s \(store\.deadline is 12 s\)"):
            played(DRILL, [*inputs_in(tmp_path), *OVERRIDES, f"store.url={server.url}", "name=drill-away"], play)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGCONT)


def test_a_reward_that_never_returns_is_ended_and_named_and_the_run_says_that_nothing_comes(tmp_path, rewards):
    rewards("slow", NEVER)
    rules = "reward.rules={forever: {rule: 'slow:forever', timeout: 1}}"
    few = "staleness.refill_attempts=2"
    run = penstock.train(DRILL, [*inputs_in(tmp_path), *OVERRIDES, rules, few, "name=drill-judge"])
    assert run.summary["why"].startswith("starved: ")
    assert "reward 'forever': timed out after 1.0 s" in run.summary["why"]
    assert any("unscored" in e.message and "forever" in e.message for e in run.events if e.kind == "warning")
    assert run.summary["ledger"]["balanced"]
