"""Every metric that a run can record, from the roles that record them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from penstock.learner.metrics import METRICS as LEARNER
from penstock.reward.metrics import METRICS as REWARD
from penstock.rollout.metrics import METRICS as ROLLOUT
from penstock.services.metrics import Metric, find, merge

SUPERVISOR: dict[str, Metric] = {
    "rollout/workers": Metric("rollout workers that run", "workers", "up"),
    "rollout/wanted": Metric("rollout workers that are wanted; those that are missing start", "workers"),
    "scorer/scorers": Metric("scorers that run", "scorers"),
    "scorer/wanted": Metric("scorers that are wanted", "scorers"),
    "ledger/{state}": Metric("prompts in one state of the ledger", "groups"),
    "ledger/queue_age": Metric("age of the oldest group that is stored and waits for the learner", "s", "down"),
    "ledger/payload_bytes": Metric("payloads in the store", "bytes"),
    "ledger/refused_share": Metric(
        "share of the groups that workers refused (unscored, too long, stale) among those they were done with in the "
        "last minute",
        "",
        "down",
    ),
    "run/since_step": Metric("time since the last train step, or since training began", "s", "down"),
    "run/nonfinite": Metric(
        "train steps in a row, the last ones, skipped for infinite or undefined gradients", "steps", "down"
    ),
    "guard/{name}": Metric("how often a guard has fired, over all starts of the run", "firings", "down"),
}
"""What the driver adds to every step."""
WATCHED: dict[str, Metric] = {
    "run/step": Metric("train steps done", "steps", "up"),
    "run/steps_limit": Metric("limits.steps; absent without one", "steps"),
    "run/lineage": Metric("lineage of the published weights: how often the run fell back to a checkpoint"),
    "run/last_step_time": Metric("when the last step ended, or training began", "unix s", "up"),
    "run/paused": Metric("1 while somebody or a guard has paused the run, which then stands still on purpose"),
    "run/started_time": Metric("when the driver started", "unix s"),
    "run/phase/{phase}": Metric("1 for the phase that the run is in, 0 for those it was in"),
    "event/{kind}": Metric(
        "lines of events.jsonl since the driver started: died, restarted, warning, refused, …", "events"
    ),
    "gate/closed/{reason}": Metric("1 while the gate gives no new prompts, for a reason: lag, memory, held, …"),
    "ledger/dropped/{reason}": Metric("groups dropped since the store began", "groups", "down"),
    "ledger/refused/{reason}": Metric("of these, groups that rollout workers could not complete", "groups", "down"),
    "ledger/redelivered": Metric("groups leased again after a lease had ended without a result", "groups", "down"),
    "process/doing/{state}": Metric("1 for what an actor is doing, 0 for what it did before"),
    "process/step": Metric("train step of the weights that an actor uses", "steps", "up"),
    "process/lineage": Metric("lineage of the weights that an actor uses"),
    "process/silent": Metric("since an actor's loop moved", "s", "down"),
    "process/cpu_seconds": Metric("CPU time of a process since it started", "s"),
    "process/rss": Metric("resident memory of a process", "bytes", "down"),
    "process/peak_rss": Metric("resident memory of a process at most", "bytes", "down"),
}
"""What only Prometheus is told, because it means something at any moment and not at a step."""

OWNERS = {"learner": LEARNER, "rollout": ROLLOUT, "reward": REWARD, "supervisor": SUPERVISOR}
"""What a run records, by who records it."""


@cache
def catalogue() -> dict[str, Metric]:
    """Name to meaning. Raises MetricError when two roles claim one name."""
    return merge(OWNERS)


@cache
def exported() -> dict[str, Metric]:
    """The same for everything that Prometheus is told."""
    return merge({**OWNERS, "watched": WATCHED})


def newest(before: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """The newest value of every metric after `measured`. What fills in places, such as buckets of lag, is replaced
    together: a bucket that has no tokens any more has no value either."""
    renewed = {_family(name) for name in measured} - {""}
    return {name: value for name, value in before.items() if _family(name) not in renewed} | dict(measured)


@cache
def _family(name: str) -> str:
    """The entry whose places `name` fills in; empty where it has none."""
    found = find(name, catalogue())
    return found.pattern if found is not None and found.filled else ""


def by_actors(name: str) -> bool:
    """Whether each actor exports the metric `name` itself; a sum of them beside them would count twice."""
    return name.startswith(("rollout/", "scorer/")) and name not in SUPERVISOR
