"""Measuring one version of the policy on fixed prompts, beside training or alone.

An evaluation takes no ledger entry, has a bounded number of requests in the generator, and is done by one
version from its first token to its last: whoever drives it holds back weight swaps meanwhile.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from penstock.rollout.config import EvaluationSection
from penstock.rollout.stream import PromptStream, Source
from penstock.services.contracts import DeadlinePassed, Generator, Request, Scorer
from penstock.services.trajectory import Completion, Finish, Prompt, Sampling, Trajectory
from penstock.services.versions import Version


@dataclass(frozen=True)
class EvaluationJob:
    """What is to be measured."""

    prompts: tuple[Prompt, ...]
    sampling: Sampling
    """Of the sampled answers; the greedy ones differ in the temperature only."""
    samples: int = 1
    greedy: bool = True
    part: str | None = None
    """The reward part that says whether an answer is right; None for the whole reward."""
    right_at: float = 1.0
    """An answer is right from this value of that part on."""
    version: Version | None = None
    """None for the one that the worker has when it begins."""
    deadline: float = 3600.0
    """Seconds after which it is given up."""


@dataclass(frozen=True)
class EvaluationSample:
    """One answer of an evaluation."""

    source: str
    row: int
    greedy: bool
    reward: float | None
    """In all, with what steps earn."""
    parts: dict[str, float | None]
    unscored: str | None
    tokens: int
    finish: Finish
    prompt: str
    text: str

    def judgement(self, part: str | None) -> float | None:
        return self.reward if part is None else self.parts.get(part)


@dataclass(frozen=True)
class EvaluationReport:
    """What was found."""

    version: Version
    metrics: dict[str, float]
    samples: tuple[EvaluationSample, ...]


def job_of(
    section: EvaluationSection, prompts: tuple[Prompt, ...], training: Sampling, part: str, right_at: float
) -> EvaluationJob:
    """The job that a run file asks for; what it leaves open is as in training. `part` and `right_at` say which reward
    part decides whether an answer is right, and from which value on."""
    sampling = Sampling(
        temperature=section.temperature,
        max_tokens=section.max_tokens or training.max_tokens,
        stop_token_ids=training.stop_token_ids,
    )
    return EvaluationJob(prompts, sampling, section.samples, section.greedy, part, right_at, deadline=section.deadline)


def evaluation_prompts(sources: Mapping[str, Source], most: int | None) -> tuple[Prompt, ...]:
    """The first `most` prompts of a fixed mixture of the sources, each row at most once."""
    stream = PromptStream(sources, seed=0, epochs=1)
    assert stream.length is not None
    return tuple(stream[i] for i in range(min(stream.length, most or stream.length)))


@dataclass
class _Asked:
    """One prompt whose answers are on their way."""

    prompt: Prompt
    answers: list[Completion | None]
    scoring: Future[tuple[Trajectory, ...]] | None = None


@dataclass
class Evaluation:
    """A job that is being done."""

    job: EvaluationJob
    version: Version
    slots: int
    began: float = field(default_factory=time.monotonic)
    _asked: list[_Asked] = field(default_factory=list)
    _flying: dict[str, tuple[_Asked, int]] = field(default_factory=dict)
    _cursor: int = 0

    @property
    def keys(self) -> tuple[str, ...]:
        """Requests that are in the generator."""
        return tuple(self._flying)

    @property
    def done(self) -> bool:
        judged = all(a.scoring is not None and a.scoring.done() for a in self._asked)
        return self._cursor == self._size and not self._flying and judged

    @property
    def _per_prompt(self) -> int:
        return self.job.samples + self.job.greedy

    @property
    def _size(self) -> int:
        return self._per_prompt * len(self.job.prompts)

    def pump(self, generator: Generator) -> None:
        """Submit answers while there are slots. Raises DeadlinePassed, PromptTooLong."""
        waited = time.monotonic() - self.began
        if waited > self.job.deadline:
            raise DeadlinePassed(
                f"the evaluation of version {self.version} was given up after {waited:.0f} s: {self._cursor} of "
                f"{self._size} answers were asked for, {len(self._flying)} are being generated, the others wait for "
                "the scorer"
            )
        while len(self._flying) < self.slots and self._cursor < self._size:
            at, member = divmod(self._cursor, self._per_prompt)
            if member == 0:
                self._asked.append(_Asked(self.job.prompts[at], [None] * self._per_prompt))
            greedy = member == self.job.samples
            key = f"eval-{self.version}-{self._cursor}"
            generator.submit(Request(key, self.job.prompts[at], self._sampling(greedy)))
            self._flying[key] = (self._asked[at], member)
            self._cursor += 1

    def absorb(self, key: str, completion: Completion, scorer: Scorer) -> bool:
        """Take one answer; False when it is not of this evaluation."""
        if key not in self._flying:
            return False
        asked, member = self._flying.pop(key)
        asked.answers[member] = completion
        complete = [answer for answer in asked.answers if answer is not None]
        if len(complete) == self._per_prompt:
            asked.scoring = scorer.submit(asked.prompt, complete)
        return True

    def report(self) -> EvaluationReport:
        """Once it is done. Raises what the scorer raised."""
        samples = tuple(
            _sample(asked.prompt, member == self.job.samples, trajectory)
            for asked in self._asked
            if asked.scoring is not None
            for member, trajectory in enumerate(asked.scoring.result(timeout=0))
        )
        metrics = summarise(samples, self.job.part, self.job.right_at)
        metrics["eval/seconds"] = time.monotonic() - self.began
        return EvaluationReport(self.version, metrics, samples)

    def _sampling(self, greedy: bool) -> Sampling:
        if not greedy:
            return self.job.sampling
        given = self.job.sampling
        return Sampling(temperature=0.0, max_tokens=given.max_tokens, stop_token_ids=given.stop_token_ids)


def _sample(prompt: Prompt, greedy: bool, trajectory: Trajectory) -> EvaluationSample:
    completion = trajectory.completion
    return EvaluationSample(
        source=prompt.source,
        row=prompt.row,
        greedy=greedy,
        reward=trajectory.task_reward,
        parts=trajectory.parts,
        unscored=trajectory.unscored,
        tokens=len(completion.tokens),
        finish=completion.finish,
        prompt=prompt.text,
        text=completion.text,
    )


def summarise(samples: Sequence[EvaluationSample], part: str | None, right_at: float) -> dict[str, float]:
    """Accuracy, reward, length and unscored share, sampled and greedy; accuracy also per dataset, if several."""
    metrics: dict[str, float] = {}
    for name, greedy in (("sampled", False), ("greedy", True)):
        chosen = [s for s in samples if s.greedy == greedy]
        judged = [s for s in chosen if s.judgement(part) is not None]
        if not chosen:
            continue
        metrics[f"eval/{name}/length"] = float(np.mean([s.tokens for s in chosen]))
        metrics[f"eval/{name}/unscored"] = 1 - len(judged) / len(chosen)
        right: dict[str, list[bool]] = defaultdict(list)
        for sample in judged:
            right[sample.source].append((sample.judgement(part) or 0.0) >= right_at)
        if judged:
            metrics[f"eval/{name}/accuracy"] = float(np.mean([r for each in right.values() for r in each]))
        rewards = [s.reward for s in chosen if s.reward is not None]
        if rewards:
            metrics[f"eval/{name}/reward"] = float(np.mean(rewards))
        if len({s.source for s in samples}) > 1:
            metrics |= {f"eval/{source}/{name}/accuracy": float(np.mean(r)) for source, r in right.items()}
    return metrics


def evaluate(generator: Generator, scorer: Scorer, job: EvaluationJob, slots: int = 256) -> EvaluationReport:
    """Do one job with a generator that does nothing else. Raises DeadlinePassed, and what scorer or engine raise."""
    if job.version is not None and job.version != generator.version:
        generator.swap(job.version)
    evaluation = Evaluation(job, generator.version, slots)
    while not evaluation.done:
        evaluation.pump(generator)
        for key, completion in generator.step():
            evaluation.absorb(key, completion, scorer)
        if not evaluation.keys:
            time.sleep(0.005)  # only judgements are missing
    return evaluation.report()
