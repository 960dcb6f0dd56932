"""A learner that is fed groups of exactly one age: the circle without workers, in one process.

`max_lag` of a run is only a bound; what staleness does by itself shows when every group of a step was sampled by the
weights of exactly `lag` versions ago. So here the sampler is a copy of the model that holds those weights, and
sampler and learner share their arithmetic: no mismatch, only staleness. The learner's side is Penstock's own:
records, assembly, shares, train step, DeepSpeed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock.learner import deal, ranks
from penstock.learner.algorithms.bound import bind
from penstock.learner.assemble import Moment, assemble
from penstock.learner.config import AlgorithmSection, LearnerSection
from penstock.learner.crew import Crew
from penstock.learner.engine import Engine
from penstock.learner.engines import Engines
from penstock.services.model_config import ModelSection
from penstock.services.models import load_model, load_tokenizer
from penstock.services.ports import HeldPort
from penstock.services.trajectory import Completion, Group, Prompt, Sampling, Span, Trajectory
from penstock.services.versions import Version

Weights = dict[str, torch.Tensor]
Question = tuple[str, str]
"""Prompt and right answer."""


@dataclass(frozen=True)
class Study:
    """One run: which lag, which algorithm, and how much of it."""

    model: Path
    data: Path
    """Folder with train.jsonl and heldout.jsonl."""
    lag: int
    algorithm: AlgorithmSection
    learner: LearnerSection
    steps: int
    group_size: int = 8
    max_tokens: int = 6
    evaluate_every: int = 10
    seed: int = 0


class Sampler:
    """Answers under given weights, drawn with the model's own probabilities at temperature 1."""

    def __init__(self, folder: Path, seed: int, max_tokens: int) -> None:
        section = ModelSection(path=str(folder))
        self.tokenizer = load_tokenizer(section)
        self._model = load_model(section, "float32").eval()
        self._random = torch.Generator().manual_seed(seed)
        self._max_tokens = max_tokens
        self._end = int(self.tokenizer.eos_token_id)

    def load(self, weights: Weights) -> None:
        """Sample with these from here on."""
        self._model.load_state_dict(weights, strict=False)  # a tied output layer is not among them

    @torch.no_grad()
    def answers(
        self, prompts: Sequence[Sequence[int]], greedy: bool = False
    ) -> list[tuple[list[int], list[float], bool]]:
        """Per prompt its answer's tokens with the end token, their log-probs, and whether it came to an end.

        All prompts have the same length.
        """
        ids = torch.tensor(prompts)
        tokens, logps = [], []
        running = torch.ones(len(prompts), dtype=torch.bool)
        cache: Any = None
        for _ in range(self._max_tokens):
            output = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            logp = output.logits[:, -1].log_softmax(-1)
            drawn = torch.multinomial(logp.exp(), 1, generator=self._random)[:, 0]
            chosen = logp.argmax(-1) if greedy else drawn
            tokens.append(torch.where(running, chosen, -1))
            logps.append(logp.gather(-1, chosen[:, None])[:, 0])
            running = running & (chosen != self._end)
            ids = chosen[:, None]
            if not running.any():
                break
        table, values = torch.stack(tokens, 1), torch.stack(logps, 1)
        kept = table >= 0
        return [
            (row[keep].tolist(), value[keep].tolist(), bool(row[keep][-1] == self._end))
            for row, value, keep in zip(table, values, kept, strict=True)
        ]


