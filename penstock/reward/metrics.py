"""What the scorer measures of itself; the rewards of a step are the learner's to record."""

from __future__ import annotations

from penstock.services.metrics import Metric

METRICS: dict[str, Metric] = {
    "scorer/groups": Metric("Groups judged since the scorer started"),
    "scorer/in_hand": Metric("Groups being judged, by all scorers"),
    "scorer/seconds": Metric("Mean time from handing a group in to having it judged", "s", "down"),
    "scorer/restarts": Metric("Rule processes replaced since the scorer started", good="down"),
    "scorer/failed/{part}": Metric("Answers that one part could not judge since the scorer started", good="down"),
    "scorer/reference_tokens_per_second": Metric("Tokens per second through the reference model", "1/s", "up"),
}
