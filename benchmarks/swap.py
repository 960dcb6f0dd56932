"""What a weight swap costs a worker: `python -m benchmarks.swap [--model demo large] [--rounds 8]`.

One engine with answers in flight, all in one process and one thread. In turns, with new weights every time:

    swap       what the worker does: load a version in shared memory, whose checksums were verified while the engine
               went on, and prove it by a probe
    bare       the engine's own reload (`reload_weights`), of the same tensors, which lie in memory
    repacked   the same with the output layer packed again, without which a CPU engine computes with its old weights
    copy       a plain copy of the bytes, tensor by tensor

`pause` is the time for which no answer goes on: load and the probe, less one ordinary step, since the step that
the probe is made of samples a token for every answer. The ordinary step is the one before. All ratios are medians and
quartiles over the rounds, in each of which all sides have had a turn; with `kv: keep`, and with `kv: recompute`, where
the probe's step computes the cache again. `cpu` has them in CPU seconds, which other programs do not lengthen.

Prints one JSON line. The goal: for the large model, with `keep`, a pause of at most 1.2 times the bare reload.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks import engines
from benchmarks.measuring import Line, Stopwatch, parser, ratios, spread

GOAL = 1.2
IN_FLIGHT = 8
TOKENS = 700
"""Budget of an answer: so many that none ends in the measurement."""


class Swaps:
    """An engine, two sets of weights that it changes between, and what the changes took."""

    def __init__(self, generator: Any, sender: Any, models: list[Any]) -> None:
        from penstock.services.logprob_model import LogprobModel

        self._generator, self._sender = generator, sender
        self._weights = [engines.weights_of(model) for model in models]
        self._probes = [self._probe(LogprobModel(model)) for model in models]
        self._copies = {name: tensor.clone() for name, tensor in self._weights[0].items()}
        self._number = 0
        self.found: dict[str, list[float]] = defaultdict(list)
        """Seconds by the clock."""
        self.cpu: dict[str, list[float]] = defaultdict(list)
        """The same of the CPU."""

    def _probe(self, model: Any) -> Any:
        import numpy as np

        from penstock.services.logprobs import sequence_logprobs
        from penstock.services.weights.manifest import ProbeRecord, probe_tokens

        tokens = probe_tokens(self._generator._calls.vocabulary)
        (found,) = sequence_logprobs(model, [(np.asarray(tokens[:1], np.int32), np.asarray(tokens[1:], np.int32))])
        return ProbeRecord(tokens, tuple(found.tolist()))

    def publish(self) -> Any:
        """The next version, with the other weights."""
        from penstock.services.versions import Version

        self._number += 1
        version, which = Version(0, self._number), self._number % 2
        self._sender.publish(version, self._weights[which].items(), self._probes[which])
        self._sender.retire(frozenset({version}))
        return version

    def swap(self, kv: str) -> None:
        """One swap, as the worker makes it; the engine has just made a step."""
        version = self.publish()
        self._generator._section = self._generator._section.model_copy(update={"kv": kv})
        self._generator.step()
        while not self._generator.prepared(version):  # as the worker does: it is verified beside the generation
            self._generator.step()
        watch = Stopwatch()
        self._generator.step()
        step, step_cpu = watch.read()
        watch = Stopwatch()
        report = self._generator.swap(version)
        took, cpu = watch.read()
        self.found["step"].append(step)
        self.found[f"{kv}.whole"].append(took)
        self.found[f"{kv}.pause"].append(took - step)
        self.cpu[f"{kv}.pause"].append(cpu - step_cpu)
        for part in ("verify", "pause", "probe"):
            self.found[f"{kv}.{'load' if part == 'pause' else part}"].append(getattr(report, part))

    def bare(self) -> None:
        """The engine's own reload, and then the output layer."""
        from penstock.rollout.vllm_reload import repack_output_layers

        self._number += 1
        tensors = list(self._weights[self._number % 2].items())
        runner = self._generator._calls.started.engine.engine_core.engine_core.model_executor.driver_worker.worker
        watch = Stopwatch()
        runner.model_runner.reload_weights(weights_iterator=iter(tensors))
        self._note("bare", watch)
        repack_output_layers(runner.model_runner.get_model())
        self._note("repacked", watch)

    def copy(self) -> None:
        """The bytes, into memory that is there."""
        self._number += 1
        watch = Stopwatch()
        for name, tensor in self._weights[self._number % 2].items():
            self._copies[name].copy_(tensor)
        self._note("copy", watch)

    def _note(self, name: str, watch: Stopwatch) -> None:
        wall, cpu = watch.read()
        self.found[name].append(wall)
        self.cpu[name].append(cpu)


