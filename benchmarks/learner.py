"""What the learner's step costs over bare torch: `python -m benchmarks.learner [--shape demo long-tail large]`.

One process, one thread, the row `grpo`, the same rows in the same micro-batches, in turns:

    step    the learner's train step on DeepSpeed (one rank, with its defaults), from a share of a batch to new weights
            and metrics
    bare    a loop written by hand: the transformers model, its output layer on the answers' tokens only, the same loss,
            cut gradient and the same fused AdamW; padded tensors are made beforehand, and of metrics the loss and the
            entropy

`ratio` is the tokens per second (prompt and answer) of the step over those of the bare loop: median and quartiles over
the rounds; `ratio_cpu` is that of the CPU's seconds, which other programs do not lengthen. `apart` is the largest
difference between the two in the gradient's norm, so that both do the same. Prints one JSON line. The goal is a ratio
of 0.95.
"""

from __future__ import annotations

from benchmarks import engines  # isort: skip  (sets what torch reads when it is imported)

import cProfile
import pstats
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.measuring import Line, Stopwatch, in_turns, parser, ratios, spread
from penstock.learner import deal, ranks
from penstock.learner.algorithms.bound import BoundAlgorithm, bind
from penstock.learner.assemble import Moment, assemble
from penstock.learner.config import AlgorithmSection, LearnerSection
from penstock.learner.crew import Crew
from penstock.learner.engine import Engine
from penstock.learner.engines import Engines
from penstock.learner.micro import MicroBatch
from penstock.services.logprob_model import LogprobModel
from penstock.services.logprobs import sequence_logprobs
from penstock.services.ports import HeldPort
from penstock.services.trajectory import Completion, Group, Sampling, Span, Trajectory
from penstock.services.versions import Version

GOAL = 0.95
MEMBERS = 8
NOW = Version(0, 10)
BATCHES = {"demo": (32, 5, 6), "long-tail": (8, 12, 85), "large": (1, 12, 30)}
"""Groups of a step, tokens of a prompt, mean tokens of an answer."""


