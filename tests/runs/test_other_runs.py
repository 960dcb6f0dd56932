"""The same recipe in other circumstances: synchronous, on a Redis server, with a worker killed, stopped and resumed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import RECIPE, STEPS, processes_of

import penstock
from penstock.deploy.view import RunView
from penstock.services.rundir import RunDir
from penstock.services.store.binary import find_binary

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_with_max_lag_zero_the_same_code_is_the_synchronous_system(overrides_of):
    """With a frozen reference too: before the first update it is the policy itself, later it is not."""
    overrides = [*overrides_of, "staleness.max_lag=0", "algorithm.kl.coefficient=0.001"]
    too_strict = "recording.mismatch_warning=1e-9"
    run = penstock.train(RECIPE / "grpo.yaml", [*overrides, too_strict, "name=carry-sync"])
    summary = run.summary
    assert run.metrics["off_policy/max"].max() == 0
    assert run.metrics["mismatch/max"].max() < 1e-4
    warned = [event.message for event in RunDir.open(run.dir).read_events() if event.kind == "warning"]
    for looked_at in ("nats on the probe of version", "nats on tokens of version"):  # at the start, and on the way
        assert any(looked_at in message and "(recording.mismatch_warning is 1e-09)" in message for message in warned)
    found = summary["evaluation"]["eval/greedy/accuracy"]
    assert found["after"] >= found["before"] + 0.20
    assert summary["ledger"]["balanced"]
    assert "stale" not in summary["ledger"]["dropped"]
    reference = run.metrics["kl/reference"].dropna().tolist()
    assert abs(reference[0]) < 1e-8
    assert reference[-1] > 1e-3


@pytest.fixture
def redis_on_tcp(tmp_path, monkeypatch):
    """A Redis server that is none of the run's, behind a password."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    configuration = tmp_path / "redis.conf"
    configuration.write_text(f"port {port}\nbind 127.0.0.1\nrequirepass open-sesame\nappendonly yes\ndir {tmp_path}\n")
    server = subprocess.Popen([find_binary(), configuration], stdout=subprocess.DEVNULL)
    monkeypatch.setenv("PENSTOCK_STORE_PASSWORD", "open-sesame")
    yield f"redis://127.0.0.1:{port}/0"
    server.terminate()
    server.wait(30)


class KillsAWorker:
    """A display that kills one rollout worker with SIGKILL once the run has made a few steps. Before that it looks
    which processes bear the run's mark, so that a later look that finds none means something."""

    def __init__(self) -> None:
        self.killed: int | None = None
        self.marked: list[str] = []

    def update(self, view: RunView) -> None:
        victim = next((w for w in view.workers if w.name == "rollout-0"), None)
        if self.killed is None and view.step >= 3 and victim is not None and victim.pid:
            self.marked = processes_of(Path(view.run_dir))
            self.killed = victim.pid
            os.kill(victim.pid, signal.SIGKILL)


@pytest.mark.story
def test_on_a_redis_server_over_tcp_a_killed_worker_is_replaced_and_nothing_is_lost(overrides_of, redis_on_tcp):
    """And two learner ranks, so that the whole run goes through their collectives as well."""
    killer = KillsAWorker()
    overrides = [
        *overrides_of,
        f"store.url={redis_on_tcp}",
        "rollout.lease_seconds=5",
        "limits.steps=30",
        "learner.ranks=2",
    ]
    run = penstock.train(RECIPE / "grpo.yaml", [*overrides, "name=carry-redis"], display=killer)
    summary = run.summary
    assert killer.killed is not None
    assert sum("ray::" in line for line in killer.marked) >= 4
    assert processes_of(run.dir) == []
    assert summary["restarts"] == {"rollout-0": 1}
    assert summary["ledger"]["balanced"]
    assert summary["ledger"]["by_state"]["committed"] == 30 * 32
    assert summary["lag"]["max"] <= 2
    died = next(event for event in run.events if event.kind == "died")
    assert "rollout-0 died" in died.message and "SIGKILL" in died.message
    everything = "".join(
        p.read_text(errors="replace") for p in run.dir.rglob("*") if p.suffix in {".yaml", ".jsonl", ".json", ".log"}
    )
    assert "open-sesame" not in everything


PPO = (
    "algorithm.name=ppo",
    "algorithm.value.learning_rate=1e-3",
    "algorithm.value.warmup_steps=2",
    "algorithm.kl.coefficient=0.01",
    "algorithm.kl.controller={kind: proportional, target: 0.05}",
    "learner.mini_batches=2",
    "learner.epochs=2",
    "rollout.workers=1",
)
"""With a value model of its own, several updates per step, and a penalty that adapts; the run that is stopped by the
other signal has two workers."""


@pytest.mark.parametrize(
    ("number", "row"),
    [
        pytest.param(signal.SIGINT, (), marks=pytest.mark.story, id="ctrl-c"),
        pytest.param(signal.SIGTERM, PPO, id="sigterm-of-ppo"),
    ],
)
def test_a_signal_ends_a_run_cleanly_and_resume_goes_on_where_it_stopped(overrides_of, home, number, row):
    overrides_of = [*overrides_of, *row]
    name = f"carry-stopped-{number.name.lower()}"
    command = [str(Path(sys.executable).parent / "penstock"), "train", str(RECIPE / "grpo.yaml"), *overrides_of]
    process = subprocess.Popen([*command, f"name={name}"], stdout=subprocess.PIPE, text=True)
    interrupt_at_step(process, home / f"{name}-{time.strftime('%Y%m%d')}-1", number, 4)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130, said
    run = penstock.open_run(next(home.glob(f"{name}-*")))
    stopped_at = run.summary["steps"]
    assert run.summary["outcome"] == "stopped"
    assert "penstock resume" in said
    assert 4 <= stopped_at < STEPS
    assert processes_of(run.dir) == []

    run = penstock.resume(run.dir)
    assert run.summary["outcome"] == "finished"
    assert run.summary["steps"] == STEPS
    assert run.summary["steps_of_this_start"] == STEPS - stopped_at
    assert run.summary["version"] == f"1.{STEPS}"
    ledger = run.summary["ledger"]
    assert ledger["balanced"]
    assert ledger["by_state"]["committed"] == STEPS * 32
    assert run.metrics["step"].tolist() == list(range(STEPS + 1))
    if row:
        values_learn_and_the_coefficient_goes_on(run, stopped_at)


def values_learn_and_the_coefficient_goes_on(run: penstock.Run, stopped_at: int) -> None:
    """And the policy does; β moves by at most 2 % per step, also from before the stop to after."""
    table = run.metrics.set_index("step")
    rewards = table["reward/mean"].dropna().tolist()
    assert rewards[-1] > rewards[0] + 0.1
    explained = table["critic/explained_variance"].dropna().tolist()
    assert explained[0] == 0  # values start at 0
    assert max(explained) > 0.2
    betas = table["actor/kl_coefficient"].dropna()
    ratios = (betas / betas.shift()).dropna()
    assert ((ratios > 0.979) & (ratios < 1.021)).all()
    assert betas.loc[stopped_at + 1] != 0.01


def interrupt_at_step(process: subprocess.Popen, run_dir: Path, number: signal.Signals, step: int) -> None:
    """Send a signal once the run has made `step` steps, from a thread; its output is read meanwhile."""

    def watch() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.3)
            status = RunDir(run_dir).read_status() if run_dir.is_dir() else None
            if status and status["phase"] == "training" and status["step"] >= step:
                process.send_signal(number)
                return

    threading.Thread(target=watch, daemon=True).start()
