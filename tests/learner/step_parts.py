"""A batch, tiny models and PPO written out in plain torch, for the tests of the train step."""

from __future__ import annotations

from types import SimpleNamespace

import builders
import numpy as np
import torch
from learner_parts import tiny_model

from penstock.learner import deal
from penstock.learner.algorithms.bound import bind
from penstock.learner.algorithms.reductions import REDUCTIONS
from penstock.learner.algorithms.table import find
from penstock.learner.assemble import Moment, assemble
from penstock.learner.config import AlgorithmSection, LearnerSection
from penstock.learner.critic import ValueModel
from penstock.learner.deal import Share
from penstock.services.logprob_model import LogprobModel
from penstock.services.trajectory import Group, Sampling, Trajectory
from penstock.services.versions import FIRST

TEMPERATURE, MAX_WEIGHT, KL, ENTROPY, GAMMA, LAM = 0.8, 1.1, 0.1, 0.01, 0.9, 0.8
CLIP_LOW, CLIP_HIGH, VALUE_CLIP, HEAD_COEFFICIENT = 0.1, 0.2, 0.05, 0.5
TRUNCATED = (0, 2, 5)
"""Rows that were cut at their budget."""
VALUES = {
    "own": {"kind": "own", "clip": VALUE_CLIP},
    "head": {"kind": "head", "clip": VALUE_CLIP, "coefficient": HEAD_COEFFICIENT},
}


def ppo(kind: str, **cells) -> AlgorithmSection:
    """PPO with everything switched on that a row may have."""
    given = {
        "name": "ppo",
        "value": VALUES[kind],
        "credit": {"gamma": GAMMA, "lam": LAM, "bootstrap_truncated": True},
        "objective": {"clip_low": CLIP_LOW, "clip_high": CLIP_HIGH},
        "trust": {"max_weight": MAX_WEIGHT},
        "kl": {"coefficient": KL, "estimator": "k3", "placement": "loss"},
        "entropy_coefficient": ENTROPY,
    }
    return AlgorithmSection.model_validate(given | cells)


def batch_of(seed=0, reduction="token_mean"):
    """Seven answers of lengths 1 to 9 to three prompts, some tokens of a tool in the middle, rewards at every token."""
    random = np.random.default_rng(seed)
    prompts, lengths = np.array([2, 2, 3, 3, 3, 1, 1]), np.array([9, 1, 4, 6, 2, 3, 8])
    total = int(lengths.sum())
    mask = random.random(total) > 0.2
    mask[0] = True
    batch = builders.batch_of(
        total,
        7,
        prompt_tokens=random.integers(0, 32, int(prompts.sum())).astype(np.int32),
        prompt_lengths=prompts,
        tokens=random.integers(0, 32, total).astype(np.int32),
        lengths=lengths,
        temperatures=np.full(7, TEMPERATURE, np.float32),
        groups=np.array([5, 5, 6, 6, 6, 9, 9]),
        members=np.array([0, 1, 0, 1, 2, 0, 1]),
        truncated=np.isin(np.arange(7), TRUNCATED),
        mask=mask,
        logp_sampler=np.where(mask, random.normal(-3.5, 0.3, total), np.nan).astype(np.float32),
        token_rewards=random.normal(0.5, 1, total).astype(np.float32),
        advantages=random.normal(0, 1, total).astype(np.float32),
        logp_reference=np.where(mask, random.normal(-3.5, 0.3, total), np.nan).astype(np.float32),
    )
    return deal.weigh(batch, [range(7)], REDUCTIONS[reduction])


def dealt(batch, owners, micro):
    """Shares by hand: `owners[r]` are the rows of rank r, in micro-batches of `micro` rows."""
    plans = [[list(range(i, min(i + micro, len(rows)))) for i in range(0, len(rows), micro)] or [[]] for rows in owners]
    passes = max(map(len, plans))
    plans = [plan + [[]] * (passes - len(plan)) for plan in plans]
    return [Share(batch.select(rows), [plan], [[0]]) for rows, plan in zip(owners, plans, strict=True)]


