"""How long a run stands after a kill: `python -m benchmarks.recovery [--run drill carry] [--rounds 2]`.

A run with one rollout worker and `max_lag` 0, so that nothing is in store that would hide the gap. In turns its worker,
its learner and its Redis server get SIGKILL while it trains:

    next_step   seconds from the kill to the next trained step; for the worker to the next but one, which is the first
                that needs groups that it had not put yet
    resumed     whether the run had to be resumed for it, by `penstock resume` at once when its driver has ended

drill   a paced generator in the engine's place: what the run itself takes
carry   the carry recipe, where an engine of vLLM or of DeepSpeed has to start again

Prints one JSON line, seconds as median and quartiles over the rounds. There is no goal.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measuring import Line, parser, spread
from benchmarks.watching import RUNS, WITHOUT_END
from penstock.services.metrics import read_rows
from penstock.services.rundir import RunDir

TARGETS = ("worker", "learner", "redis")
STEADY = 3
"""Steps between two kills."""
START_DEADLINE, DEADLINE, END_DEADLINE = 300.0, 240.0, 120.0
LOOK = 0.05
ONE_WORKER = ("rollout.workers=1", "rollout.max_restarts=50", "staleness.max_lag=0", "checkpoints.every=5")
PENSTOCK = str(Path(sys.executable).parent / "penstock")


class Killed:
    """A run that goes on, in a process of its own that may be started again."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._log = (folder / "log").open("ab")
        self._driver = self._start([PENSTOCK, "train", *command, f"runs_dir={folder / 'runs'}"])
        self.directory = self._wait_for_directory(folder / "runs")

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=self._log, stderr=self._log)

    def _wait_for_directory(self, runs: Path) -> RunDir:
        ends = time.monotonic() + START_DEADLINE
        while time.monotonic() < ends and self._driver.poll() is None:
            for path in runs.glob("*-*"):
                if (path / "config.yaml").is_file():
                    return RunDir.open(path)
            time.sleep(LOOK)
        raise RuntimeError(f"the run has not started; its output is {self._log.name}")

    def steps(self) -> list[tuple[float, int]]:
        """When, and which, in the order in which they were made."""
        return [(row["time"], int(row["step"])) for row in read_rows(self.directory.metrics) if "batch/tokens" in row]

    def await_steps(self, count: int, since: float, deadline: float) -> tuple[float, bool]:
        """When the `count`-th step after `since` was made, and whether the run had to be resumed for it."""
        ends, resumed = time.monotonic() + deadline, False
        while time.monotonic() < ends:
            later = [at for at, _ in self.steps() if at > since]
            if len(later) >= count:
                return later[count - 1], resumed
            if self._driver.poll() is not None:
                resumed = True
                self._driver = self._start([PENSTOCK, "resume", str(self.directory.path)])
            time.sleep(LOOK)
        raise TimeoutError(f"no step for {deadline:.0f} s; the run's output is {self._log.name}")

    def kill(self, target: str) -> float:
        """SIGKILL to it; when."""
        process = self._process(target)
        at = time.time()
        process.kill()
        return at

    def _process(self, target: str) -> psutil.Process:
        if target == "redis":
            for child in psutil.Process(self._driver.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if "redis-server" in child.name():
                        return child
            raise RuntimeError("the run has no Redis server of its own")
        role = {"worker": "rollout", "learner": "learner"}[target]
        status = self.directory.read_status() or {}
        return psutil.Process(next(w["pid"] for w in status["workers"] if w["role"] == role and w["pid"]))

    def end(self) -> None:
        """By Ctrl-C, and by force when that does not help."""
        if self._driver.poll() is None:
            self._driver.send_signal(signal.SIGINT)
            try:
                self._driver.wait(END_DEADLINE)
            except subprocess.TimeoutExpired:
                self._driver.kill()
        self._log.close()


@contextmanager
def running(name: str, folder: Path) -> Iterator[Killed]:
    """A run that trains."""
    run_file, *overrides = RUNS[name](folder)
    overrides = [o for o in overrides if not o.startswith("rollout.workers")]
    killed = Killed([run_file, *overrides, *WITHOUT_END, *ONE_WORKER], folder)
    try:
        killed.await_steps(STEADY, 0.0, START_DEADLINE)
        yield killed
    finally:
        killed.end()


def measure(name: str, rounds: int, targets: list[str]) -> dict[str, Any]:
    """Every target in turn, so many times."""
    found: dict[str, list[float]] = defaultdict(list)
    resumed: dict[str, int] = defaultdict(int)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder, running(name, Path(folder)) as run:
        for _ in range(rounds):
            for target in targets:
                at = run.kill(target)
                stepped, again = run.await_steps(2 if target == "worker" else 1, at, DEADLINE)
                found[target].append(stepped - at)
                resumed[target] += again
                run.await_steps(STEADY, stepped, DEADLINE)
        restarts = sum(event.kind == "restarted" for event in run.directory.read_events())
    return {
        target: {"next_step": spread(seconds, 2), "resumed": resumed[target]} for target, seconds in found.items()
    } | {"restarted_events": restarts}


def main() -> None:
    """Measure and print the line."""
    options = parser(__doc__)
    options.add_argument("--run", nargs="+", choices=RUNS, default=["drill", "carry"])
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    args = options.parse_args()
    line = Line("recovery", goal=None)
    line.end({"runs": {name: measure(name, args.rounds, args.targets) for name in args.run}}, args.keep)


if __name__ == "__main__":
    main()