class Prompts:
    """The training prompts in a new order every epoch, and the held-out ones."""

    def __init__(self, folder: Path, tokenizer: Any, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._training = _read(folder / "train.jsonl")
        self.held_out = _read(folder / "heldout.jsonl")
        self._stream = self._endless()
        self._tokenizer = tokenizer

    def next(self, count: int) -> list[Question]:
        """The next so many questions."""
        return [next(self._stream) for _ in range(count)]

    def ids(self, questions: Sequence[Question]) -> list[list[int]]:
        """Their prompts as token ids."""
        ids: list[list[int]] = self._tokenizer([q for q, _ in questions], add_special_tokens=False).input_ids
        return ids

    def _endless(self) -> Iterator[Question]:
        while True:
            for row in self._random.permutation(len(self._training)):
                yield self._training[row]


def _read(file: Path) -> list[Question]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [(row["prompt"], row["answer"]) for row in rows]


def play(
    sampler: Sampler, prompts: Prompts, questions: Sequence[Question], first: int, study: Study, version: Version
) -> list[Group]:
    """One group per question, sampled by what the sampler holds now, which is `version`."""
    ids = prompts.ids(questions)
    size = study.group_size
    answers = sampler.answers([row for row in ids for _ in range(size)])
    groups = []
    for number, ((text, right), row) in enumerate(zip(questions, ids, strict=True)):
        prompt = Prompt(
            index=first + number,
            source="carry",
            row=number,
            epoch=0,
            tokens=np.asarray(row, np.int32),
            text=text,
        )
        mine = answers[number * size : (number + 1) * size]
        judged = tuple(_judged(sampler, answer, right, version) for answer in mine)
        groups.append(Group(prompt=prompt, sampling=Sampling(max_tokens=study.max_tokens), trajectories=judged))
    return groups


def _judged(sampler: Sampler, answer: tuple[list[int], list[float], bool], right: str, version: Version) -> Trajectory:
    tokens, logps, ended = answer
    text = str(sampler.tokenizer.decode(tokens, skip_special_tokens=True))
    reward = float(ended and text.strip() == right)
    completion = Completion(
        tokens=np.asarray(tokens, np.int32),
        logprobs=np.asarray(logps, np.float32),
        actions=np.ones(len(tokens), np.bool_),
        spans=(Span(lineage=version.lineage, step=version.step, count=len(tokens)),),
        finish="stop" if ended else "length",
        text=text,
        worker="sampler",
        engine="transformers",
        started=0.0,
        ended=0.0,
    )
    return Trajectory(completion=completion, reward=reward, parts={"exact": reward})


def accuracy(sampler: Sampler, prompts: Prompts, greedy: bool) -> float:
    """Share of held-out questions that the sampler answers rightly now."""
    answers = sampler.answers(prompts.ids(prompts.held_out), greedy)
    right = [
        ended and str(sampler.tokenizer.decode(tokens, skip_special_tokens=True)).strip() == wanted
        for (tokens, _, ended), (_, wanted) in zip(answers, prompts.held_out, strict=True)
    ]
    return float(np.mean(right))


def run(study: Study) -> Iterator[dict[str, Any]]:
    """One line per evaluation: step, accuracies, and the metrics of the last train step.

    Of the first `lag` steps none can be fed groups of that age; they get the oldest there are, those of version 0.
    """
    torch.manual_seed(study.seed)
    with HeldPort("127.0.0.1") as port:
        team = ranks.join(0, 1, f"127.0.0.1:{port.number}", 60.0)
    engine = Engine(load_model(ModelSection(path=str(study.model)), "float32"), study.learner, 1)
    algorithm = bind(study.algorithm)
    crew = Crew(team, Engines(engine), algorithm, study.learner)
    sampler = Sampler(study.model, study.seed, study.max_tokens)
    prompts = Prompts(study.data, sampler.tokenizer, study.seed)
    history: deque[tuple[Version, Weights]] = deque(maxlen=study.lag + 1)
    metrics: dict[str, float] = {}
    began = time.monotonic()
    for step in range(study.steps + 1):
        now = Version(0, step)
        history.append((now, crew.snapshot()))
        if step % study.evaluate_every == 0 or step == study.steps:
            sampler.load(history[-1][1])
            found = {"sampled": accuracy(sampler, prompts, False), "greedy": accuracy(sampler, prompts, True)}
            yield {"step": step, "seconds": time.monotonic() - began, **found, "metrics": metrics}
        if step == study.steps:
            return
        version, weights = history[0]
        sampler.load(weights)
        count = study.learner.groups_per_step
        groups = play(sampler, prompts, prompts.next(count), step * count, study, version)
        batch = assemble(groups, algorithm, Moment(now, {}, study.lag, mask_beyond=False))
        minis = deal.split_groups(batch, study.learner.mini_batches, step)
        batch = deal.weigh(batch, minis, algorithm.reduction)
        shares = deal.deal(batch, minis, 1, study.learner.micro_batch_tokens, study.learner.epochs, step)
        trained = crew.train(shares, False)
        if trained.applied == 0:
            yield {"step": step, "ended": "the gradient was infinite or undefined", "metrics": trained.metrics}
            return
        metrics = {name: value for name, value in trained.metrics.items() if np.isfinite(value)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one study and print one JSON line per evaluation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the model to start from")
    parser.add_argument("data", type=Path, help="folder with train.jsonl and heldout.jsonl")
    parser.add_argument("--lag", type=int, default=0)
    parser.add_argument("--algorithm", type=json.loads, default={"name": "grpo"}, help="the section, as JSON")
    parser.add_argument("--learner", type=json.loads, default={}, help="the section, as JSON")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    study = Study(
        model=args.model,
        data=args.data,
        lag=args.lag,
        algorithm=AlgorithmSection.model_validate(args.algorithm),
        learner=LearnerSection.model_validate(args.learner),
        steps=args.steps,
        seed=args.seed,
    )
    for line in run(study):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