def bare_models(kind: str, seed=0, moved=0.0, **changes):
    """A policy and its values, all weights `moved` at random, and value heads far from 0: those of a new one are 0, and
    would pass no gradient on. Takes the place of `Engines` where nothing is updated."""
    policy = LogprobModel(tiny_model(seed, **changes), value_head=kind == "head")
    critic = ValueModel(tiny_model(seed + 1, **changes).base_model) if kind == "own" else None
    random = torch.Generator().manual_seed(17)
    for model in (policy, critic):
        if model is None:
            continue
        for name, parameter in model.named_parameters():
            size = 0.5 if name == "value_head.weight" else 0.0
            noise = torch.randn(parameter.shape, generator=random)
            parameter.data += size * noise + moved * torch.randn(parameter.shape, generator=random)
    return SimpleNamespace(policy=policy, critic=critic, device=torch.device("cpu"))


def engines_of(models, section):
    """The same models on DeepSpeed."""
    from penstock.learner.engine import Engine
    from penstock.learner.engines import Engines

    critic = None if models.critic is None else Engine(models.critic, section, section.ranks)
    return Engines(Engine(models.policy, section, section.ranks), critic, section.learning_rate)


def start_and_losses(old, engines, share, section: AlgorithmSection, team, tally):
    """What a step computes at its start with the models `old`, and the backward passes of one mini-batch with the
    models in `engines`, up to, not including, the update."""
    from penstock.learner.start import begin
    from penstock.learner.step import micro_losses

    algorithm = bind(section)
    start = begin(old, share, algorithm, team)
    (parts,) = start.parts
    for place, part in enumerate(parts):
        losses = micro_losses(engines, part, algorithm, start.bound, False, tally)
        last = place == len(parts) - 1
        engines.policy.backward(losses.policy, last)
        if losses.critic is not None:
            engines.critic.backward(losses.critic, last)
    return start


def gradients(models):
    """Whole gradients of the models that engines are at work on, by name."""
    from deepspeed.utils import safe_get_full_grad

    found = {}
    for place, model in (("policy", models.policy), ("critic", models.critic)):
        for name, parameter in model.named_parameters() if model is not None else ():
            found[f"{place} {name}"] = safe_get_full_grad(parameter).clone()
    return found


# --- PPO in plain torch: one row at a time, no padding, no engine, the formulas written out ----------------------


def plain_pass(models, prompt, response):
    """Distributions before every token of the answer [T, vocab], and values before each and after the last [T + 1]."""
    ids = torch.tensor([[*prompt, *response]])
    first = len(prompt) - 1
    states = models.policy.model.base_model(input_ids=ids).last_hidden_state[0, first:]
    predicted = (models.policy.model.lm_head(states[:-1]) / TEMPERATURE).log_softmax(-1)
    if models.critic is None:
        return predicted, models.policy.value_head(states)[:, 0]
    states = models.critic.backbone(input_ids=ids).last_hidden_state[0, first:]
    return predicted, models.critic.value_head(states)[:, 0]


def plain_gae(rewards, values, mask, after):
    """{token: (advantage, return)} of one answer, backwards over the tokens that count."""
    counted = np.flatnonzero(mask).tolist()
    found, following_value, following_advantage = {}, after, 0.0
    for place in range(len(counted) - 1, -1, -1):
        t = counted[place]
        end = counted[place + 1] if place + 1 < len(counted) else len(mask)
        reward = float(rewards[t:end].astype(np.float64).sum())
        value = float(values[t])
        advantage = reward + GAMMA * following_value - value + GAMMA * LAM * following_advantage
        found[t] = (advantage, advantage + value)
        following_value, following_advantage = value, advantage
    return found