def measure(shape: engines.Shape, folder: Path, rounds: int) -> dict[str, Any]:
    """One model."""
    from penstock.services.contracts import Request
    from penstock.services.trajectory import Sampling
    from penstock.services.weights.files import FileReceiver, FileSender

    models = [engines.network(shape, seed) for seed in (0, 1)]
    path = engines.saved(models[0], shape, folder / "model")
    shared = Path(tempfile.mkdtemp(prefix="penstock-bench-", dir="/dev/shm"))
    try:
        sender = FileSender(shared)
        settings = {"kv_cache_gib": 0.5, "max_model_len": 1024, "max_num_seqs": IN_FLIGHT, "enforce_eager": True}
        with engines.engine(path, shape, receiver=FileReceiver(shared), ends=False, **settings) as generator:
            swaps = Swaps(generator, sender, models)
            generator.swap(swaps.publish())
            for number, prompt in enumerate(engines.prompts(shape, IN_FLIGHT)):
                generator.submit(Request(f"r{number}", prompt, Sampling(max_tokens=TOKENS)))
            sides = [lambda: swaps.swap("keep"), swaps.bare, lambda: swaps.swap("recompute"), swaps.copy]
            for number in range(rounds + 2):
                if number == 2:
                    swaps.found.clear()  # the first rounds warm up
                    swaps.cpu.clear()
                for side in sides[:: -1 if number % 2 else 1]:
                    side()
            in_flight = len(generator.in_flight)
    finally:
        shutil.rmtree(shared, ignore_errors=True)
    found, cpu = swaps.found, swaps.cpu
    return {
        "parameters": sum(parameter.numel() for parameter in models[0].parameters()),
        "vocabulary": shape.vocabulary,
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in engines.weights_of(models[0]).values()),
        "in_flight": in_flight,
        "milliseconds": {name: spread([1e3 * value for value in values], 2) for name, values in found.items()},
        "cpu": {
            "keep_over_bare": ratios(cpu["keep.pause"], cpu["bare"]),
            "keep_over_repacked": ratios(cpu["keep.pause"], cpu["repacked"]),
            "recompute_over_bare": ratios(cpu["recompute.pause"], cpu["bare"]),
        },
        "keep_over_bare": ratios(found["keep.pause"], found["bare"]),
        "keep_over_repacked": ratios(found["keep.pause"], found["repacked"]),
        "keep_over_copy": ratios(found["keep.pause"], found["copy"]),
        "recompute_over_bare": ratios(found["recompute.pause"], found["bare"]),
    }


def main() -> None:
    """Measure and print the line."""
    options = parser(__doc__)
    options.add_argument("--model", nargs="+", choices=engines.SHAPES, default=["demo", "large"])
    options.add_argument("--rounds", type=int, default=8)
    args = options.parse_args()
    line = Line("swap", goal=GOAL)
    found = {}
    for name in args.model:
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
            found[name] = measure(engines.SHAPES[name], Path(folder), args.rounds)
    judged = found[args.model[-1]]["keep_over_bare"]["median"]
    line.end({"models": found, "met": judged <= GOAL}, args.keep)


if __name__ == "__main__":
    main()
