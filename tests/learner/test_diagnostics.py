"""Diagnostics per bucket of lag: against numbers by hand and against a plain loop over tokens."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.learner.algorithms.ranges import within_range
from penstock.learner.diagnostics import BUCKETS, bucket_of, observe, step_metrics
from penstock.learner.metrics import METRICS
from penstock.learner.ranks import Team
from penstock.learner.tally import Tally
from penstock.services.metrics import describe

ALONE = Team(0, 1, 1.0, None)


def part_of(mask, sampler, lags, older=None, reference=None):
    mask = torch.as_tensor(mask)
    return SimpleNamespace(
        mask=mask,
        logp_sampler=torch.as_tensor(sampler, dtype=torch.float64),
        lags=torch.as_tensor(lags, dtype=torch.int32),
        older_kv=torch.zeros_like(mask) if older is None else torch.as_tensor(older),
        logp_reference=None if reference is None else torch.as_tensor(reference, dtype=torch.float64),
    )


def tallied(*parts):
    """One tally of (part, within, keep, logp, prox, entropy, facts)."""
    tally = Tally()
    for part in parts:
        observe(tally, *part)
    tally.add_number("actor/pg_loss", 0.0)
    tally.add_number("actor/loss", 0.0)
    return tally


def metrics_of(*parts, passes=1, team=ALONE):
    found = step_metrics(tallied(*parts).over(team), 1, passes)
    del found["actor/pg_loss"], found["actor/loss"]
    return found


def test_lags_fall_into_the_buckets_0_1_2_3_4_5_8_and_above_and_older_caches_into_their_own():
    lags = torch.tensor([0, 1, 2, 3, 4, 5, 8, 9, 700, 0, 6])
    older = torch.tensor([False] * 9 + [True, True])
    assert [BUCKETS[i] for i in bucket_of(lags, older)] == [
        "lag_0", "lag_1", "lag_2", "lag_3_4", "lag_3_4", "lag_5_8", "lag_5_8", "lag_9_up", "lag_9_up",
        "older_kv", "older_kv",
    ]  # fmt: skip


def test_by_hand_two_fresh_tokens_one_of_lag_1_and_one_on_an_older_cache():
    half, nan = math.log(0.5), math.nan
    # π_prox/μ: 1, 2 (lag 0); 1/2 (lag 1); 4 (older cache). A tool token in the middle holds NaN.
    prox = torch.tensor([[half, half, nan, 2 * half, half]], dtype=torch.float64)
    sampler = [[half, 2 * half, nan, half, 3 * half]]
    part = part_of([[True, True, False, True, True]], sampler, [[0, 0, 0, 1, 0]], [[False] * 4 + [True]])
    keep = torch.tensor([[True, True, False, False, True]])
    clipped = torch.tensor([[0.0, 1.0, nan, 0.0, 0.0]])
    found = metrics_of(
        (part, part.mask, keep, prox, prox, torch.full((1, 5), 2.0), {"actor/pg_clipfrac_high": clipped})
    )
    assert found["off_policy/lag_0/tokens"] == 2
    assert found["rollout_corr/lag_0/mean"] == pytest.approx(1.5)
    assert found["rollout_corr/lag_0/max"] == pytest.approx(2)
    assert found["rollout_corr/lag_0/second_moment"] == pytest.approx(2.5)
    assert found["rollout_corr/lag_0/ess"] == pytest.approx(9 / (2 * 5))
    assert found["kl/offpolicy/lag_0/k1"] == pytest.approx(-math.log(2) / 2)
    assert found["kl/offpolicy/lag_0/k3"] == pytest.approx((2 - 1 - math.log(2)) / 2)
    assert found["actor/lag_0/pg_clipfrac_high"] == 0.5
    assert found["rollout_corr/lag_0/left_out"] == 0
    assert found["kl/offpolicy/lag_1/k1"] == pytest.approx(math.log(2))
    assert found["rollout_corr/lag_1/left_out"] == 1
    assert found["rollout_corr/older_kv/mean"] == pytest.approx(4)
    assert found["mismatch/mean"] == pytest.approx(math.log(2) / 2)
    assert found["mismatch/max"] == pytest.approx(math.log(2))
    assert found["rollout_corr/mean"] == pytest.approx(7.5 / 4)
    assert found["rollout_corr/ess"] == pytest.approx(7.5**2 / (4 * 21.25))
    assert found["off_policy/older_kv"] == 0.25
    assert found["off_policy/mean"] == 0.25
    assert found["actor/entropy"] == 2
    assert found["kl/update"] == 0
    assert not [name for name in found if any(f"/{bucket}/" in name for bucket in BUCKETS[2:6])]


def test_a_token_beyond_the_range_is_counted_and_measured_nowhere():
    prox = torch.tensor([[-1.0, -200.0]], dtype=torch.float64)
    part = part_of([[True, True]], [[-1.0, -1.0]], [[3, 9]])
    within, beyond = within_range(part.mask, prox, part.logp_sampler)
    found = metrics_of((part, within, within, prox, prox, torch.ones(1, 2), beyond))
    assert found["actor/lag_9_up/out_of_range"] == 1
    assert found["actor/out_of_range"] == 0.5
    assert found["off_policy/lag_9_up/tokens"] == 1
    assert found["rollout_corr/lag_9_up/left_out"] == 1
    assert "rollout_corr/lag_9_up/mean" not in found
    assert found["rollout_corr/mean"] == found["rollout_corr/max"] == found["rollout_corr/ess"] == 1


def test_tokens_are_counted_once_however_often_the_batch_is_gone_through():
    part = part_of([[True, True]], [[-1.0, -1.0]], [[0, 1]])
    logp = torch.full((1, 2), -1.0)
    seen = (part, part.mask, part.mask, logp, logp, logp, {})
    assert metrics_of(seen, seen, passes=2)["off_policy/lag_1/tokens"] == 1


def by_loop(parts, passes=1):
    """The same metrics, token by token."""
    tokens = {name: [] for name in ("all", *BUCKETS)}
    for part, within, keep, logp, prox, entropy, facts in parts:
        for place in np.ndindex(*part.mask.shape):
            if not part.mask[place]:
                continue
            lag, older = int(part.lags[place]), bool(part.older_kv[place])
            ends = (0, 1, 2, 4, 8, math.inf)
            bucket = "older_kv" if older else BUCKETS[next(i for i, end in enumerate(ends) if lag <= end)]
            token = {"lag": lag, "older": older, "left_out": not keep[place], "inside": bool(within[place])}
            token |= {name: float(values[place]) for name, values in facts.items()}
            if token["inside"]:
                token["w"] = math.exp(float(prox[place]) - float(part.logp_sampler[place]))
                token["apart"] = float(part.logp_sampler[place]) - float(prox[place])
                token["moved"] = float(prox[place]) - float(logp[place])
                token["entropy"] = float(entropy[place])
                if part.logp_reference is not None:
                    token["from_reference"] = float(logp[place]) - float(part.logp_reference[place])
            for name in ("all", bucket):
                tokens[name].append(token)
    found = {}
    for bucket, mine in tokens.items():
        if mine:
            found |= row_by_loop(bucket, mine, passes)
    everything = tokens["all"]
    if everything:
        found["off_policy/mean"] = sum(t["lag"] for t in everything) / len(everything)
        found["off_policy/max"] = max(t["lag"] for t in everything)
        found["off_policy/older_kv"] = sum(t["older"] for t in everything) / len(everything)
    if fresh := [abs(t["apart"]) for t in tokens["lag_0"] if t["inside"]]:
        found |= {"mismatch/mean": sum(fresh) / len(fresh), "mismatch/max": max(fresh)}
    return found


def row_by_loop(bucket, tokens, passes):
    def mean(values):
        values = list(values)
        return sum(values) / len(values)

    def k3(k1):
        return math.expm1(-k1) + k1

    inside = [t for t in tokens if t["inside"]]
    found = {name: mean(t[name] for t in tokens) for name in tokens[0] if "/" in name}
    found["rollout_corr/left_out"] = mean(t["left_out"] for t in tokens)
    if inside:
        total, squares = sum(t["w"] for t in inside), sum(t["w"] ** 2 for t in inside)
        found |= {
            "rollout_corr/mean": total / len(inside),
            "rollout_corr/second_moment": squares / len(inside),
            "rollout_corr/ess": total**2 / (len(inside) * squares),
            "rollout_corr/max": max(t["w"] for t in inside),
            "kl/offpolicy/k1": mean(t["apart"] for t in inside),
            "kl/offpolicy/k3": mean(k3(t["apart"]) for t in inside),
            "kl/update/k1": mean(t["moved"] for t in inside),
            "kl/update/k3": mean(k3(t["moved"]) for t in inside),
        }
    if bucket != "all":
        found["off_policy/tokens"] = len(tokens) / passes
        return {f"/{bucket}/".join(name.rsplit("/", 1)): value for name, value in found.items()}
    if inside:
        found["actor/entropy"] = mean(t["entropy"] for t in inside)
        if "from_reference" in inside[0]:
            found["kl/reference"] = mean(k3(t["from_reference"]) for t in inside)
    return {name.removesuffix("/k3"): value for name, value in found.items()}


def any_parts(seed, count, with_reference, spread):
    """Micro-batches of random shape; NaN and infinities where nothing counts, some tokens beyond the range."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        shape = tuple(random.integers(1, 6, 2))
        mask = random.random(shape) < 0.7
        rubbish = random.choice([math.nan, math.inf, -math.inf, 1e30], shape)

        def column(value, mask=mask, rubbish=rubbish):
            return torch.from_numpy(np.where(mask, value, rubbish))

        prox = random.normal(-2, 1, shape)
        sampler = prox + random.normal(0, spread, shape) - 200 * (random.random(shape) < 0.1)
        part = part_of(
            mask,
            column(sampler),
            random.choice([0, 0, 0, 1, 2, 3, 4, 5, 8, 9, 40], shape),
            random.random(shape) < 0.2,
            column(prox + random.normal(0, spread, shape)) if with_reference else None,
        )
        logp = column(prox + random.normal(0, spread, shape))
        within, beyond = within_range(part.mask, logp, column(prox), part.logp_sampler)
        keep = within & torch.from_numpy(random.random(shape) < 0.8)
        facts = {name: column(random.random(shape)) for name in ("actor/pg_clipfrac_low", "rollout_corr/masked")}
        yield part, within, keep, logp, column(prox), column(random.random(shape)), facts | beyond


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.booleans(), st.sampled_from([1e-4, 0.5, 8.0]))
def test_every_value_is_that_of_a_plain_loop_over_the_tokens(seed, count, with_reference, spread):
    parts = list(any_parts(seed, count, with_reference, spread))
    found, wanted = metrics_of(*parts, passes=2), by_loop(parts, passes=2)
    assert found.keys() == wanted.keys()
    assert all(found[name] == pytest.approx(value, rel=1e-9, abs=1e-12) for name, value in wanted.items())
    assert not [name for name in found if describe(name, METRICS) is None]


