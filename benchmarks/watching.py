"""What watching a run costs: CPU seconds of the exporters and the page's server over those of the run.

    python -m benchmarks.watching [--runs carry drill] [--seconds 90] [--unwatched]

carry       the carry recipe: two vLLM workers and a DeepSpeed learner
drill       the drill: nothing computes but a tiny learner, so that watching weighs most

Each run goes on for a while with its page open, which is asked once a second for what the overview shows, as a browser
does, and with a scrape of every node each 15 s, as Prometheus does. The CPU time of whoever asks and scrapes is not
counted. Measured while the run trains; starting and ending are left out. One JSON line per run, CPU in seconds:

    run        all processes of the run but the page's server: driver, actors, Ray, the store
    page       the page's server
    exporter   what the exporters' threads take in the driver and in the actors; in `run`, too
    trackers   likewise TensorBoard's thread in the driver
    lanes      likewise writing down what the actors did
    agent      Ray's agent, which passes the metrics on, and runs without watching, too; in `run`
    share      page + exporter + trackers + lanes over run without them, in percent
    with_agent the same with all of the agent's time among what watches: an upper bound

With `--unwatched` the same runs without page, exporters, trackers and scrapes follow, to compare.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks import measuring
from benchmarks.carry import HERE, inputs_of
from penstock.deploy.leftovers import marked
from penstock.services.rundir import RunDir

CLOCKS = Path(__file__).parent / "watching_clocks"
GOAL = 2.0
"""Percent."""
SCRAPE_SECONDS = 15.0
ASK_SECONDS = 1.0
LOOK_SECONDS = 1.0
WARM = 3
"""Steps before the measurement."""
START_DEADLINE = 300.0
END_DEADLINE = 120.0
UNWATCHED = ("dashboard.enabled=false", "tracking.prometheus=false", "tracking.tensorboard=false")
WITHOUT_END = ("limits.steps=null", "limits.minutes=30", "evaluation.every=0", "goals=[]", "recording.plots=false")


def carry(_: Path) -> list[str]:
    """Run file and overrides of the carry recipe, with the fine-tuned model that is made once."""
    model, data = inputs_of(0)
    where = [f"model.path={model}", f"data.sources.sums.path={data / 'train.jsonl'}"]
    return [str(HERE / "recipes" / "carry" / "grpo.yaml"), *where, "evaluation.data=null", "checkpoints.keep_best=null"]


def drill(folder: Path) -> list[str]:
    """The same of the drill, with two workers."""
    prepare = HERE / "recipes" / "drill" / "prepare.py"
    subprocess.run([sys.executable, prepare, folder], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    where = [f"model.path={folder / 'model'}", f"data.sources.sums.path={folder / 'sums.jsonl'}", "rollout.workers=2"]
    return [str(HERE / "recipes" / "drill" / "drill.yaml"), *where]


RUNS: dict[str, Callable[[Path], list[str]]] = {"carry": carry, "drill": drill}


class Meter:
    """CPU seconds of a run's processes by what they are, from `__enter__` on until `read`."""

    def __init__(self, driver: int, run_id: str) -> None:
        self._driver, self._run_id = psutil.Process(driver), run_id
        self._first: dict[psutil.Process, float] = {}
        self._last: dict[psutil.Process, float] = {}
        self._kind: dict[psutil.Process, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Meter:
        self._look()
        self._first = dict(self._last)  # a process that comes later has all of its time counted
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def read(self) -> Counter[str]:
        """Seconds by kind: page, agent, run (the rest)."""
        self._look()
        spent: Counter[str] = Counter()
        for process, seconds in self._last.items():
            spent[self._kind[process]] += seconds - self._first.get(process, 0.0)
        return spent

    def _run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        for process in {self._driver, *self._driver.children(recursive=True), *marked(self._run_id)}:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                self._last[process] = times.user + times.system
                self._kind.setdefault(process, _kind(process))


def _kind(process: psutil.Process) -> str:
    line = " ".join(process.cmdline())
    if "penstock.deploy.page" in line:
        return "page"
    return "agent" if "DashboardAgent" in line or "dashboard/agent.py" in line else "run"


def told(folder: Path) -> tuple[float, Counter[str]]:
    """What the clocks in all processes say: mean time of writing, seconds by label."""
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    spent: Counter[str] = Counter()
    for each in found:
        spent.update({label: seconds for label, seconds in each.items() if label != "at"})
    return sum(each["at"] for each in found) / max(1, len(found)), spent


@contextlib.contextmanager
def every(seconds: float, what: Callable[[], object]) -> Iterator[None]:
    """Inside, `what` is done again and again in a thread; what it raised is raised at the end."""
    over, failed = threading.Event(), []

    def run() -> None:
        while not over.wait(seconds):
            try:
                what()
            except Exception as error:  # noqa: BLE001
                failed.append(error)
                return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)
    if failed:
        raise failed[0]


