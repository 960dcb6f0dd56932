"""What floats do to the maths: anything on masked tokens, the whole range of log-ratios, NaN, bfloat16."""

from __future__ import annotations

import functools
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from maths_parts import OBJECTIVES, PENALTIES, REJECTIONS, TRUSTS, F

from benchmarks.drift import measure, section, world
from penstock.learner.algorithms import advantages, credit, ranges, reductions, table, values
from penstock.learner.algorithms.bound import bind
from penstock.learner.algorithms.composition import compose

NAN, INF = float("nan"), math.inf
JUNK = (NAN, INF, -INF, 3e38, -3e38)
MASK = torch.tensor([[True, False, True, False], [False, True, True, False], [False] * 4])


def algorithm(objective, trust="uncorrected", reject="keep_all", penalty="none", entropy=0.0):
    return SimpleNamespace(
        objective=OBJECTIVES[objective],
        trust=TRUSTS[trust],
        reject=lambda *args: REJECTIONS[reject](*args[:4]),
        penalty=PENALTIES.get(penalty),
        kl_coefficient=0.5,
        entropy_coefficient=entropy,
    )


def inputs(seed, dtype=F):
    """logp, prox, sampler, reference, advantages, entropy, all [3, 4]."""
    generator = torch.Generator().manual_seed(seed)
    found = -3 * torch.rand(6, 3, 4, generator=generator, dtype=dtype)
    return [*found[:4], found[4] + 1.5, -found[5]]


def with_junk(tensors, junk):
    return [torch.where(MASK, x, junk) for x in tensors]


def value_and_slopes(function, first, *rest):
    """Every tensor that `function` gives, and the gradient of their sum in the first argument."""
    first = first.detach().requires_grad_()
    found = [x for x in function(first, *rest) if isinstance(x, torch.Tensor)]
    total = sum(x.sum() for x in found if x.requires_grad)
    slopes = torch.autograd.grad(total, first)[0] if isinstance(total, torch.Tensor) else torch.zeros_like(first)
    return [*(x.detach() for x in found), slopes]


def same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def facts_where_counted(facts):
    return [torch.where(MASK, facts[name], 0.0) for name in sorted(facts)]


# --- masked tokens may hold anything ----------------------------------------------------------------


def _objective(function):
    def call(logp, prox, sampler, _reference, weight, _entropy):
        losses, facts = function(logp, prox, sampler, weight, MASK)
        return losses, *facts_where_counted(facts)

    return call


def _trust(function):
    def call(logp, prox, sampler, _reference, weight, _entropy):
        trust, facts = function(prox, sampler, weight, MASK)
        return *trust, *facts_where_counted(facts)

    return call


def _rejection(function):
    def call(logp, prox, sampler, _reference, weight, _entropy):
        keep, facts = function(prox, sampler, weight, MASK)
        return keep, *facts_where_counted(facts)

    return call


def _penalty(name):
    def call(logp, prox, sampler, reference, weight, entropy):
        cells = algorithm("policy_gradient", penalty=name, entropy=0.1)
        weights = torch.ones(3, dtype=F)
        made = compose(cells, logp, prox, sampler, reference, weight, MASK, weights, entropy)
        return made.loss.reshape(1), made.policy.detach().reshape(1), made.keep, *facts_where_counted(made.facts)

    return call


def _value(clip):
    def call(new, old, goal, *_):
        losses, facts = values.value_loss(new, old, goal, MASK, clip)
        return losses, *facts_where_counted(facts), values.error_sums(old, goal, MASK)

    return call


def _credit(function, *coefficients):
    def call(value, prox, sampler, *_):
        rewards, last = torch.arange(12, dtype=F).view(3, 4), torch.tensor([0.0, 0.0, 2.0], dtype=F)
        return function(rewards, value, last, prox, sampler, MASK, *coefficients)

    return call


def _range(logp, prox, sampler, *_):
    mask, facts = ranges.within_range(MASK, logp, prox, sampler)
    return mask, *facts_where_counted(facts)


def _sum(losses, *_):
    return (reductions.weighted_sum(losses, MASK, torch.ones(3, dtype=F)).reshape(1),)


EVERYTHING = (
    {f"objective {name}": _objective(function) for name, function in OBJECTIVES.items()}
    | {f"trust {name}": _trust(function) for name, function in TRUSTS.items()}
    | {f"rejection {name}": _rejection(function) for name, function in REJECTIONS.items()}
    | {f"penalty {name}": _penalty(name) for name in PENALTIES}
    | {f"value loss {clip}": _value(clip) for clip in (None, 0.2)}
    | {
        "gae": _credit(credit.gae, 0.9, 0.8),
        "vtrace": _credit(credit.vtrace, 0.9, 0.8, 1.0, 1.0),
        "range": _range,
        "sum": _sum,
    }
)


