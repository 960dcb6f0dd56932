"""What the scorer measures of itself; the rewards of a step are the learner's to record."""

from __future__ import annotations

from penstock.services.metrics import Metric

METRICS: dict[str, Metric] = {
    "scorer/groups": Metric("groups judged since the scorer started", "groups"),
    "scorer/in_hand": Metric("groups being judged", "groups"),
    "scorer/seconds": Metric(
        "time from handing a group in to having it judged", "s", "down", "mean over all groups since the scorer started"
    ),
    "scorer/restarts": Metric("rule processes replaced since the scorer started", "processes", "down"),
    "scorer/failed/{part}": Metric("answers that one part could not judge since the scorer started", "answers", "down"),
    "scorer/reference_tokens_per_second": Metric("tokens through the reference model", "tokens/s", "up"),
}
