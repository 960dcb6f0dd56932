"""What each of the learner's metrics means."""

from __future__ import annotations

from dataclasses import replace

from penstock.services.metrics import Metric

_PER_BUCKET = (
    "kl/offpolicy/k1",
    "kl/offpolicy/k3",
    "kl/update/k1",
    "kl/update/k3",
    "rollout_corr/mean",
    "rollout_corr/max",
    "rollout_corr/second_moment",
    "rollout_corr/ess",
    "rollout_corr/clipfrac",
    "rollout_corr/masked",
    "rollout_corr/rejected",
    "rollout_corr/left_out",
    "actor/pg_clipfrac_low",
    "actor/pg_clipfrac_high",
    "actor/pg_clipfrac_dual",
    "actor/out_of_range",
    "kl/staleness/k3",
    "kl/mismatch/k3",
    "kl/update_audited/k3",
)
"""What is also reported over the tokens of one bucket of lag, under a name with the bucket before its last word."""
_BUCKETS = "lag_0, lag_1, lag_2, lag_3_4, lag_5_8, lag_9_up; older_kv for tokens decoded on older weights' cache"

REFUSED = ("unscored", "prompt_too_long", "stale")
"""Why workers drop groups; reported at every step, also when there were none."""

_OFFPOLICY = (
    "KL(μ‖π_prox) between what sampled the tokens and the policy at the start of the step: staleness and "
    "mismatch together"
)
_STALENESS = "KL(π_train(v)‖π_prox), v the version that sampled the token: what the learner has changed since"
_MISMATCH = "KL(μ‖π_train(v)), v the version that sampled the token: two engines, same weights"
_WHOLE_UPDATE = "KL(π_prox‖π) between the policy at the start and at the end of the step"
_UPDATE = "KL(π_prox‖π) between the policy at the start of the step and at each of its updates, mean over them"

