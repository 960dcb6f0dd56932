"""How far sampler and learner are apart without lag: `python -m benchmarks.parity [--model demo long-tail large]`.

A vLLM engine in float32 samples answers from published weights, to which it was swapped as in a run; the learner's own
forward pass, in micro-batches as it trains with, says the log-prob of every token under the same weights. The largest
absolute difference in nats is the figure, and the mean beside it; for every model in turn, before the swap's `probe` as
the run's start sees it, and then on what was sampled: the two places where a run warns (`recording.mismatch_warning`).

Prints one JSON line. The goal is 1e-4 at most.
"""

from __future__ import annotations

from benchmarks import engines  # isort: skip  (sets what torch reads when it is imported)

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import Line, parser

GOAL = 1e-4
ANSWERS = {"demo": (64, 6), "long-tail": (64, 500), "large": (16, 64)}
"""How many, and their budget."""
MICRO_BATCH_TOKENS = 8192


def measure(name: str, folder: Path) -> dict[str, Any]:
    """One model."""
    from penstock.services.contracts import Request
    from penstock.services.logprob_model import LogprobModel
    from penstock.services.logprobs import sequence_logprobs
    from penstock.services.trajectory import Sampling
    from penstock.services.versions import Version
    from penstock.services.weights.files import FileReceiver, FileSender
    from penstock.services.weights.manifest import ProbeRecord, probe_tokens

    shape, (count, budget) = engines.SHAPES[name], ANSWERS[name]
    first, model = engines.network(shape, 0), engines.network(shape, 1)
    policy, version = LogprobModel(model), Version(0, 1)
    shared = Path(tempfile.mkdtemp(prefix="penstock-bench-", dir="/dev/shm"))
    settings = {"kv_cache_gib": 0.5, "max_model_len": 640, "max_num_seqs": 32, "enforce_eager": True}
    try:
        path = engines.saved(first, shape, folder / "model")
        with engines.engine(path, shape, receiver=FileReceiver(shared), **settings) as generator:
            tokens = probe_tokens(shape.vocabulary)
            row = (np.asarray(tokens[:1], np.int32), np.asarray(tokens[1:], np.int32))
            probe = ProbeRecord(tokens, tuple(sequence_logprobs(policy, [row])[0].tolist()))
            FileSender(shared).publish(version, engines.weights_of(model).items(), probe)
            report = generator.swap(version)
            prompts = engines.prompts(shape, count)
            for prompt in prompts:
                generator.submit(Request(str(prompt.index), prompt, Sampling(max_tokens=budget)))
            done = {}
            while generator.in_flight:
                done.update(generator.step())
    finally:
        shutil.rmtree(shared, ignore_errors=True)
    answers = [done[str(prompt.index)] for prompt in prompts]
    rows = [(prompt.tokens, answer.tokens) for prompt, answer in zip(prompts, answers, strict=True)]
    said = sequence_logprobs(policy, rows, token_budget=MICRO_BATCH_TOKENS)
    apart = np.concatenate([np.abs(a.logprobs - b) for a, b in zip(answers, said, strict=True)])
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": len(apart),
        "largest": float(apart.max()),
        "mean": float(apart.mean()),
        "probe": report.gap,
    }


def main() -> None:
    """Measure and print the line."""
    options = parser(__doc__)
    options.add_argument("--model", nargs="+", choices=ANSWERS, default=list(ANSWERS))
    args = options.parse_args()
    line, found = Line("parity", goal=GOAL), {}
    for name in args.model:
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
            found[name] = measure(name, Path(folder))
    largest = max(each["largest"] for each in found.values())
    line.end({"models": found, "largest": largest, "met": largest <= GOAL}, args.keep)


if __name__ == "__main__":
    main()
