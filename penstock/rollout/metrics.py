"""What the numbers of rollout workers and of evaluations mean."""

from __future__ import annotations

from penstock.services.metrics import Metric

METRICS: dict[str, Metric] = {
    "rollout/tokens_per_second": Metric("tokens sampled", "tokens/s", "up"),
    "rollout/tokens": Metric("tokens of complete answers that were sampled here since the worker started", "tokens"),
    "rollout/tokens_sampled": Metric("all tokens sampled since the worker started, evaluations included", "tokens"),
    "rollout/tokens_resumed": Metric("tokens of groups that other workers had begun and handed back", "tokens"),
    "rollout/tokens_put": Metric("tokens of groups handed to the store", "tokens", "up"),
    "rollout/tokens_handed_back": Metric("tokens of groups handed back for another worker to go on with", "tokens"),
    "rollout/tokens_dropped": Metric("tokens of groups given up: too old, refused or fenced", "tokens", "down"),
    "rollout/groups_put": Metric("groups handed to the store", "groups", "up"),
    "rollout/groups_in_hand": Metric("groups being generated or scored", "groups"),
    "rollout/in_flight": Metric("answers being generated", "answers"),
    "rollout/tokens_in_flight": Metric("tokens that these answers have so far", "tokens"),
    "rollout/waiting_seconds": Metric("time without anything to generate since the worker started", "s", "down"),
    "rollout/waiting_share": Metric("share of the time in which there was nothing to generate", "", "down"),
    "rollout/swaps": Metric("weight swaps since the worker started", "swaps"),
    "rollout/swap/verify_seconds": Metric(
        "last swap: fetching and checking, as far as generation stood still for it", "s", "down"
    ),
    "rollout/swap/pause_seconds": Metric("last swap: loading into the engine", "s", "down"),
    "rollout/swap/probe_seconds": Metric("last swap: proof of the new weights", "s", "down"),
    "rollout/swap/gap": Metric(
        "last swap: largest difference between engine and learner on the probe, over all workers", "nat", "down"
    ),
    "rollout/cut": Metric("answers cut short because they outlived max_lag", "answers", "down"),
    "rollout/fenced": Metric("groups forgotten because their lease had ended", "groups", "down"),
    "rollout/refused": Metric("groups that could not be completed", "groups", "down"),
    "rollout/handed_back": Metric("groups handed back for another worker to go on with", "groups"),
    "rollout/resumed": Metric("groups gone on with after another worker handed them back", "groups"),
    "rollout/mask_unknown": Metric(
        "tokens of which top_p and top_k left more than rollout.sampling.max_kept; they stay out of the loss",
        "tokens",
        "down",
    ),
    "eval/sampled/accuracy": Metric("share of right answers, sampled", "", "up", "mean over answers that were scored"),
    "eval/greedy/accuracy": Metric("share of right answers, greedy", "", "up", "mean over answers that were scored"),
    "eval/sampled/reward": Metric("mean reward, sampled", "", "up"),
    "eval/greedy/reward": Metric("mean reward, greedy", "", "up"),
    "eval/sampled/length": Metric("mean tokens per answer, sampled", "tokens"),
    "eval/greedy/length": Metric("mean tokens per answer, greedy", "tokens"),
    "eval/sampled/unscored": Metric("share of answers that could not be scored, sampled", "", "down"),
    "eval/greedy/unscored": Metric("share of answers that could not be scored, greedy", "", "down"),
    "eval/{source}/sampled/accuracy": Metric("share of right answers in one dataset, sampled", "", "up"),
    "eval/{source}/greedy/accuracy": Metric("share of right answers in one dataset, greedy", "", "up"),
    "eval/seconds": Metric("how long the evaluation took", "s", "down"),
}
