"""What a rollout worker costs over bare vLLM: `python -m benchmarks.rollout [--answers long] [--rounds 5]`.

One engine, in one process with one thread, plays the same prompts with the same sampling in turns:

    worker   the whole of a worker: reservations and puts on a real Redis server, rules judged in a process of their
             own, answers recorded with a log-prob and a weight version for every token
    bare     vLLM alone: every request is added at once, `step` until all have ended; the same log-probs are returned

Groups of 8 answers of geometric length: `long` ones of about 100 tokens in the mean and 500 at most, 64 of them decoded
at a time; `short` ones, as the demo's, of 6 at most, 256 at a time, where a request costs more than its tokens.
`ratio` is the worker's tokens per second over those of the bare engine: median and quartiles over the rounds;
`ratio_cpu` is that of this process's CPU time, which other programs do not lengthen. The version stands still: what
weight swaps cost is measured by `benchmarks.swap`. Prints one JSON line. The goal is a ratio of 0.95 for long answers.
"""

from __future__ import annotations

import cProfile
import itertools
import pstats
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import engines
from benchmarks.measuring import Line, Stopwatch, in_turns, parser, ratios, spread
from penstock.reward.config import RewardSection
from penstock.reward.scorer import GroupScorer
from penstock.rollout.worker import RolloutWorker, Rules
from penstock.services.replay import Finished, LedgerRules
from penstock.services.store.ledger import RedisStore
from penstock.services.store.server import PrivateServer
from penstock.services.trajectory import Prompt, Sampling
from penstock.services.versions import FIRST

GOAL = 0.95
MEMBERS = 8


@dataclass(frozen=True)
class Answers:
    """What is played."""

    shape: str
    """Of `engines.SHAPES`."""
    budget: int
    """Tokens of an answer at most."""
    at_a_time: int
    context: int


KINDS = {"long": Answers("long-tail", 500, 64, 640), "short": Answers("demo", 6, 256, 64)}


class Counted(RedisStore):
    """Ends the worker when it has put so many groups, without anybody looking on."""

    def await_groups(self, count: int, worker: RolloutWorker) -> None:
        self._left, self._worker = count, worker

    def put_all(self, groups: list[Finished]) -> tuple[int, ...]:  # type: ignore[override]
        lost = super().put_all(groups)
        assert not lost
        self._left -= len(groups)
        if self._left <= 0:
            self._worker.request_drain()
        return lost


class Play:
    """The sides of the measurement."""

    def __init__(
        self, generator: Any, server: PrivateServer, scorer: GroupScorer, prompts: list[Prompt], budget: int
    ) -> None:
        self._generator, self._server, self._scorer, self._prompts = generator, server, scorer, prompts
        self._sampling = Sampling(max_tokens=budget)
        self._runs = itertools.count()
        self.lengths: dict[str, list[float]] = {"worker": [], "bare": []}
        self.cpu: dict[str, list[float]] = {"worker": [], "bare": []}
        """Tokens per second of this process's CPU."""

    def worker(self) -> float:
        """Tokens per second of a worker that plays every prompt once."""
        count = len(self._prompts)
        address = self._server.address(f"run-{next(self._runs)}")
        store = Counted(address.url, address.run_id, password=address.password)
        store.attach(LedgerRules(0, count, count, 10**12))
        store.reconcile(FIRST, 0, "start")
        rules = Rules(group_size=MEMBERS, max_lag=0, max_groups=count)
        worker = RolloutWorker("w", store, self._generator, self._scorer, self._prompts, self._sampling, rules)
        store.await_groups(count, worker)
        self._generator._version = None  # its first act is to swap to what is published
        self._generator.swap = self._adopt
        before, watch = self._generator.sampled, Stopwatch()
        worker.run()
        took, cpu = watch.read()
        sampled = self._generator.sampled - before
        self.cpu["worker"].append(sampled / cpu)
        store.erase()
        store.close()
        self.lengths["worker"].append(sampled / count / MEMBERS)
        return float(sampled / took)

    def _adopt(self, version: Any) -> Any:
        from penstock.services.contracts import SwapReport

        self._generator._version = version
        return SwapReport(version, 0.0, 0.0, 0.0, 0)

    def bare(self) -> float:
        """Tokens per second of the engine alone."""
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        engine = self._generator._calls.started.engine
        params = SamplingParams(
            temperature=1.0,
            max_tokens=self._sampling.max_tokens,
            stop_token_ids=[engines.END],
            ignore_eos=True,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        run = next(self._runs)
        watch = Stopwatch()
        for prompt, member in itertools.product(self._prompts, range(MEMBERS)):
            tokens = tokens_input(prompt.tokens.tolist(), cache_salt=str(run))
            engine.add_request(f"bare-{run}-{prompt.index}-{member}", tokens, params)
        answers = []
        while engine.has_unfinished_requests():
            answers += [output.outputs[0] for output in engine.step() if output.finished]
        took, cpu = watch.read()
        assert len(answers) == len(self._prompts) * MEMBERS
        assert all(len(answer.logprobs) == len(answer.token_ids) for answer in answers)
        sampled = sum(len(answer.token_ids) for answer in answers)
        self.lengths["bare"].append(sampled / len(answers))
        self.cpu["bare"].append(sampled / cpu)
        return sampled / took


def main() -> None:
    """Measure and print the line."""
    options = parser(__doc__)
    options.add_argument("--answers", choices=KINDS, default="long")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--groups", type=int, default=32)
    options.add_argument("--profile", action="store_true", help="where the worker's time goes, instead of a line")
    args = options.parse_args()
    kind = KINDS[args.answers]
    line, shape = Line("rollout", answers=args.answers, goal=GOAL, at_a_time=kind.at_a_time), engines.SHAPES[kind.shape]
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        folder = Path(name)
        path = engines.saved(engines.network(shape), shape, folder / "model")
        sizes = {"max_model_len": kind.context, "max_num_seqs": kind.at_a_time}
        settings = {"kv_cache_gib": 1.0, "enforce_eager": True, **sizes}
        scorer = GroupScorer(RewardSection.model_validate({"rules": {"exact": {}}}))
        with (
            PrivateServer(folder / "store", folder / "store.log") as server,
            engines.engine(path, shape, loaded=FIRST, **settings) as generator,
        ):
            play = Play(generator, server, scorer, engines.prompts(shape, args.groups), kind.budget)
            if args.profile:
                play.worker()
                profile = cProfile.Profile()
                profile.runcall(play.worker)
                pstats.Stats(profile).sort_stats("tottime").print_stats(45)
                return
            found = in_turns(args.rounds, worker=play.worker, bare=play.bare)
        scorer.close()
    lengths = {side: round(sum(values) / len(values), 1) for side, values in play.lengths.items()}
    ratio = ratios(found["worker"], found["bare"])
    speed = {side: spread(values, 1) for side, values in found.items()}
    cpu = ratios(*(play.cpu[side][-args.rounds :] for side in ("worker", "bare")))
    values = {"tokens_per_second": speed, "mean_length": lengths, "ratio": ratio, "ratio_cpu": cpu}
    values["met"] = ratio["median"] >= GOAL if args.answers == "long" else None
    line.end(values, args.keep, args.answers)


if __name__ == "__main__":
    main()
