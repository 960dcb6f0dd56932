"""Rows that compare the answers to one prompt with each other."""

from __future__ import annotations

from penstock.learner.algorithms.cells import GroupMean, GroupZScore, LeaveOneOut, Whitening
from penstock.learner.algorithms.loss_cells import (
    CISPO,
    GSPO,
    KL,
    MirrorDescent,
    PolicyGradient,
    PPOClip,
    Reduction,
    SequenceIS,
    Uncorrected,
)
from penstock.learner.algorithms.row import ADDED_WEIGHTS, Algorithm

_CLIP = "L_t = −min(r A, clip(r, 1 − clip_low, 1 + clip_high) A),  r = π/π_prox"
_ZSCORE = "A_i = (R_i − mean R)/(std R + ε) within the group, std with n − 1"
_EQUAL = (
    "Equal rewards leave a standard deviation of float noise: whether a group has signal is decided by max = min of "
    "the task reward, never by std = 0."
)

REINFORCE_PP = Algorithm(
    name="reinforce_pp",
    summary="group mean as baseline, advantages whitened over the whole batch, clipped ratio",
    paper="REINFORCE++ with baseline, arXiv 2501.03262, §3; its KL is k2 in the loss, off until kl.coefficient is "
    f"set; {ADDED_WEIGHTS}",
    baseline=GroupMean(),
    whitening=Whitening(over="sequences"),
    objective=PPOClip(clip_low=0.2, clip_high=0.2),
    kl=KL(estimator="k2"),
    reduction=Reduction(kind="token_mean"),
    group_filter="all",
    equation=f"""\
A_i = R_i − mean R of the group, then (A_i − mean A)/(std A + ε) over the batch's answers
{_CLIP}""",
    traps=(
        "Whitening over tokens lets long answers decide the moments: here every answer counts once.",
        "The moments are those of the whole batch, over all ranks.",
    ),
)

RLOO = Algorithm(
    name="rloo",
    summary="reward less the mean of the group's other answers, plain policy gradient on whole answers",
    paper="RLOO, arXiv 2402.14740, eq. 6; its KL is k1 in the reward, off until kl.coefficient is set; "
    f"{ADDED_WEIGHTS}",
    baseline=LeaveOneOut(),
    objective=PolicyGradient(),
    kl=KL(estimator="k1", placement="reward"),
    reduction=Reduction(kind="sequence_sum"),
    group_filter="all",
    equation="""\
A_i = R_i − mean of R_j over the group's other answers
L = mean over answers of  −A_i log π(y_i),  the sum over the answer's tokens""",
    traps=(
        "A group of one has no others.",
        "An answer is one action: averaging over its tokens, instead of summing, weighs short answers more.",
        "There is no ratio: after the first update of a step the others are off-policy and nothing corrects them.",
    ),
)

GRPO = Algorithm(
    name="grpo",
    summary="group z-score advantages, clipped ratio, mean over answers of the mean over their tokens",
    paper="DeepSeekMath, arXiv 2402.03300, eq. 3; groups without signal are refilled as in DAPO, arXiv 2503.14476; its "
    f"KL is k3 in the loss, off until kl.coefficient is set (0.04 in the paper); {ADDED_WEIGHTS}",
    baseline=GroupZScore(),
    objective=PPOClip(clip_low=0.2, clip_high=0.2),
    reduction=Reduction(kind="sequence_mean"),
    equation=f"""\
{_ZSCORE}
{_CLIP}
L = mean over answers of the mean over their tokens""",
    traps=(
        _EQUAL,
        "The group's mean contains the answer itself, which alone is a factor (G − 1)/G on the expected gradient; the "
        "deviation, which differs from group to group, turns it besides.",
        "Dividing by the deviation weighs easy and hard prompts more; dividing by the answer's length lets long wrong "
        "answers off lightly (Dr. GRPO).",
        "k3 as a loss has the gradient of KL(π_ref‖π), not of KL(π‖π_ref).",
    ),
)

DR_GRPO = Algorithm(
    name="dr_grpo",
    summary="GRPO without its two divisions: no deviation, and a constant length instead of the answer's",
    paper=f"Dr. GRPO, arXiv 2503.20783, §3.2; {ADDED_WEIGHTS}",
    baseline=GroupMean(),
    objective=PPOClip(clip_low=0.2, clip_high=0.2),
    reduction=Reduction(kind="fixed_length"),
    group_filter="all",
    equation=f"""\
A_i = R_i − mean R of the group
{_CLIP}
L = Σ over all tokens / (answers × budget)""",
    traps=(
        "The budget is the configured longest answer, not the width to which a batch happens to be padded.",
        "A mean over the answer's tokens brings the length bias back.",
    ),
)

