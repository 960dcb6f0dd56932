"""What an algorithm costs besides its passes through the model: `python -m benchmarks.algorithms [--shape NAME ...]`.

One JSON line per row of the table and shape: seconds of a train step from groups to new weights, and the share of them
spent in the maths: advantages, denominators, what is computed before the first update, trust, objective, KL, entropy,
diagnostics. The functions are the learner's own; a plain torch model and AdamW stand in for DeepSpeed, in one thread.
Times are of the processor, which other programs on the machine hardly lengthen; rows take turns, and the median of
their rounds is reported.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from penstock.learner import deal, micro, step
from penstock.learner.algorithms import table
from penstock.learner.algorithms.bound import BoundAlgorithm, bind
from penstock.learner.algorithms.cells import OwnValue, ValueHead
from penstock.learner.algorithms.composition import compose
from penstock.learner.assemble import Moment, assemble
from penstock.learner.config import AlgorithmSection, LearnerSection
from penstock.learner.critic import ValueModel
from penstock.learner.diagnostics import observe, step_metrics
from penstock.learner.engines import Engines
from penstock.learner.ranks import Team
from penstock.learner.start import begin
from penstock.services.logprob_model import LogprobModel
from penstock.services.logprobs import sequence_logprobs
from penstock.services.trajectory import Completion, Group, Prompt, Sampling, Span, Trajectory
from penstock.services.versions import Version

TARGET = 0.03
"""Largest share of a step that the maths may take."""
MEMBERS, PROMPT, NOW = 8, 16, Version(0, 10)
ALONE = Team(0, 1, 1.0, None)


@dataclass(frozen=True)
class Shape:
    """A model and a batch."""

    hidden: int
    layers: int
    vocabulary: int
    answers: int
    tokens: int
    """Mean length of an answer."""


SHAPES = {
    "tiny": Shape(hidden=32, layers=2, vocabulary=64, answers=64, tokens=8),
    "small": Shape(hidden=128, layers=4, vocabulary=1024, answers=256, tokens=64),
    "medium": Shape(hidden=256, layers=8, vocabulary=4096, answers=64, tokens=256),
}
"""About 25 thousand, 0.9 million and 8 million parameters. The tiny one shows what calls alone cost: it misses the
target, and is measured only when asked for."""


class Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        before, began = sum(self.seconds.values()), time.process_time()
        try:
            yield
        finally:
            # What was counted elsewhere meanwhile is not counted twice.
            within = sum(self.seconds.values()) - before
            self.seconds[what] += time.process_time() - began - within

    def around(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.on(what):
                return function(*args, **kwargs)

        return timed


class _Update(NamedTuple):
    applied: bool
    grad_norm: float


class PlainEngine:
    """What the train step asks of an engine, in one process. The graph is cut at the model's outputs, so that the
    maths' way backwards is told apart from the model's."""

    def __init__(self, model: nn.Module, section: LearnerSection, clock: Clock) -> None:
        self.module, self._clock, self._limit = model.train(), clock, section.max_grad_norm
        self._optimizer = torch.optim.AdamW(model.parameters(), betas=section.betas, fused=True)
        self._cut: list[tuple[Tensor, Tensor]] = []
        self.device, self.updates = torch.device("cpu"), 0

    def __call__(self, **inputs: Any) -> Any:
        with self._clock.on("model"):
            found = self.module(**inputs)
            several = found if isinstance(found, tuple) else (found,)
            cut = [(x, x.detach().requires_grad_()) if x is not None and x.requires_grad else (x, x) for x in several]
            self._cut += [(whole, leaf) for whole, leaf in cut if whole is not leaf]
        leaves = tuple(leaf for _, leaf in cut)
        return leaves if isinstance(found, tuple) else leaves[0]

    def backward(self, share: Tensor, last: bool) -> None:  # noqa: ARG002  (an engine's signature)
        """The gradient of `share`, first up to the model's outputs, then through the model."""
        with self._clock.on("loss backward"):
            share.backward()  # type: ignore[no-untyped-call]
        with self._clock.on("model"):
            used = [(whole, leaf.grad) for whole, leaf in self._cut if leaf.grad is not None]
            torch.autograd.backward([whole for whole, _ in used], [gradient for _, gradient in used])
            self._cut = []

    def gradient_is_finite(self) -> bool:
        with self._clock.on("model"):
            return bool(torch.isfinite(nn.utils.get_total_norm(self._gradients())))

    def step(self, learning_rate: float) -> _Update:
        with self._clock.on("model"):
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            norm = nn.utils.clip_grad_norm_(self.module.parameters(), self._limit)
            self._optimizer.step()
            self._optimizer.zero_grad()
        self.updates += 1
        return _Update(True, float(norm))

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.module.parameters() if p.grad is not None]


