"""Rows whose advantages do not come from the group: from a value model, or from the whole batch."""

from __future__ import annotations

from penstock.learner.algorithms.cells import (
    GAE,
    DiscountedReturn,
    NoBaseline,
    OthersMean,
    OwnValue,
    ValueHead,
    Whitening,
)
from penstock.learner.algorithms.loss_cells import KL, PPOKL, Decoupled, PolicyGradient, PPOClip, Reduction
from penstock.learner.algorithms.row import ADDED_WEIGHTS, Algorithm

_GAE = "δ_t = R_t + γ V(t+1) − V(t),  A_t = δ_t + γλ A(t+1),  then whitened over the batch's tokens"

PPO = Algorithm(
    name="ppo",
    summary="clipped ratio, advantages per token from a value model of its own (GAE)",
    paper=f"PPO, arXiv 1707.06347, eq. 7, with GAE, arXiv 1506.02438, eq. 16; {ADDED_WEIGHTS}",
    baseline=NoBaseline(),
    credit=GAE(gamma=1.0, lam=0.95),
    whitening=Whitening(over="tokens"),
    objective=PPOClip(clip_low=0.2, clip_high=0.2),
    kl=KL(estimator="k1", placement="reward"),
    value=OwnValue(clip=0.2),
    reduction=Reduction(kind="token_mean"),
    group_filter="all",
    quorum=1,
    equation=f"""\
{_GAE}
L_t = −min(r A, clip(r, 1 − clip_low, 1 + clip_high) A),  r = π/π_prox
L_V = max((V − Ĝ)², (V_old + clip(V − V_old, ±value.clip) − Ĝ)²)/2,  Ĝ = A + V_old before whitening""",
    traps=(
        "The recursion runs backwards over the policy's own tokens: those of a tool are skipped, and past the end "
        "there is no value to bootstrap from, unless the answer was cut at its budget and the run file says so.",
        "The value model learns the return Ĝ, not the reward; whitened advantages must not leak into it.",
        "Clamping log r instead of taking the minimum zeroes gradients that should be there.",
        "A new value model gives noise for advantages: value.warmup_steps lets it learn first.",
    ),
)

PPO_KL = Algorithm(
    name="ppo_kl",
    summary="PPO without a clip: a penalty on KL(π_prox‖π) with a coefficient that adapts",
    paper=f"PPO, arXiv 1707.06347, eq. 8, with GAE, arXiv 1506.02438, eq. 16; {ADDED_WEIGHTS}",
    baseline=NoBaseline(),
    credit=GAE(gamma=1.0, lam=0.95),
    whitening=Whitening(over="tokens"),
    objective=PPOKL(),
    kl=KL(estimator="k1", placement="reward"),
    value=OwnValue(clip=0.2),
    reduction=Reduction(kind="token_mean"),
    group_filter="all",
    quorum=1,
    equation=f"""\
{_GAE}
L_t = −r A + β KL(π_prox‖π),  r = π/π_prox
after each step: β·2 when KL > 1.5·target, β/2 when KL < target/1.5""",
    traps=(
        "With one update per step π is π_prox, the penalty is 0 and β halves for ever: give several epochs or "
        "mini-batches.",
        "This KL is against the start of the step; the one against the reference model is another penalty.",
        "β belongs to the state of a run and has to come back with a checkpoint.",
    ),
)

A2C = Algorithm(
    name="a2c",
    summary="actor-critic: plain policy gradient, full returns less a value head's baseline, entropy bonus",
    paper="A3C, arXiv 1602.01783, §4 and its synchronous form; value loss ½, entropy 0.01, n-step returns up to the "
    f"answer's end (λ = 1); {ADDED_WEIGHTS}",
    baseline=NoBaseline(),
    credit=GAE(gamma=1.0, lam=1.0),
    objective=PolicyGradient(),
    value=ValueHead(coefficient=0.5, clip=None),
    reduction=Reduction(kind="token_mean"),
    group_filter="all",
    quorum=1,
    entropy_coefficient=0.01,
    equation="""\
A_t = Σ_k γ^k R(t+k) − V(t)
L_t = −A_t log π − c_e H(π) + c_v (V − Ĝ)²/2""",
    traps=(
        "There is no ratio: after the first update of a step the others are off-policy and nothing corrects them.",
        "The value head's loss moves the shared backbone too: too large a coefficient spoils the language model.",
        "0.01 was chosen for games of a few actions; the entropy over a vocabulary is much larger, so watch "
        "actor/entropy. A top-p or top-k mask changes what the entropy is of.",
    ),
)

REINFORCE = Algorithm(
    name="reinforce",
    summary="the plain score-function estimator on returns, less the mean reward of the batch's other prompts",
    paper=f"Williams 1992 (no arXiv), with a baseline as in Sutton and Barto, 2nd ed., §13.4; {ADDED_WEIGHTS}",
    baseline=OthersMean(),
    credit=DiscountedReturn(gamma=1.0),
    objective=PolicyGradient(),
    reduction=Reduction(kind="sequence_sum"),
    group_filter="all",
    quorum=1,
    equation="""\
G_t = Σ_k γ^k R(t+k),  b = mean reward of the batch's other prompts
L = mean over answers of  −Σ_t (G_t − b) log π(y_t)""",
    traps=(
        "A baseline that depends on the answer's own tokens biases the gradient; that is why b leaves the prompt out.",
        "Tokens of a tool or the environment are no actions: they take no step of the discount and no gradient.",
        "Filtering groups by their rewards changes what is optimised, so here all stay.",
        "The sum over tokens makes the gradient grow with length: learning rates of means do not carry over.",
    ),
)

DECOUPLED_PPO = Algorithm(
    name="decoupled_ppo",
    summary="PPO's clip around π_prox, recomputed once per step, and the whole weight π_prox/μ for staleness",
    paper="AReaL, arXiv 2505.24298, §5.2, after the decoupled objectives of arXiv 2110.00641; as in AReaL without a "
    "value model (γ = λ = 1), advantages normalised over the batch",
    baseline=NoBaseline(),
    whitening=Whitening(over="sequences"),
    objective=PPOClip(clip_low=0.2, clip_high=0.2),
    trust=Decoupled(),
    reduction=Reduction(kind="token_mean"),
    group_filter="all",
    quorum=1,
    equation="""\
A_i = (R_i − mean R)/(std R + ε) over the batch
L_t = −(π_prox/μ) min(r A, clip(r, 1 − clip_low, 1 + clip_high) A),  r = π/π_prox""",
    traps=(
        "π_prox is the policy at the start of this step, not the sampler: clipping around an old sampler would hold "
        "the policy back at its old place.",
        "With one update per step r = 1 and what is left is importance sampling without a bound.",
        "Where max_weight leaves tokens out, the mean still counts them: its denominator is from before.",
        "No group baseline: the batch must mix prompts, or an easy batch teaches nothing but its own mean.",
    ),
)

VALUE_ROWS = (PPO, PPO_KL, A2C, REINFORCE)
