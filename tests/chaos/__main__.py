"""penstock-chaos: kill the parts of a run at random and check its books. Prints one line of JSON; exit code 1 when a
promise was broken."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, get_args

from benchmarks.measuring import RESULTS, Line
from chaos import engines
from chaos.play import Log, Play, Wish
from chaos.strikes import Sent
from chaos.subject import Subject
from chaos.targets import TARGETS, Target


def options(arguments: list[str]) -> argparse.Namespace:
    """What was asked for; a misspelt word ends with a usage message."""
    parser = argparse.ArgumentParser(prog="penstock-chaos", description=__doc__)
    parser.add_argument("--engine", choices=("paced", "vllm"), default="paced", help="a drill, or the carry recipe")
    parser.add_argument("--kills", type=int, default=200, help="signals to send")
    parser.add_argument("--minutes", type=float, default=600.0, help="send none after so many minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--at-once", type=int, default=4, help="strikes that are not got over yet, at most")
    parser.add_argument("--in-turn", action="store_true", help="one target after the other, and not by chance")
    parser.add_argument("--signals", nargs="+", choices=get_args(Sent), default=list(get_args(Sent)))
    parser.add_argument("--silence", type=float, default=None, help="deadlines.silence of the run")
    parser.add_argument("--ranks", type=int, default=None, help="learner ranks")
    parser.add_argument("--gap", type=float, default=2.0, help="seconds of quiet before a strike, at most")
    parser.add_argument("--keep", type=Path, help="folder in which everything is kept, to look at it afterwards")
    parser.add_argument(
        "--result", action="store_true", help=f"write the line into {RESULTS.name}/, for docs/figures.md"
    )
    parser.add_argument("--inputs", type=Path, help="folder in which models and data are made once, and kept")
    return parser.parse_args(arguments)


def report(asked: argparse.Namespace, log: Log) -> dict[str, Any]:
    """The line of JSON."""
    seconds = {
        target: [s.seconds for s in log.strikes if s.victim.target == target and s.recovered_at] for target in TARGETS
    }
    everything = [value for values in seconds.values() for value in values]
    return {
        "engine": asked.engine,
        "seed": asked.seed,
        "kills": len(log.strikes),
        "by_target": dict(Counter(strike.victim.target for strike in log.strikes)),
        "by_moment": dict(Counter(strike.moment for strike in log.strikes)),
        "by_signal": dict(Counter("SIGKILL" if s.sent == "kill" else "SIGSTOP" for s in log.strikes)),
        "recoveries": len(everything),
        "seconds_to_recover": _spread(everything),
        "seconds_by_target": {target: _spread(values) for target, values in seconds.items() if values},
        "resumed": log.resumed,
        "lineages": log.lineages,
        "steps": log.steps,
        "groups_redelivered": log.leased_again + log.delivered_again,
        "to_workers": log.leased_again,
        "to_the_learner": log.delivered_again,
        "runs": log.runs,
        "goals": {"judged": len(log.goals), "reached": sum(bool(goal["reached"]) for goal in log.goals)},
        "minutes": round((time.monotonic() - log.began) / 60, 1),
        "violations": len(log.violations),
        "violated": [str(violation)[:1000] for violation in log.violations[:20]],
    }


def _spread(seconds: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(seconds), 1), "max": round(max(seconds), 1)} if seconds else {}


def torment(asked: argparse.Namespace, say: Any) -> Log:
    """Run after run until there were enough kills; one run is enough where it does not end by itself."""
    home = asked.keep or Path(tempfile.mkdtemp(prefix="penstock-chaos-"))
    home.mkdir(parents=True, exist_ok=True)
    home = home.resolve()
    inputs = (asked.inputs or home / "inputs").resolve()
    judged = home / "judged"
    judged.mkdir(exist_ok=True)
    chance = random.Random(asked.seed)
    silence = asked.silence or (15.0 if asked.engine == "paced" else 40.0)
    targets: tuple[Target, ...] = tuple(asked.targets)
    log, number = Log(say), 0
    wish = Wish(
        kills=asked.kills,
        minutes=asked.minutes,
        targets=targets,
        signals=tuple(asked.signals),
        at_once=asked.at_once,
        in_turn=asked.in_turn,
        gap=asked.gap,
        silence=silence,
    )
    while number == 0 or (len(log.strikes) < wish.kills and time.monotonic() - log.began < 60 * wish.minutes):
        if asked.engine == "paced":
            plan = engines.paced(inputs, judged, silence, asked.ranks or 2)
        else:
            plan = engines.vllm(inputs, asked.seed, silence, asked.ranks or 1)
        if number == 0:
            log.began = time.monotonic()
        runs = home / f"run-{number}"
        runs.mkdir()
        subject = Subject(plan.run_file, plan.overrides, runs, home / f"said-{number}.log")
        say(f"run {number} is {subject.path}")
        Play(subject, wish, log, judged, chance).go(plan.to_the_end, plan.groups_per_step)
        number += 1
        if log.violations:
            break
    if asked.keep is None and not log.violations:
        shutil.rmtree(home, ignore_errors=True)
    return log


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    asked = options(arguments)

    def say(text: str) -> None:
        print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that the run is ended too
    line = Line("chaos")
    log = torment(asked, say)
    line.end(report(asked, log), asked.result, asked.engine)
    return 1 if log.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
