"""Does anything grow? `python -m benchmarks.soak [--minutes 30] [--times 20]`.

The parts of a run that hold something, at `times` the demo's rate of 20 groups of 8 answers a second, for `minutes`:

    worker       the rollout worker with a paced generator in the engine's place, and rules that answer at once
    store        the run's private Redis server
    feed         the learner's feed: whole groups in, 128 of them a step; advance, and a commit every tenth step
    supervisor   the real one, on a Ray cluster, with its journal; it looks at this ledger, and simulated actors answer
                 it and report train steps

Their resident memory is taken once a second. `slope` is that of a straight line through the means of ten seconds each,
in MiB per hour with twice its standard error; the first fifth of the time, in which pools fill, is left out. `drift` is
the slope over the time measured, as a share of the mean. Flat is what drifts by less than 5 % or is within twice the
error. The ledger must balance at every look and at the end. Prints one JSON line.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray

from benchmarks.measuring import Line, parser
from benchmarks.supervision_driver import CROWDS, Crowd, Simulated
from penstock.deploy.cluster import Cluster
from penstock.deploy.journal import Journal
from penstock.deploy.runfile import RunFile
from penstock.deploy.signals import Interruption
from penstock.deploy.supervisor import TICK, Supervisor
from penstock.services.rundir import RunDir

REAL_RATE = 20.0
"""Groups per second of the demo, which makes a step of 32 in about a second and a half."""
MEMBERS, GROUPS, COMMIT = 8, 128, 10
MEAN_LENGTH = 4.2
"""Tokens of the demo's answers."""
BLOCK, WARM, FLAT = 10.0, 0.2, 0.05


def play(address: Any, rate: float) -> None:
    """The worker's process, until it is ended."""
    import numpy as np

    from penstock.rollout.paced import PacedGenerator
    from penstock.rollout.worker import RolloutWorker, Rules
    from penstock.services.trajectory import Prompt, Sampling, Trajectory
    from penstock.services.versions import FIRST

    class Judge:
        """Every second answer is right."""

        def submit(self, _: Prompt, completions: Any) -> Future[tuple[Trajectory, ...]]:
            result: Future[tuple[Trajectory, ...]] = Future()
            scores = [float(number % 2) for number in range(len(completions))]
            pairs = zip(completions, scores, strict=True)
            result.set_result(tuple(Trajectory(completion=c, reward=s, parts={"even": s}) for c, s in pairs))
            return result

        def close(self) -> None: ...

    class Sums:
        """Prompts without end."""

        def __getitem__(self, index: int, /) -> Prompt:
            tokens = np.arange(2, 8, dtype=np.int32)
            return Prompt(index=index, source="sums", row=index, epoch=0, tokens=tokens, text="12+34=")

    generator = PacedGenerator(
        vocabulary=14,
        end=1,
        limit=32,
        slots=512,
        seed=0,
        name="paced",
        tokens_per_second=rate * MEMBERS * MEAN_LENGTH,
        mean_length=MEAN_LENGTH,
        text_of=lambda tokens: " ".join(map(str, tokens)),
    )
    generator._version = FIRST
    rules = Rules(group_size=MEMBERS, max_lag=2, max_groups=256)
    RolloutWorker("rollout-0", address.connect(), generator, Judge(), Sums(), Sampling(max_tokens=16), rules).run()


def eat(address: Any) -> None:
    """The feed's process, until it is ended."""
    from penstock.learner.algorithms.bound import bind
    from penstock.learner.config import AlgorithmSection
    from penstock.learner.feed import Feed

    store = address.connect()
    algorithm = bind(AlgorithmSection.model_validate({"name": "grpo"}))
    feed = Feed(store, algorithm, GROUPS, 100, 600.0, max_lag=lambda: 2)
    version = store.published()
    while True:
        fed = feed.next(version, lambda: "")
        assert len(fed.groups) == GROUPS, fed.ended
        version = version.next()
        store.advance(version)
        if version.step % COMMIT == 0:
            store.memo(version)
            store.commit(version)