def plain_start(models, batch):
    """Per row {token: (log π_prox, value, whitened advantage, return)}."""
    found = []
    columns = [batch.split(c) for c in (batch.token_rewards, batch.mask)]
    with torch.no_grad():
        for i, (prompt, response) in enumerate(batch.rows()):
            predicted, values = plain_pass(models, prompt, response)
            rewards, mask = (column[i] for column in columns)
            after = float(values[-1]) if i in TRUNCATED else 0.0
            credit = plain_gae(rewards, values, mask, after)
            found.append(
                {t: (float(predicted[t, int(response[t])]), float(values[t]), *both) for t, both in credit.items()}
            )
    every = np.array([advantage for row in found for _, _, advantage, _ in row.values()])
    mean, deviation = every.mean(), every.std(ddof=1)
    return [{t: (p, v, (a - mean) / deviation, g) for t, (p, v, a, g) in row.items()} for row in found]


def plain_losses(old, new, batch):
    """(policy loss, value loss, gradients by name) of PPO at the models `new`, for a step that began at `old`."""
    start = plain_start(old, batch)
    policy, critic = torch.zeros(()), torch.zeros(())
    columns = [batch.split(c) for c in (batch.logp_sampler, batch.logp_reference)]
    for i, (prompt, response) in enumerate(batch.rows()):
        predicted, values = plain_pass(new, prompt, response)
        for t, (prox, old_value, advantage, goal) in start[i].items():
            sampler, reference = (float(column[i][t]) for column in columns)
            logp = predicted[t, int(response[t])]
            ratio = torch.exp(logp - prox)
            clipped = -torch.min(ratio * advantage, ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * advantage)
            weight = min(float(np.exp(prox - sampler)), MAX_WEIGHT)
            x = reference - logp
            entropy = -(predicted[t].exp() * predicted[t]).sum()
            policy = policy + weight * clipped + KL * (torch.exp(x) - 1 - x) - ENTROPY * entropy
            held = old_value + (values[t] - old_value).clamp(-VALUE_CLIP, VALUE_CLIP)
            critic = critic + torch.max((values[t] - goal) ** 2, (held - goal) ** 2) / 2
    count = sum(len(row) for row in start)
    policy, critic = policy / count, critic / count
    for model in (new.policy, new.critic):
        if model is not None:
            model.zero_grad()
    (policy + (HEAD_COEFFICIENT if new.critic is None else 1.0) * critic).backward()
    grads = {}
    for place, model in (("policy", new.policy), ("critic", new.critic)):
        for name, parameter in model.named_parameters() if model is not None else ():
            grads[f"{place} {name}"] = parameter.grad.clone()
    return policy.item(), critic.item(), grads


# --- whole steps ----------------------------------------------------------------------------------------------------


def row(name: str) -> AlgorithmSection:
    """A row of the table as a run would have it, with a reference model's log-probs in use."""
    given = {"name": name}
    if find(name).reduction.kind == "fixed_length":
        given["reduction"] = {"budget": 8}
    return AlgorithmSection.model_validate(given)


def groups_of(seed=0, groups=4, members=4):
    """Groups of answers of lengths 1 to 8 with rewards of 0 and 1, as if another engine had sampled them."""
    random = np.random.default_rng(seed)
    made = []
    for index in range(groups):
        trajectories = []
        for member in range(members):
            length = int(random.integers(1, 9))
            completion = builders.completion(
                tokens=random.integers(0, 32, length), logprobs=random.normal(-3.5, 0.1, length).tolist()
            )
            reward = float(random.integers(0, 2)) if member > 1 else float(member)
            made_up = completion.logprobs + np.float32(0.01)
            parts = {"exact": reward}
            trajectories.append(
                Trajectory(completion=completion, reward=reward, parts=parts, reference_logprobs=made_up)
            )
        prompt = builders.prompt(index, tokens=random.integers(0, 32, 1 + index % 3))
        made.append(Group(prompt=prompt, sampling=Sampling(max_tokens=8), trajectories=tuple(trajectories)))
    return made


def shares_of(algorithm: AlgorithmSection, section: LearnerSection, seed=0):
    """What rank 0 deals out for one step."""
    bound = bind(algorithm)
    batch = assemble(groups_of(seed), bound, Moment(FIRST, {}, 0, False))
    minis = deal.split_groups(batch, section.mini_batches, seed)
    weighed = deal.weigh(batch, minis, bound.reduction)
    return deal.deal(weighed, minis, section.ranks, section.micro_batch_tokens, section.epochs, seed)