class Pair(Team):
    """This rank and another one, whose numbers are given in the order in which they are asked for."""

    def __init__(self, theirs=()):
        super().__init__(0, 2, 1.0, None)
        self.said, self.theirs = [], list(theirs)

    def sum(self, values):
        self.said.append(values)
        return values + self.theirs.pop(0) if self.theirs else values

    def max(self, values):
        self.said.append(values)
        return np.maximum(values, self.theirs.pop(0)) if self.theirs else values


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3), st.booleans())
def test_two_ranks_together_find_what_one_rank_finds_alone(seed, split, with_reference):
    parts = list(any_parts(seed, 3, with_reference, 0.5))
    # A rank without rows takes part with micro-batches in which nothing counts.
    empty = part_of([[False]], [[0.0]], [[0]], reference=[[0.0]] if with_reference else None)
    nothing = torch.zeros(1, 1)
    facts = dict.fromkeys(parts[0][-1], nothing)
    idle = (empty, empty.mask, empty.mask, nothing, nothing, nothing, facts)
    other = Pair()
    tallied(*(parts[split:] or [idle])).over(other)
    together = metrics_of(*(parts[:split] or [idle]), team=Pair(other.said))
    assert together == pytest.approx(metrics_of(*parts), rel=1e-9, abs=1e-12)
