"""Whole groups to a batch: rewards become advantages, lags and masks are laid beside every token. On rank 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch

from penstock.learner.algorithms import credit
from penstock.learner.algorithms.advantages import has_signal
from penstock.learner.algorithms.bound import BoundAlgorithm
from penstock.learner.batch import Batch
from penstock.learner.columns import Columns
from penstock.services import staleness
from penstock.services.contracts import PenstockError
from penstock.services.staleness import Forks
from penstock.services.trajectory import Completion, Group, Mask, Trajectory
from penstock.services.versions import Version


@dataclass(frozen=True)
class Moment:
    """When a batch is consumed, as far as staleness is concerned."""

    now: Version
    """The weights that the train step starts from."""
    forks: Forks
    max_lag: int
    mask_beyond: bool
    """Leave tokens out of the loss that lag more than max_lag (`outlived: mask`)."""


def signal_in(group: Group) -> bool:
    """Whether the scored members of a group differ in task reward."""
    rewards, scored = _rewards(group)
    return has_signal(rewards, scored)


def assemble(groups: Sequence[Group], algorithm: BoundAlgorithm, moment: Moment) -> Batch:
    """A batch of all responses that have a token to train on. Weights are still 0; see `deal.weigh`.

    Raises PenstockError when the algorithm needs reference log-probs and a scored response has none, and when a token
    was drawn that its record says could not be.
    """
    with_reference = all(t.reference_logprobs is not None for g in groups for t in g.scored)
    if not with_reference and (algorithm.penalty is not None or algorithm.reward_kl > 0):
        missing = [g.prompt.index for g in groups if any(t.reference_logprobs is None for t in g.scored)]
        raise PenstockError(
            f"the KL penalty needs reference log-probs, but prompts {missing[:8]} came without; "
            "give the run a reference model, or set algorithm.kl.coefficient to 0"
        )
    answers = [(g, member, t) for g in groups for member, t in enumerate(g.trajectories)]
    actions = [torch.from_numpy(t.completion.actions.copy()) for _, _, t in answers]
    falling = [_token_rewards(t, acts, algorithm.reward_kl) for (_, _, t), acts in zip(answers, actions, strict=True)]
    advantages = _advantages(groups, falling, algorithm)
    columns = Columns(with_reference, cache(partial(staleness.lag, moment.now, forks=moment.forks)))
    for (group, member, trajectory), acts, rewards, advantage in zip(
        answers, actions, falling, advantages, strict=True
    ):
        completion = trajectory.completion
        _check_kept(group, member, completion)
        mask = drawn_from_known(completion) & (trajectory.reward is not None)
        if moment.mask_beyond:
            mask = mask & (staleness.token_lags(completion.spans, moment.now, moment.forks) <= moment.max_lag)
        if not mask.any():
            continue
        spread = torch.zeros_like(rewards) if algorithm.credit is None else algorithm.credit(rewards, acts, advantage)
        columns.add(group, member, trajectory, mask, rewards.numpy(), spread.numpy())
    return columns.batch()


def drawn_from_known(completion: Completion) -> Mask:
    """[T] actions whose distribution can be computed again; not where more tokens were left by top-p and top-k than are
    recorded. Such tokens are not trained on, and what they cost in KL is not known."""
    return completion.actions if completion.kept is None else completion.actions & (completion.kept.counts > 0)


def _check_kept(group: Group, member: int, completion: Completion) -> None:
    """Raises PenstockError when an action is not among the tokens that it was drawn from."""
    if (kept := completion.kept) is None:
        return
    owners = np.repeat(np.arange(len(kept.counts)), kept.counts)
    found = np.isin(np.arange(len(kept.counts)), owners[kept.tokens == completion.tokens[owners]])
    if (wrong := np.flatnonzero(drawn_from_known(completion) & ~found)).size:
        at = int(wrong[0])
        left = kept.tokens[owners == at]
        raise PenstockError(
            f"prompt {group.prompt.index}, member {member}: token {at} is {completion.tokens[at]}, "
            f"but {completion.worker} recorded that top-p and top-k had left {len(left)} others "
            f"({', '.join(map(str, left[:8]))} …): the record is corrupt, or the engine records another filter than it "
            "applies"
        )


def _rewards(group: Group) -> tuple[torch.Tensor, torch.Tensor]:
    """Task rewards [members] in float64, 0 where unscored, and which members are scored."""
    values = [t.task_reward for t in group.trajectories]
    rewards = torch.tensor([0.0 if v is None else v for v in values], dtype=torch.float64)
    return rewards, torch.tensor([v is not None for v in values])


def _token_rewards(trajectory: Trajectory, actions: torch.Tensor, reward_kl: float) -> torch.Tensor:
    """[T] float64: step rewards, outcome, and −β log(μ/π_ref) at every action where the KL is in the reward."""
    completion = trajectory.completion
    if trajectory.reward is None:
        return torch.zeros(len(actions), dtype=torch.float64)
    rewards = credit.token_rewards(trajectory.reward, actions, [(s.token, s.score) for s in trajectory.steps])
    if reward_kl > 0:
        assert trajectory.reference_logprobs is not None, "checked in assemble"
        # Masked before the difference: what stands beside tokens that are no actions means nothing.
        known = drawn_from_known(completion)
        apart = np.where(known, completion.logprobs, 0.0) - np.where(known, trajectory.reference_logprobs, 0.0)
        rewards = rewards - reward_kl * torch.from_numpy(apart.astype(np.float64))
    return rewards


def _advantages(groups: Sequence[Group], falling: Sequence[torch.Tensor], algorithm: BoundAlgorithm) -> list[float]:
    """One per answer of all groups, on everything that falls to its tokens.

    Signal is decided by the task reward, before the KL is taken off: that differs in every answer, and a z-score
    would blow it up.
    """
    judged = [_rewards(group) for group in groups]
    sizes = torch.tensor([len(scored) for _, scored in judged])
    scored = torch.cat([scored for _, scored in judged])
    signal = torch.tensor([has_signal(*each) for each in judged]).repeat_interleave(sizes)
    totals = torch.stack([rewards.sum() for rewards in falling])
    found = algorithm.baseline(totals, torch.arange(len(groups)).repeat_interleave(sizes), scored, signal)
    if algorithm.whiten_sequences is not None:
        # The same for a batch: where no task reward differs there is nothing that a deviation could divide.
        outcomes = torch.cat([rewards for rewards, _ in judged])
        differ = has_signal(outcomes, scored)
        found = algorithm.whiten_sequences(found, scored) if differ else torch.zeros_like(found)
    values: list[float] = found.tolist()
    return values