@pytest.mark.parametrize("name", EVERYTHING)
def test_masked_tokens_may_hold_anything_without_effect_on_value_gradient_or_fact(name):
    clean = inputs(1)
    expected = value_and_slopes(EVERYTHING[name], *clean)
    assert all(x.isfinite().all() for x in expected)
    for junk in JUNK:
        assert same(value_and_slopes(EVERYTHING[name], *with_junk(clean, junk)), expected)
    for place in range(len(clean)):  # one at a time as well: junk must not cancel junk
        one = [torch.where(MASK, x, NAN) if i == place else x for i, x in enumerate(clean)]
        assert same(value_and_slopes(EVERYTHING[name], *one), expected)


@pytest.mark.parametrize(
    "function",
    [
        advantages.group_mean,
        functools.partial(advantages.group_zscore, eps=1e-4),
        advantages.leave_one_out,
        functools.partial(advantages.whiten, eps=1e-8),
    ],
)
def test_unscored_answers_may_hold_anything(function):
    scored, rewards = torch.tensor([True, False, True]), torch.tensor([1.0, 0.0, 2.5])
    expected = function(rewards, scored)
    for junk in JUNK:
        assert torch.equal(function(torch.where(scored, rewards, junk), scored), expected)


# --- the range of log-ratios ------------------------------------------------------------------------

# All placements of the four log-probs of a token on −100, −60 and −20: ratios of up to e⁸⁰ either way.
CORNERS = torch.tensor(list(itertools.product((-100.0, -60.0, -20.0), repeat=4)))


@functools.cache
def cornered():
    """All corners with either sign of the advantage, each as an answer [162, 3] beside a quiet and a masked token."""
    corners = torch.cat([CORNERS, CORNERS])
    quiet, masked = torch.full_like(corners, -1.0), torch.full_like(corners, NAN)
    logs = torch.stack([corners, quiet, masked], dim=-1).unbind(1)
    advantage = torch.tensor([3.0, -3.0]).repeat_interleave(len(CORNERS)).unsqueeze(1).expand(-1, 3)
    return logs, advantage, torch.tensor([[True, True, False]]).expand(len(corners), 3)