_ALL: dict[str, Metric] = {
    # --- the update
    "actor/loss": Metric("whole loss, mean over the step's updates"),
    "actor/pg_loss": Metric("policy part of the loss, mean over the step's updates"),
    "actor/pg_clipfrac_low": Metric(
        "share of tokens whose gradient the lower clip bound cut off; of objectives that have one"
    ),
    "actor/pg_clipfrac_high": Metric(
        "share of tokens whose gradient the upper clip bound cut off, for CISPO, whose weight it cut; of objectives "
        "that have one"
    ),
    "actor/pg_clipfrac_dual": Metric(
        "share of tokens whose loss dual_clip cut off, all of them with a negative advantage"
    ),
    "actor/entropy": Metric("entropy of the policy over the vocabulary", "nat", estimator="exact per token"),
    "actor/grad_norm": Metric("norm of the gradient before clipping, mean over applied updates"),
    "actor/lr": Metric("learning rate, mean over applied updates"),
    "actor/out_of_range": Metric(
        "share of tokens left out because log-probs of the same token, or of a whole answer where that is what is "
        "weighed, lie more than 80 nats apart",
        good="down",
    ),
    "actor/kl_coefficient": Metric(
        "β of the KL to the reference during the step; reported where it adapts, or once it was changed"
    ),
    "actor/objective_coefficient": Metric(
        "β of the objective's own KL during the step; reported where it adapts, or once it was changed"
    ),
    "coefficient/{name}": Metric("another coefficient during the step, by its key; reported once it was changed"),
    "actor/skipped_updates": Metric("updates skipped for an infinite or undefined gradient", "updates", "down"),
    # --- values
    "critic/loss": Metric("value loss, clipped as configured, mean over the step's updates", good="down"),
    "critic/error": Metric("half the squared difference between values and returns, per token", good="down"),
    "critic/clipfrac": Metric("share of tokens whose value's gradient the clip cut off"),
    "critic/value_mean": Metric("mean value of a token's state at the start of the step"),
    "critic/return_mean": Metric("mean return that the values are to predict"),
    "critic/explained_variance": Metric(
        "1 − Var(return − value)/Var(return) at the start of the step: 1 perfect, 0 no better than a constant",
        good="up",
    ),
    "critic/grad_norm": Metric("norm of the value model's gradient before clipping, mean over applied updates"),
    "critic/lr": Metric("the value model's learning rate, mean over applied updates"),
    # --- divergences
    "kl/reference": Metric(
        "KL(π‖π_ref) of the policy from the frozen reference", "nat", "neither", "k3, tokens from μ, unweighted"
    ),
    "kl/update": Metric(_UPDATE, "nat", "neither", "k3, tokens from μ, unweighted"),
    "kl/update/k1": Metric(_UPDATE, "nat", "neither", "k1, tokens from μ, unweighted"),
    "kl/step": Metric(
        f"{_WHOLE_UPDATE}, measured by a pass of its own; reported where the objective's β adapts",
        "nat",
        "neither",
        "k3, tokens from μ, unweighted",
    ),
    "kl/offpolicy": Metric(_OFFPOLICY, "nat", "down", "k3, tokens from μ"),
    "kl/offpolicy/k1": Metric(_OFFPOLICY, "nat", "down", "k1, tokens from μ"),
    "mismatch/mean": Metric(
        "mean |log π_prox − log μ| over tokens of lag 0 with a clean cache: two engines, same weights", "nat", "down"
    ),
    "mismatch/max": Metric("the largest such difference", "nat", "down"),
    # --- audits: the exact parts of the log-ratio, on some answers of some steps
    "kl/update_audited": Metric(_WHOLE_UPDATE, "nat", "neither", "k3, tokens from μ, unweighted"),
    "kl/update_audited/k1": Metric(_WHOLE_UPDATE, "nat", "neither", "k1, tokens from μ, unweighted"),
    "kl/staleness": Metric(_STALENESS, "nat", "down", "k3, tokens from μ"),
    "kl/staleness/k1": Metric(_STALENESS, "nat", "down", "k1, tokens from μ"),
    "kl/mismatch": Metric(_MISMATCH, "nat", "down", "k3, tokens from μ"),
    "kl/mismatch/k1": Metric(_MISMATCH, "nat", "down", "k1, tokens from μ"),
    "audit/update_mean": Metric("mean |log π − log π_prox| over the whole step", "nat"),
    "audit/staleness_mean": Metric("mean |log π_prox − log π_train(v)|, v the version that sampled", "nat", "down"),
    "audit/mismatch_mean": Metric("mean |log π_train(v) − log μ|", "nat", "down"),
    "audit/residual": Metric(
        "largest difference between staleness + mismatch and the log π_prox/μ that the step measured", "nat", "down"
    ),
    "audit/sequences": Metric("answers audited", "answers"),
    "audit/tokens": Metric("tokens audited", "tokens"),
    "audit/missing": Metric("tokens not audited because their weights are gone or undefined", "tokens", "down"),
    "audit/out_of_range": Metric("tokens not audited because their log-probs lie too far apart", "tokens", "down"),
    "audit/seconds": Metric("time the audit took", "s", "down"),
    # --- importance weights
    "rollout_corr/mean": Metric("mean of the raw weights π_prox/μ; 1 in expectation"),
    "rollout_corr/max": Metric("largest raw weight π_prox/μ", good="down"),
    "rollout_corr/ess": Metric("effective sample size (Σw)²/(n Σw²) of the raw weights, as a share of 1", good="up"),
    "rollout_corr/second_moment": Metric(
        "mean square of the raw weights π_prox/μ; its inverse is about ess", good="down"
    ),
    "rollout_corr/clipfrac": Metric("share of tokens whose weight was cut at max_weight", good="down"),
    "rollout_corr/masked": Metric("share of tokens that the trust cell left out", good="down"),
    "rollout_corr/rejected": Metric("share of tokens that the reject cell left out", good="down"),
    "rollout_corr/left_out": Metric(
        "share of tokens that count and are not in the objective: masked, rejected, or out of range", good="down"
    ),
    # --- staleness
    "off_policy/mean": Metric("mean lag of the tokens in the loss", "steps", "down"),
    "off_policy/max": Metric("largest lag of a token in the loss", "steps", "down"),
    "off_policy/bound": Metric("bound on the lag during the step", "steps"),
    "off_policy/{bucket}/tokens": Metric(f"tokens that count, of one bucket of lag: {_BUCKETS}", "tokens"),
    "off_policy/older_kv": Metric("share of tokens decoded on a cache that older weights had written", good="down"),
    # --- rewards and answers, over all groups seen
    "reward/mean": Metric("mean reward of scored answers, groups without signal included", good="up"),
    "reward/std": Metric("standard deviation of those rewards"),
    "reward/solved": Metric("share of scored answers with a reward of at least 1", good="up"),
    "reward/unscored": Metric("share of answers that no reward could be had for", good="down"),
    "reward/with_signal": Metric("share of the groups seen whose rewards differed", good="up"),
    "reward/part/{name}": Metric("mean of one rule's reward, unweighted", good="up"),
    "response/length_mean": Metric("mean length of answers", "tokens"),
    "response/length_max": Metric("longest answer", "tokens"),
    "response/clipped": Metric("share of answers cut at max_tokens", good="down"),
    "response/cut_stale": Metric("share of answers cut because they outlived max_lag", good="down"),
    "dropped/{reason}": Metric("groups the learner dropped while it filled this step", "groups", "down"),
    "refused/{reason}": Metric(
        f"groups the rollout workers dropped since the step before: {', '.join(REFUSED)}", "groups", "down"
    ),
    # --- sizes
    "batch/groups": Metric("groups trained on", "groups"),
    "batch/answers": Metric("answers trained on", "answers"),
    "batch/tokens": Metric("response tokens trained on", "tokens"),
    "batch/tokens_in_loss": Metric("of these, tokens that count in the loss", "tokens"),
    "batch/unknown_mask": Metric(
        "tokens left out of the loss because what top-p and top-k had left was more than is recorded", "tokens", "down"
    ),
    "batch/advantage_max": Metric("largest absolute advantage, as the loss takes it"),
    "learner/tokens": Metric("response tokens trained on so far", "tokens"),
    "learner/updates": Metric("optimizer updates so far", "updates"),
    # --- time
    "learner/tokens_per_second": Metric("response tokens trained per second of the step, waiting included", "tokens/s"),
    "learner/busy": Metric("share of the step's time in forward and backward", good="up"),
    "time/step": Metric("the whole step", "s"),
    "time/wait": Metric("waiting for groups", "s", "down"),
    "time/forward_backward": Metric("assembling the batch, forward, backward, updates", "s", "down"),
    "time/publish": Metric("the last publication, beside the training or not", "s", "down"),
    "time/publish_blocked": Metric("part of the publication that the loop waited for", "s", "down"),
    "time/checkpoint": Metric("writing a checkpoint", "s", "down"),
    # --- supervised fine-tuning
    "sft/loss": Metric("cross-entropy per response token", "nat", "down"),
    "sft/lr": Metric("learning rate"),
    "sft/grad_norm": Metric("norm of the gradient before clipping"),
    "sft/epoch": Metric("passes over the data so far"),
    "sft/tokens_per_second": Metric("response tokens trained per second", "tokens/s"),
}
_K3 = {name: _ALL[name.removesuffix("/k3")] for name in _PER_BUCKET if name.endswith("/k3")}
METRICS: dict[str, Metric] = _ALL | {
    f"{head}/{{bucket}}/{last}": replace(metric, help=f"{metric.help}; over one bucket of lag: {_BUCKETS}")
    for name in _PER_BUCKET
    for head, _, last in [name.rpartition("/")]
    for metric in [(_ALL | _K3)[name]]
}
"""By name; a name may hold places to fill in."""