@dataclass
class Watch:
    """Resident memory of processes over time, MiB."""

    processes: dict[str, psutil.Process]
    times: list[float] = field(default_factory=list)
    sizes: dict[str, list[float]] = field(default_factory=dict)

    def look(self, now: float) -> None:
        self.times.append(now)
        for name, process in self.processes.items():
            self.sizes.setdefault(name, []).append(process.memory_info().rss / 2**20)

    def report(self) -> dict[str, Any]:
        """Slope by process."""
        begin = self.times[0] + WARM * (self.times[-1] - self.times[0])
        return {name: self._line([(t, s) for t, s in zip(self.times, sizes, strict=True) if t >= begin])
                for name, sizes in self.sizes.items()}  # fmt: skip

    def _line(self, points: list[tuple[float, float]]) -> dict[str, Any]:
        blocks: dict[int, list[tuple[float, float]]] = {}
        for at, size in points:
            blocks.setdefault(int((at - points[0][0]) / BLOCK), []).append((at, size))
        x = [statistics.mean(at for at, _ in block) for block in blocks.values()]
        y = [statistics.mean(size for _, size in block) for block in blocks.values()]
        slope, level = statistics.linear_regression(x, y)
        rest = [b - (level + slope * a) for a, b in zip(x, y, strict=True)]
        spread = sum((a - statistics.mean(x)) ** 2 for a in x)
        error = (sum(r * r for r in rest) / max(1, len(x) - 2) / spread) ** 0.5
        drift = slope * (x[-1] - x[0]) / statistics.mean(y)
        return {
            "mib": round(statistics.mean(y), 1),
            "mib_per_hour": round(3600 * slope, 2),
            "twice_the_error": round(3600 * 2 * error, 2),
            "drift": round(drift, 4),
            "flat": abs(drift) < FLAT or abs(slope) < 2 * error,
        }


def run_file() -> RunFile:
    """Of the supervisor."""
    return RunFile.model_validate(
        {
            "model": {"path": "none"},
            "data": {"sources": {"none": {"path": "none"}}},
            "reward": {"rules": {"exact": {}}},
            "engine": {"kind": "paced"},
            "learner": {"groups_per_step": GROUPS},
            "staleness": {"max_lag": 2},
        }
    )


def soak(folder: Path, rate: float, seconds: float) -> dict[str, Any]:
    """All of it, for so long."""
    chosen = run_file()
    directory = RunDir.create(folder, "soak", chosen.to_yaml())
    journal = Journal(directory, "soak", chosen.recording, chosen.limits, None)
    cluster = Cluster(None, "penstock-bench", actors=CROWDS + 1)
    crowd = ray.remote(Crowd).options(num_cpus=0, max_concurrency=1000)
    context, others = multiprocessing.get_context("spawn"), []
    balanced = True
    try:
        crowds, learner = [crowd.remote() for _ in range(CROWDS)], crowd.remote(GROUPS / rate)
        with Simulated(chosen, directory, crowds, learner) as parts:
            others = [
                context.Process(target=play, args=(parts.host.address, rate), daemon=True),
                context.Process(target=eat, args=(parts.host.address,), daemon=True),
            ]
            for process in others:
                process.start()
            supervisor = Supervisor(parts, chosen, directory, journal, Interruption())
            supervisor.until(lambda: all(member.state != "starting" for member in parts.members))
            parts.begin_learning()
            server = parts.host._server.pid  # type: ignore[union-attr]
            pids = {"worker": others[0].pid, "feed": others[1].pid, "store": server, "supervisor": os.getpid()}
            watch = Watch({name: psutil.Process(pid) for name, pid in pids.items()})
            began, looked = time.monotonic(), 0.0
            first = parts.host.store.counts()
            while (now := time.monotonic() - began) < seconds:
                supervisor.tick()
                if now - looked >= 1.0:
                    looked = now
                    watch.look(now)
                    counts = parts.host.store.counts()
                    balanced = balanced and counts.balanced and counts.outstanding <= 3 * GROUPS
                time.sleep(TICK)
                if not all(process.is_alive() for process in others):
                    raise RuntimeError("the worker or the feed has ended; its traceback is above")
            last = parts.host.store.counts()
            for process in others:
                process.terminate()
                process.join(30)
    finally:
        for process in others:
            process.kill()
        cluster.close()
        journal.close()
    done = last.by_state["applied"] + last.by_state["committed"]
    done -= first.by_state["applied"] + first.by_state["committed"]
    through = last.issued - first.issued
    return {
        "minutes": round(seconds / 60, 1),
        "groups": through,
        "trained": done,
        "times_the_real_rate": round(through / seconds / REAL_RATE, 1),
        "memory": (memory := watch.report()),
        "balanced": balanced and last.balanced,
        "flat": all(each["flat"] for each in memory.values()),
    }


def main() -> None:
    """Measure and print the line."""
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=30.0)
    options.add_argument("--times", type=float, default=20.0)
    args = options.parse_args()
    line = Line("soak", goal=0)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        found = soak(Path(folder), args.times * REAL_RATE, 60 * args.minutes)
    line.end({**found, "met": found["flat"] and found["balanced"]}, args.keep)


if __name__ == "__main__":
    main()