@pytest.mark.parametrize("trust", TRUSTS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_within_eighty_nats_every_combination_is_finite_in_float32(objective, trust):
    (logp, prox, sampler, reference), advantage, mask = cornered()
    weights = torch.full((len(logp),), 1 / int(mask.sum()))
    for penalty, reject in itertools.product(["none", *PENALTIES], ["keep_all", "off_policy_sequence"]):
        own = logp.clone().requires_grad_()
        cells = algorithm(objective, trust, reject, penalty)
        made = compose(cells, own, prox, sampler, reference, advantage, mask, weights)
        slopes = torch.autograd.grad(made.loss, own)[0]
        assert made.loss.isfinite(), (penalty, reject)
        assert slopes.isfinite().all(), (penalty, reject)
        assert not made.facts["actor/out_of_range"].any(), (penalty, reject)


BEYOND_BOUNDS = {("gspo", "decoupled")}
"""What `check` refuses: one token's weight without a bound, times a ratio that another token has made."""


@functools.cache
def corners_beside_corners():
    """Every two corners as the tokens of one answer [6561, 2], both with a positive and with a negative advantage."""
    pairs = torch.stack([CORNERS.repeat_interleave(len(CORNERS), 0), CORNERS.repeat(len(CORNERS), 1)], dim=-1)
    return pairs.unbind(1)


@pytest.mark.parametrize("trust", TRUSTS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_tokens_of_one_answer_at_the_ends_of_the_range_are_finite_together_wherever_check_allows_it(
    objective, trust
):
    logp, prox, sampler, _ = corners_beside_corners()
    mask, weights = torch.ones_like(logp).bool(), torch.full((len(logp),), 1 / logp.numel())
    refused = (objective, trust) in BEYOND_BOUNDS
    finite = True
    for sign in (3.0, -3.0):
        own = logp.clone().requires_grad_()
        made = compose(
            algorithm(objective, trust), own, prox, sampler, None, torch.full_like(logp, sign), mask, weights
        )
        finite = finite and bool(made.loss.isfinite() and torch.autograd.grad(made.loss, own)[0].isfinite().all())
    assert finite is not refused


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_beyond_eighty_nats_a_token_is_masked_and_counted_and_the_others_are_untouched(objective):
    cells = algorithm(objective, "decoupled", penalty="unbiased")
    for far in (-81.1, -1e4, -INF):
        for place in range(4):
            logs = [torch.tensor([[-1.0, -1.5]]) for _ in range(4)]
            expected = [x[:, 1:].clone() for x in logs]
            logs[place][0, 0] = far
            logs[0].requires_grad_()
            expected[0].requires_grad_()
            weight = torch.tensor([[2.0, -1.0]])
            made = compose(cells, *logs, weight, torch.ones(1, 2).bool(), torch.ones(1))
            alone = compose(cells, *expected, weight[:, 1:], torch.ones(1, 1).bool(), torch.ones(1))
            assert made.keep.tolist() == [[False, True]]
            assert made.facts["actor/out_of_range"].tolist() == [[1.0, 0.0]]
            assert made.loss.item() == pytest.approx(alone.loss.item(), rel=1e-6)
            slopes = torch.autograd.grad(made.loss, logs[0])[0]
            assert slopes[0, 0].item() == 0
            assert slopes[0, 1].item() == pytest.approx(torch.autograd.grad(alone.loss, expected[0])[0].item())


def test_a_long_answer_whose_ratios_multiply_beyond_the_range_is_masked_whole_and_counted():
    logp = torch.full((2, 200), -1.0, requires_grad=True)
    sampler = torch.stack([torch.full((200,), -1.5), torch.full((200,), -1.1)])  # 100 nats, and 20
    made = compose(
        algorithm("ppo_clip", "sequence_product_clip"),
        logp,
        logp.detach(),
        sampler,
        None,
        torch.ones(2, 200),
        torch.ones(2, 200).bool(),
        torch.ones(2),
    )
    assert made.facts["actor/out_of_range"].sum(1).tolist() == [200, 0]
    assert torch.autograd.grad(made.loss, logp)[0].sum(1).tolist() == pytest.approx([0, -600])


# --- NaN is not hidden ------------------------------------------------------------------------------

READS = {
    "logp": set(OBJECTIVES),
    "advantages": set(OBJECTIVES),
    "prox": {"ppo_clip", "dual_clip", "ppo_kl", "gspo", "mirror_descent"},
    "sampler": {"cispo"},
}
"""Which objectives look at what; every trust cell but `uncorrected` looks at prox and sampler besides."""
LOOKED_AT = [
    (name, objective, trust)
    for name, objective, trust in itertools.product(READS, OBJECTIVES, TRUSTS)
    if objective in READS[name] or trust != "uncorrected"
]


@pytest.mark.parametrize("name", READS)
def test_nan_on_a_token_that_counts_makes_the_loss_nan_whatever_masks_there_are(name):
    # So that the gradient is undefined and all ranks skip the update.
    for _, objective, trust in (each for each in LOOKED_AT if each[0] == name):
        for reject in REJECTIONS:
            found = {each: torch.full((1, 2), -1.0) for each in READS}
            found[name][0, 0] = NAN
            made = compose(
                algorithm(objective, trust, reject),
                found["logp"],
                found["prox"],
                found["sampler"],
                None,
                found["advantages"],
                torch.ones(1, 2).bool(),
                torch.ones(1),
            )
            assert made.loss.isnan(), (objective, trust, reject)
            assert not made.facts["actor/out_of_range"].any()


@pytest.mark.parametrize("penalty", PENALTIES)
def test_nan_in_the_reference_makes_the_loss_nan(penalty):
    logp, reference = torch.full((1, 2), -1.0), torch.tensor([[NAN, -1.0]])
    cells = algorithm("ppo_clip", penalty=penalty)
    made = compose(cells, logp, logp, logp, reference, logp, torch.ones(1, 2).bool(), torch.ones(1))
    assert made.loss.isnan()


# --- bfloat16 ---------------------------------------------------------------------------------------


def test_in_bfloat16_log_probs_drift_by_hundredths_and_the_gradient_keeps_its_direction():
    made = world(rows=16, window=32, width=32, vocab=256)
    for name in table.rows():
        found = measure(name, bind(section(name, 32)), made)
        assert 1e-3 < found.logp < 0.03, found
        assert found.log_ratio < 0.03, found
        assert found.loss < 0.01, found
        # GSPO's bounds of 3e-4 and 4e-4 are finer than what bfloat16 leaves of an answer's mean log-ratio.
        least, most = (0.6, 1.5) if name == "gspo" else (0.995, 1.02)
        assert found.cosine > least, found
        assert 1 / most < found.norm < most, found