DAPO = Algorithm(
    name="dapo",
    summary="GRPO with a wider upper clip, every token of a group weighing the same, and dynamic sampling",
    paper=f"DAPO, arXiv 2503.14476, eq. 8 to 12; {ADDED_WEIGHTS}",
    baseline=GroupZScore(),
    objective=PPOClip(clip_low=0.2, clip_high=0.28),
    reduction=Reduction(kind="group_token_mean"),
    equation=f"""\
{_ZSCORE}
{_CLIP}
L = mean over groups of (Σ over the group's tokens / the group's tokens)""",
    traps=(
        _EQUAL,
        "The paper averages over the tokens of one prompt's group and then over prompts; much code averages over all "
        "tokens of the batch, which weighs prompts with long answers more. That is reduction: token_mean.",
        "The soft punishment of overlong answers is a reward and no part of the loss: use the rule soft_overlong.",
        "A batch refilled until all its groups differ is chosen by reward: its mean says nothing about the policy.",
    ),
)

GSPO_ROW = Algorithm(
    name="gspo",
    summary="one ratio per answer, the geometric mean of its tokens', clipped very tightly",
    paper="GSPO, arXiv 2507.18071, eq. 5 to 7; a weight per answer, min((π_prox/μ)^(1/T), 3), is Penstock's addition, "
    "since another engine draws the tokens",
    baseline=GroupZScore(),
    objective=GSPO(clip_low=3e-4, clip_high=4e-4),
    trust=SequenceIS(aggregate="geometric_mean", beyond="clip"),
    reduction=Reduction(kind="sequence_mean"),
    group_filter="all",
    equation=f"""\
{_ZSCORE}
s_i = exp(mean over tokens of log π/π_prox)
L_i = −min(s A, clip(s, 1 − clip_low, 1 + clip_high) A),  the same s at every token""",
    traps=(
        "A mean over tokens hardly moves: bounds of 0.2 would never clip.",
        "Two orders of magnitude more tokens are clipped than with GRPO; that is as it should be.",
        "Only a mean over the answer's tokens gives the paper's loss: summed, long answers count again.",
    ),
)

CISPO_ROW = Algorithm(
    name="cispo",
    summary="policy gradient weighted by the capped ratio to the sampler; a capped token keeps its gradient",
    paper="MiniMax-M1, arXiv 2506.13585, eq. 4 and 5; the ratio against the sampler, cap and refilling as in ScaleRL, "
    "arXiv 2510.13786",
    baseline=GroupZScore(),
    objective=CISPO(max_weight=5.0),
    trust=Uncorrected(),
    reduction=Reduction(kind="group_token_mean"),
    equation=f"""\
{_ZSCORE}
L_t = −sg(min(π/μ, max_weight)) A log π
L = mean over groups of (Σ over the group's tokens / the group's tokens)""",
    traps=(
        "The cap is absolute: 5 means 5, not 1 + 5. There is no lower bound.",
        "The ratio is already against what drew the token: a trust weight besides would multiply it twice.",
        "The weight carries no gradient; with one, it would be the clipped ratio whose gradient dies at the cap.",
    ),
)

KIMI = Algorithm(
    name="kimi",
    summary="policy mirror descent on whole answers, a squared log-ratio holding the policy near its start",
    paper="Kimi k1.5, arXiv 2501.12599, eq. 3; no trust weights, since the paper uses none",
    baseline=GroupMean(),
    objective=MirrorDescent(tau=0.1),
    trust=Uncorrected(),
    reduction=Reduction(kind="sequence_sum"),
    group_filter="all",
    equation="""\
L = mean over answers of  −(R − mean R of the group) log π(y) + (τ/2) (log π(y)/π_prox(y))²""",
    traps=(
        "The log-ratio is the whole answer's: squaring it token by token is another regulariser.",
        "Only reductions that sum over the answer fit; a mean over tokens changes τ with the length.",
        "With one update per step π is π_prox and the regulariser is 0.",
        "The paper's length reward is a reward and no part of the loss.",
    ),
)

GROUP_ROWS = (REINFORCE_PP, RLOO, GRPO, DR_GRPO, DAPO, GSPO_ROW, CISPO_ROW, KIMI)