def groups_of(name: str, model: nn.Module) -> list[Group]:
    """Answers of geometric length, whose sampler is near the model, with a reward of 0 or 1."""
    count, prompt, mean = BATCHES[name]
    random, shape = np.random.default_rng(0), engines.SHAPES[name]
    prompts = engines.prompts(shape, count, prompt)
    lengths = np.minimum(random.geometric(1 / mean, count * MEMBERS), 500 if mean > 6 else 6)
    answers = [random.integers(2, shape.vocabulary, length).astype(np.int32) for length in lengths]
    rows = [(prompts[n // MEMBERS].tokens, answer) for n, answer in enumerate(answers)]
    found = sequence_logprobs(LogprobModel(model), rows)

    def trajectory(n: int) -> Trajectory:
        near = (found[n] + random.normal(0, 0.02, len(answers[n]))).astype(np.float32)
        reward = float(n % MEMBERS < 1 + n // MEMBERS % (MEMBERS - 1))
        completion = Completion(
            tokens=answers[n],
            logprobs=near,
            actions=np.ones(len(near), np.bool_),
            spans=(Span(lineage=0, step=NOW.step - n % 2, count=len(near)),),
            finish="stop",
            text="",
            worker="none",
            engine="none",
            started=0.0,
            ended=1.0,
        )
        return Trajectory(completion=completion, reward=reward, parts={"random": reward})

    return [
        Group(
            prompt=prompts[i],
            sampling=Sampling(max_tokens=500),
            trajectories=tuple(trajectory(n) for n in range(MEMBERS * i, MEMBERS * (i + 1))),
        )
        for i in range(count)
    ]


class Bare:
    """The loop written by hand."""

    def __init__(self, model: nn.Module, section: LearnerSection, parts: list[MicroBatch]) -> None:
        self._model, self._section, self._parts = model.train(), section, parts
        decayed = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": section.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(
            groups, lr=section.learning_rate, betas=section.betas, eps=section.eps, fused=True
        )
        self.norm = 0.0

    def step(self) -> None:
        """One update, and what is reported of it."""
        model: Any = self._model
        loss_sum, entropy_sum, count = 0.0, 0.0, 0
        for part in self._parts:
            rows, mask = part.rows, part.rows.responses
            hidden = model.model(input_ids=rows.tokens, attention_mask=rows.attention.long(), use_cache=False)[0]
            start = hidden.shape[1] - 1 - mask.shape[1]
            logits = functional.linear(hidden[:, start:-1][mask], model.lm_head.weight)
            everything = torch.log_softmax(logits, -1)
            logp = everything.gather(-1, rows.targets[mask].unsqueeze(-1)).squeeze(-1)
            prox = logp.detach()
            ratio = torch.exp(logp - prox)
            advantages = part.advantages[mask]
            clipped = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
            trust = torch.exp(prox - part.logp_sampler[mask]).clamp(max=2.0)
            weights = part.weights.unsqueeze(-1).expand(mask.shape)[mask].to(logp.dtype)
            loss = -(trust * clipped * weights).sum()
            loss.backward()
            with torch.no_grad():
                loss_sum += float(loss)
                entropy_sum += float(-(everything.exp() * everything).sum())
                count += len(logp)
        self.norm = float(nn.utils.clip_grad_norm_(model.parameters(), self._section.max_grad_norm))
        self._optimizer.step()
        self._optimizer.zero_grad()


class Case:
    """Both sides on one shape."""

    def __init__(self, name: str, team: ranks.Team) -> None:
        shape = engines.SHAPES[name]
        section = LearnerSection(groups_per_step=BATCHES[name][0], learning_rate=1e-7)
        algorithm: BoundAlgorithm = bind(AlgorithmSection.model_validate({"name": "grpo"}))
        model = engines.network(shape)
        self._algorithm, self._section = algorithm, section
        groups = groups_of(name, model)
        batch = assemble(groups, algorithm, Moment(NOW, {}, 4, False))
        minis = deal.split_groups(batch, 1, 0)
        batch = deal.weigh(batch, minis, algorithm.reduction)
        (self._share,) = deal.deal(batch, minis, 1, section.micro_batch_tokens, 1, 0)
        self.tokens = int(batch.row_tokens.sum())
        self.answers = batch.lengths
        parts = [MicroBatch.of(self._share.batch, rows, torch.device("cpu")) for rows in self._share.mini_batches[0]]
        self.micro_batches = len(parts)
        self._bare = Bare(engines.network(shape), section, parts)
        self._crew = Crew(team, Engines(Engine(model, section, 1)), algorithm, section)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.apart = 0.0
        self.cpu: dict[str, list[float]] = {"step": [], "bare": []}

    def step(self) -> float:
        """Tokens per second of the learner's step."""
        watch = Stopwatch()
        trained = self._crew.train([self._share])
        took, cpu = watch.read()
        self.cpu["step"].append(cpu)
        self._norm = trained.metrics["actor/grad_norm"]
        return self.tokens / took

    def bare(self) -> float:
        """Tokens per second of the bare loop."""
        watch = Stopwatch()
        self._bare.step()
        took, cpu = watch.read()
        self.cpu["bare"].append(cpu)
        return self.tokens / took

    def compare(self) -> None:
        """Both have made as many steps from the same weights."""
        self.apart = max(self.apart, abs(self._norm / self._bare.norm - 1))


def main() -> None:
    """Measure and print the line."""
    options = parser(__doc__)
    options.add_argument("--shape", nargs="+", choices=BATCHES, default=list(BATCHES))
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--profile", action="store_true", help="where the step's time goes, instead of a line")
    args = options.parse_args()
    torch.set_num_threads(1)
    line, found = Line("learner", goal=GOAL), {}
    team = ranks.join(0, 1, f"127.0.0.1:{HeldPort('127.0.0.1').number}", 600.0)
    for name in args.shape:
        case = Case(name, team)
        if args.profile:
            case.step()
            profile = cProfile.Profile()
            for _ in range(args.rounds):
                profile.runcall(case.step)
            pstats.Stats(profile).sort_stats("tottime").print_stats(40)
            continue
        speeds = in_turns(args.rounds, 2, step=case.step, bare=case.bare)
        case.compare()
        found[name] = {
            "parameters": case.parameters,
            "tokens": case.tokens,
            "mean_answer": round(float(case.answers.mean()), 1),
            "micro_batches": case.micro_batches,
            "tokens_per_second": {side: spread(values, 1) for side, values in speeds.items()},
            "ratio": ratios(speeds["step"], speeds["bare"]),
            "ratio_cpu": ratios(case.cpu["bare"][-args.rounds :], case.cpu["step"][-args.rounds :]),
            "apart": case.apart,
        }
    if found:
        line.end({"shapes": found, "met": all(each["ratio"]["median"] >= GOAL for each in found.values())}, args.keep)


if __name__ == "__main__":
    main()
