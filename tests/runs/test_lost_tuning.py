"""A rank of supervised fine-tuning that dies or hangs: the others only wait for it, and the run ends with its name."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import demo
import pytest

import penstock
from benchmarks.drills import Onlooker, played
from penstock.deploy.fleet import ActorLost
from penstock.services.rundir import RunDir, runs_in

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.story]
PATIENT = {"deadlines.silence": 200.0, "sft.collective_timeout": 200.0}
SILENT = r"^sft-1 has been silent for 1\d s while fine-tuning.*\(deadlines.silence is 12 s\): its process has not"
KILLED = r"^sft-1 died: its process \d+ .*SIGKILL"


def tuned_until(folder: Path, strike: signal.Signals, **deadlines: float) -> tuple[str, float, RunDir]:
    """(what the run failed with, seconds after its second rank was struck, its directory)."""
    struck: list[float] = []

    def play(onlooker: Onlooker) -> None:
        struck.append(time.monotonic())
        os.kill(onlooker.pid_of("sft-1"), strike)

    inputs = demo.prepare(0, folder)
    overrides = [
        *(f"runs_dir={folder / 'runs'}", f"model.path={inputs / 'model'}", "sft.ranks=2", "sft.epochs=1000"),
        *demo.data_of(inputs, **{"data.sources.demonstrations.path": "sft.jsonl"}),
        *(f"{key}={value:g}" for key, value in (PATIENT | deadlines).items()),
    ]
    with pytest.raises(ActorLost) as lost:
        played(demo.HERE / "sft.yaml", overrides, play, penstock.sft)
    (run,) = runs_in(folder / "runs")
    return str(lost.value), time.monotonic() - struck[0], run


@pytest.mark.parametrize(
    ("strike", "deadlines", "said", "seconds"),
    [
        (signal.SIGKILL, {}, KILLED, (0, 30)),
        (signal.SIGSTOP, {"deadlines.silence": 12.0}, SILENT, (10, 40)),
    ],
    ids=["killed", "silent"],
)
def test_it_ends_with_the_name_of_the_rank_that_the_other_waited_for(tmp_path, strike, deadlines, said, seconds):
    cause, took, run = tuned_until(tmp_path, strike, **deadlines)
    first = cause.splitlines()[0]
    assert re.search(said, cause), cause
    assert seconds[0] <= took <= seconds[1]
    assert run.read_summary()["outcome"] == "failed" and run.read_summary()["why"] == cause
    assert first in [event.message.splitlines()[0] for event in run.read_events() if event.kind == "died"]