@contextlib.contextmanager
def started(run_file: str, overrides: list[str], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], RunDir]]:
    """A run that trains; it is ended cleanly."""
    command = [
        str(Path(sys.executable).parent / "penstock"),
        "train",
        run_file,
        f"runs_dir={folder / 'runs'}",
        *overrides,
    ]
    paths = os.pathsep.join([str(CLOCKS), str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "CLOCKS": str(folder / "clocks")}
    (folder / "clocks").mkdir()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield process, _training(process, folder)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(END_DEADLINE)


def _training(process: subprocess.Popen[bytes], folder: Path) -> RunDir:
    """The run's directory, once it has made a few steps."""
    deadline = time.monotonic() + START_DEADLINE
    while time.monotonic() < deadline and process.poll() is None:
        for path in (folder / "runs").glob("*-*"):
            status = RunDir(path).read_status() if (path / "config.yaml").is_file() else None
            if status is not None and status["step"] >= WARM:
                return RunDir.open(path)
        time.sleep(0.5)
    raise RuntimeError(f"the run does not train: {(folder / 'log').read_text()[-2000:]}")


@contextlib.contextmanager
def looked_at(run: RunDir) -> Iterator[None]:
    """Inside, somebody has the page open, and Prometheus scrapes."""
    from benchmarks.page import Asker

    status = run.read_status()
    assert status is not None
    asker = Asker(status["page"])

    def scrape() -> None:
        for endpoint in status["scrape"]:
            with urllib.request.urlopen(f"http://{endpoint}/metrics", timeout=30) as answer:
                assert b"penstock_" in answer.read()

    with every(ASK_SECONDS, asker.ask), every(SCRAPE_SECONDS, scrape):
        yield


def measured(name: str, seconds: float, watched: bool) -> dict[str, Any]:
    """One run."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as temporary:
        folder = Path(temporary)
        run_file, *overrides = RUNS[name](folder)
        overrides += [*WITHOUT_END, *(("dashboard.enabled=true",) if watched else UNWATCHED)]
        with started(run_file, overrides, folder) as (process, run), contextlib.ExitStack() as stack:
            if watched:
                stack.enter_context(looked_at(run))
            meter = stack.enter_context(Meter(process.pid, (run.path / ".run-id").read_text()))
            first, (told_at, before), step = time.time(), told(folder / "clocks"), _step(run)
            time.sleep(seconds)
            spent, took, steps = meter.read(), time.time() - first, _step(run) - step
            until, after = told(folder / "clocks")
    scale = took / (until - told_at) if watched else 0.0
    clocks = {label: scale * (after[label] - before[label]) for label in ("exporter", "trackers", "lanes")}
    return line(name, watched, took, steps, spent, clocks)


def line(
    name: str, watched: bool, took: float, steps: int, spent: Counter[str], clocks: dict[str, float]
) -> dict[str, Any]:
    """What is printed."""
    run = spent["run"] + spent["agent"]
    watching = spent["page"] + sum(clocks.values())
    rest = run - sum(clocks.values())
    found = {"seconds": took, "run": run, "page": spent["page"], **clocks, "agent": spent["agent"]}
    shares = {"share": 100 * watching / rest, "with_agent": 100 * (watching + spent["agent"]) / (rest - spent["agent"])}
    rounded = {key: round(value, 3) for key, value in (found | shares).items()}
    return {"benchmark": "watching", "of": name, "watched": watched, "steps": steps, **rounded, "goal": GOAL}


def _step(run: RunDir) -> int:
    status = run.read_status()
    assert status is not None
    return int(status["step"])


def main() -> None:
    """The runs one after the other."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--unwatched", action="store_true", help="also the same runs without watching")
    args = parser.parse_args()
    for name in args.runs:
        for watched in (True, False) if args.unwatched else (True,):
            line = measuring.Line("watching")
            line.end(measured(name, args.seconds, watched), args.keep and watched, name)


if __name__ == "__main__":
    main()
