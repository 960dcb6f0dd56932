"""Nothing breaks in these drills, and yet it goes slowly or not at all: a judge that thinks longer than a lease lasts,
prompts that are all hopeless, a store that is full. The run waits for what is worth it, and else says why it ends."""

from __future__ import annotations

import time

import demo
import pytest
from frozen_thread import busiest, freeze

import penstock
from benchmarks.drills import RECIPE, Onlooker, inputs_in, played
from penstock.services.control import Stop

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.story]

DRILL = RECIPE / "drill.yaml"
JUDGES = """
import time

def thinks(completions, **columns):
    time.sleep(11)
    return [float(len(text) % 2) for text in completions]

def never(completions, **columns):
    return [0.0] * len(completions)
"""


@pytest.fixture(autouse=True)
def judges(rewards):
    rewards("judges", JUDGES)


def test_a_judge_that_thinks_for_longer_than_two_leases_costs_no_group(tmp_path):
    judge = "reward.rules={thinks: {rule: 'judges:thinks', timeout: 60}}"
    patient = ("rollout.lease_seconds=5", "reward.workers=8", "limits.steps=3", "name=drill-judge")
    run = penstock.train(DRILL, [*inputs_in(tmp_path), judge, *patient])
    ledger = run.summary["ledger"]
    assert run.summary["outcome"] == "finished" and run.summary["steps"] == 3
    assert ledger["redelivered"] == 0 and ledger["balanced"]
    assert ledger["by_state"]["committed"] == 8 * 3
    assert not [event for event in run.events if event.kind in ("died", "restarted")]


def test_a_real_engine_that_takes_long_to_start_or_stands_still_for_two_leases_is_not_dead(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))  # nothing is compiled yet

    def play(onlooker: Onlooker) -> None:
        pid = onlooker.pid_of("rollout-0")
        thread = busiest(pid)
        freeze(pid, thread, seconds=9)
        time.sleep(9)
        step = onlooker.step
        onlooker.wait("the run goes on", lambda: onlooker.step >= step + 5, 60)
        onlooker.control.send(Stop("the story is over"), "story")

    made = demo.prepare(0, tmp_path)  # the engine's kernels have no heads as small as a drill's
    engine = ("engine.kind=vllm", "engine.kv_cache_gib=0.25", "engine.max_model_len=32", "rollout.workers=1")
    small = ("rollout.sampling.max_tokens=6", f"model.path={made / 'model'}", f"runs_dir={tmp_path}", "name=drill-slow")
    short = ("rollout.lease_seconds=4", "deadlines.silence=14", "limits.steps=100000")
    data = demo.data_of(made, **{"data.sources.sums.path": "train.jsonl"})
    run = played(DRILL, [*engine, *small, *short, *data], play)
    (first,) = [event.facts["seconds"] for event in run.events if event.kind == "delivered"]
    assert first > 14, "it took longer to start and compile than anybody who is at work may be silent"
    assert run.metrics["time"].diff().max() > 4, "once there was nothing left that had been generated ahead"
    assert run.summary["restarts"] == {} and not [event for event in run.events if event.kind == "died"]
    assert run.summary["ledger"]["redelivered"] == 0 and run.summary["ledger"]["balanced"]


def test_prompts_that_are_all_hopeless_end_the_run_with_that_after_so_many_refills(tmp_path):
    hopeless = ("reward.rules={never: {rule: 'judges:never'}}", "algorithm.group_filter=signal")
    few = ("staleness.refill_attempts=2", "limits.steps=100000", "name=drill-hopeless")
    run = penstock.train(DRILL, [*inputs_in(tmp_path), *hopeless, *few])
    assert run.summary["why"].startswith("no_signal: the step from version 0.0 found 0 of 8 groups with signal")
    assert "had all answers at the reward 0" in run.summary["why"]
    assert run.summary["steps"] == 0 and run.summary["ledger"]["balanced"]
    assert 2 * 8 <= run.summary["ledger"]["dropped"]["no_signal"] <= 4 * 8


def test_a_full_store_shuts_the_gate_and_a_checkpoint_ahead_of_its_time_opens_it(tmp_path):
    bound = 2**20
    kept = ("archive.every=0", f"store.max_bytes={bound}", "checkpoints.every=1000", "name=drill-full-store")
    large = ("learner.groups_per_step=64", "rollout.group_size=16", "rollout.max_groups=64", "staleness.max_lag=1")
    fast = ("engine.paced.tokens_per_second=100000", "engine.max_num_seqs=512", "rollout.workers=1", "limits.steps=12")
    run = penstock.train(DRILL, [*inputs_in(tmp_path), *kept, *large, *fast])
    assert run.summary["outcome"] == "finished" and run.summary["steps"] == 12
    early = [event for event in run.events if event.kind == "checkpoint"][:-1]
    assert early, "it was due at the end only"
    assert run.summary["ledger"]["balanced"]
    assert run.summary["ledger"]["by_state"]["committed"] == 64 * 12