@dataclass(frozen=True)
class Line:
    """What is printed of one row."""

    algorithm: str
    shape: str
    parameters: int
    tokens: int
    """Of all answers."""
    step_seconds: float
    model_seconds: float
    """Forward, backward and update of the policy and, where there is one, the value model."""
    rows_seconds: float
    """Records to columns, columns to padded tensors: the same work for every algorithm."""
    maths_seconds: float
    parts: dict[str, float]
    """Of the maths: advantages, start, loss, loss backward, diagnostics; in seconds."""
    share: float
    """Of the maths in the step."""
    target: float
    met: bool


def network(shape: Shape) -> Qwen3ForCausalLM:
    """A model with random weights."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=3 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=shape.hidden // 4,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config)


def groups_of(shape: Shape) -> list[Group]:
    """Answers whose sampler and reference are near the model, with lags from 0 to 3 and a reward of 0 or 1."""
    random = np.random.default_rng(0)
    lengths = random.integers(shape.tokens // 2, 3 * shape.tokens // 2 + 1, shape.answers)
    prompts = random.integers(0, shape.vocabulary, (shape.answers // MEMBERS, PROMPT)).astype(np.int32)
    answers = [random.integers(0, shape.vocabulary, length).astype(np.int32) for length in lengths]
    rows = [(prompts[n // MEMBERS], answer) for n, answer in enumerate(answers)]
    found = sequence_logprobs(LogprobModel(network(shape)), rows)
    return [
        Group(
            prompt=Prompt(index=i, source="random", row=i, epoch=0, tokens=prompts[i], text=""),
            sampling=Sampling(max_tokens=2 * shape.tokens),
            trajectories=tuple(_answer(answers[n], found[n], n, random) for n in range(MEMBERS * i, MEMBERS * (i + 1))),
        )
        for i in range(shape.answers // MEMBERS)
    ]


def _answer(tokens: Any, logp: Any, number: int, random: np.random.Generator) -> Trajectory:
    near = [(logp + random.normal(0, 0.05, len(logp))).astype(np.float32) for _ in range(2)]
    reward = float(number % MEMBERS < 1 + number // MEMBERS % (MEMBERS - 1))
    completion = Completion(
        tokens=tokens,
        logprobs=near[0],
        actions=np.ones(len(tokens), np.bool_),
        spans=(Span(lineage=0, step=NOW.step - number % 4, count=len(tokens)),),
        finish="stop",
        text="",
        worker="none",
        engine="none",
        started=0.0,
        ended=1.0,
    )
    return Trajectory(
        completion=completion, reward=reward, parts={"random": reward}, unscored=None, reference_logprobs=near[1]
    )


class Case:
    """One row of the table on one shape."""

    def __init__(self, name: str, shape: str, groups: list[Group], learner: LearnerSection) -> None:
        self._name, self._shape, self._groups, self._learner = name, shape, groups, learner
        section = AlgorithmSection.model_validate({"name": name}).for_answers_of(2 * SHAPES[shape].tokens)
        self._algorithm: BoundAlgorithm = bind(section)
        self._clock = Clock()
        policy = LogprobModel(network(SHAPES[shape]), value_head=isinstance(section.value, ValueHead))
        own = isinstance(section.value, OwnValue)
        critic = ValueModel(cast(nn.Module, network(SHAPES[shape]).base_model)) if own else None
        engines = [model and PlainEngine(model, learner, self._clock) for model in (policy, critic)]
        self._engines = Engines(cast(Any, engines[0]), cast(Any, engines[1]), 1e-6)
        self._parameters = sum(p.numel() for p in policy.parameters())
        self.rounds: list[dict[str, float]] = []

    def run(self) -> None:
        """One train step, from groups to new weights."""
        clock = self._clock
        clock.seconds.clear()
        began = time.process_time()
        moment = Moment(NOW, {}, 4, False)
        with clock.on("rows"):
            batch = assemble(self._groups, self._timed_advantages(), moment)
            minis = deal.split_groups(batch, self._learner.mini_batches, 0)
        with clock.on("advantages"):
            batch = deal.weigh(batch, minis, self._algorithm.reduction)
        with clock.on("rows"):
            (share,) = deal.deal(batch, minis, 1, self._learner.micro_batch_tokens, self._learner.epochs, 0)
        with (
            mock.patch.object(micro.MicroBatch, "of", clock.around("rows", micro.MicroBatch.of)),
            mock.patch.object(step, "begin", clock.around("start", begin)),
            mock.patch.object(step, "compose", clock.around("loss", compose)),
            mock.patch.object(step, "observe", clock.around("diagnostics", observe)),
            clock.on("loss"),
        ):
            result = step.train_step(self._engines, share, self._algorithm, self._learner, ALONE)
        with clock.on("diagnostics"):
            step_metrics(result.tally.over(ALONE), share.updates)
        self.rounds.append({**clock.seconds, "step": time.process_time() - began})

    def line(self) -> Line:
        """The median of all rounds but the first, in which everything is cold."""
        rounds = self.rounds[1:]
        median = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        parts = {name: median[name] for name in median if name not in ("step", "model", "rows")}
        shares = [sum(each[name] for name in parts) / each["step"] for each in rounds]
        share = statistics.median(shares)
        return Line(
            algorithm=self._name,
            shape=self._shape,
            parameters=self._parameters,
            tokens=sum(len(t.completion.tokens) for g in self._groups for t in g.trajectories),
            step_seconds=round(median["step"], 4),
            model_seconds=round(median["model"], 4),
            rows_seconds=round(median["rows"], 4),
            maths_seconds=round(sum(parts.values()), 5),
            parts={name: round(value, 5) for name, value in parts.items()},
            share=round(share, 4),
            target=TARGET,
            met=share <= TARGET,
        )

    def _timed_advantages(self) -> BoundAlgorithm:
        """The algorithm with what rank 0 calls for every batch timed."""
        row, around = self._algorithm, functools.partial(self._clock.around, "advantages")
        return replace(
            row,
            baseline=around(row.baseline),
            whiten_sequences=around(row.whiten_sequences) if row.whiten_sequences is not None else None,
            credit=around(row.credit) if row.credit is not None else None,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["small"])
    parser.add_argument("--algorithm", nargs="+", choices=table.rows(), default=list(table.rows()))
    parser.add_argument("--rounds", type=int, default=5, help="of which the first is not counted")
    parser.add_argument("--mini-batches", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    missed = 0
    for shape in options.shape:
        groups = groups_of(SHAPES[shape])
        learner = LearnerSection(groups_per_step=len(groups), mini_batches=options.mini_batches)
        cases = [Case(name, shape, groups, learner) for name in options.algorithm]
        for _ in range(max(2, options.rounds)):
            for case in cases:
                case.run()
        for case in cases:
            line = case.line()
            missed += not line.met
            print(json.dumps(asdict(line)), flush=True)
    print(f"{missed} of the lines miss the target of {TARGET:.0%}", file=sys.stderr)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
