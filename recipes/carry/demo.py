"""The carry recipe from nothing to a verdict: model and data, fine-tuning, training, were the goals reached?

    python recipes/carry/demo.py [--seeds 0 1 2] [--curve docs/learning-curve.png] [section.key=value …]

Overrides go to the training run, so `staleness.max_lag=0` is the synchronous system and `store.url=redis://…` puts the
ledger on a Redis server. The run directory is printed last; the exit code is 3 when a goal was missed.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
from pathlib import Path

import penstock
from penstock.cli.display import make_display
from penstock.cli.main import GOAL_MISSED, INTERRUPTED
from penstock.services.contracts import PenstockError

HERE = Path(__file__).parent
TRAINING_FILES = {"data.sources.sums.path": "train.jsonl", "evaluation.data.sources.heldout.path": "heldout.jsonl"}
sys.path.insert(0, str(HERE))  # the recipe's own make.py, also when this file is run from elsewhere


def prepare(seed: int, runs: Path) -> Path:
    """Model and data of one seed; returns their folder. Made once and kept, until the recipe changes."""
    import make

    version = hashlib.sha256((HERE / "make.py").read_bytes() + (HERE / "sft.yaml").read_bytes()).hexdigest()[:8]
    folder = runs / "carry-inputs" / f"seed-{seed}-{version}"
    if not (folder / "model" / "config.json").exists():
        print(f"[demo] making an untrained model and its data in {folder}", flush=True)
        make.main(["--seed", str(seed), "--out", str(folder)])
    return folder


def data_of(inputs: Path, **files: str) -> list[str]:
    """Overrides that point the sources of a run file at this seed's files."""
    return [f"{key}={inputs / 'data' / name}" for key, name in files.items()]


def fine_tuned(seed: int, inputs: Path, runs: Path) -> Path:
    """The model with partial skill; made once and kept."""
    marker = inputs / "sft-run"
    if marker.exists() and (Path(marker.read_text()) / "model" / "config.json").exists():
        print(f"[demo] the fine-tuned model of seed {seed} is there: {marker.read_text()}", flush=True)
        return Path(marker.read_text()) / "model"
    print("[demo] supervised fine-tuning on demonstrations that mostly forget the carry", flush=True)
    run = watched(
        penstock.sft,
        HERE / "sft.yaml",
        [
            *(f"seed={seed}", f"runs_dir={runs}", f"model.path={inputs / 'model'}"),
            *data_of(inputs, **{"data.sources.demonstrations.path": "sft.jsonl"}),
        ],
    )
    marker.write_text(str(run.dir))
    return run.model


def trained(seed: int, inputs: Path, model: Path, runs: Path, overrides: list[str]) -> penstock.Run:
    """The run that the demo is about."""
    print("[demo] asynchronous GRPO: two rollout workers, one learner", flush=True)
    return watched(
        penstock.train,
        HERE / "grpo.yaml",
        [
            *(f"seed={seed}", f"runs_dir={runs}", f"model.path={model}"),
            *data_of(inputs, **TRAINING_FILES),
            *overrides,
        ],
    )


def watched(start, run_file: Path, overrides: list[str]) -> penstock.Run:  # type: ignore[no-untyped-def]
    """Start a run and show it while it goes on."""
    display = make_display()
    try:
        return start(run_file, overrides, display=display)
    finally:
        display.close()


def report(runs: list[penstock.Run]) -> bool:
    """Say what came out, with mean and spread over several seeds; True when every goal was reached."""
    reached = True
    for run in runs:
        summary = run.summary or {}
        for goal in summary["goals"]:
            mark = "reached" if goal["reached"] else "MISSED"
            value = "never recorded" if goal["value"] is None else f"{goal['value']:.3f}"
            print(f"goal {mark}: {goal['of']} {goal['metric']} {goal['wanted']}, found {value}")
            reached = reached and goal["reached"]
        seconds = summary["seconds"]["train"]
        print(f"training took {seconds:.0f} s for {summary['steps']} steps; lag up to {summary['lag']['max']:.0f}")
    for name in ("sampled", "greedy"):
        for when in ("before", "after"):
            values = [run.summary["evaluation"][f"eval/{name}/accuracy"][when] for run in runs]  # type: ignore[index]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            print(f"held-out accuracy, {name}, {when}: {statistics.mean(values):.3f}{spread}")
    return reached


def main() -> None:
    """Everything for every seed; exits with 3 when a goal was missed, with 1 when a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--curve", type=Path, help="PNG with the learning curve of all seeds")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_args()
    home = args.runs_dir.resolve()
    runs = []
    for seed in args.seeds:
        inputs = prepare(seed, home)
        model = fine_tuned(seed, inputs, home)
        runs.append(trained(seed, inputs, model, home, args.overrides))
    reached = report(runs)
    if args.curve is not None:
        from penstock.services.plots import learning_curve
        from penstock.services.rundir import RunDir

        print(learning_curve([RunDir.open(run.dir) for run in runs], args.curve))
    for run in runs:
        print(run.dir)
    sys.exit(0 if reached else GOAL_MISSED)


if __name__ == "__main__":
    try:
        main()
    except PenstockError as error:
        sys.exit(f"[demo] {error}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
