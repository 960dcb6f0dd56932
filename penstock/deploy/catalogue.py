"""Every metric that a run can record, from the roles that record them."""

from __future__ import annotations

from functools import cache

from penstock.learner.metrics import METRICS as LEARNER
from penstock.reward.metrics import METRICS as REWARD
from penstock.rollout.metrics import METRICS as ROLLOUT
from penstock.services.metrics import Metric, merge

SUPERVISOR: dict[str, Metric] = {
    "rollout/workers": Metric("rollout workers that run", "workers", "up"),
    "ledger/{state}": Metric("prompts in one state of the ledger", "groups"),
    "ledger/payload_bytes": Metric("payloads in the store", "bytes"),
    "ledger/refused_share": Metric(
        "share of the groups that workers refused (unscored, too long, stale) among those they were done with in the "
        "last minute",
        "",
        "down",
    ),
    "run/since_step": Metric("time since the last train step, or since training began", "s", "down"),
    "guard/{name}": Metric("how often a guard has fired, over all starts of the run", "firings", "down"),
}
"""What the driver adds to every step."""


@cache
def catalogue() -> dict[str, Metric]:
    """Name to meaning. Raises MetricError when two roles claim one name."""
    return merge({"learner": LEARNER, "rollout": ROLLOUT, "reward": REWARD, "supervisor": SUPERVISOR})
