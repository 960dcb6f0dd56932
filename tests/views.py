"""An instant of a run, for tests of everything that shows one."""

from __future__ import annotations

from typing import Any

from penstock.deploy.view import RunView, WorkerView
from penstock.services.replay import STATES, LedgerCounts
from penstock.services.versions import Version


def counts(dropped: int = 3, **states: int) -> LedgerCounts:
    by_state = dict.fromkeys(STATES, 0) | states | {"dropped": dropped}
    return LedgerCounts(
        issued=sum(by_state.values()),
        by_state=by_state,
        dropped={"stale": dropped} if dropped else {},
        payload_bytes=4096,
        published=Version(0, 12),
    )


def view(**changes: Any) -> RunView:
    values: dict[str, Any] = {
        "phase": "training",
        "step": 12,
        "steps_total": 100,
        "version": "0.12",
        "metrics": {
            "reward/mean": 0.625,
            "eval/sampled/accuracy": 0.5,
            "off_policy/mean": 0.75,
            "off_policy/max": 2.0,
            "kl/reference": 0.00123,
            "rollout/tokens_per_second": 4123.0,
            "learner/tokens_per_second": 987.0,
        },
        "ledger": counts(reserved=4, stored=8, committed=300),
        "workers": (
            WorkerView("rollout-0", "rollout", "ready", 4711, "host", "0.12", 17, 2100.0),
            WorkerView("learner-0", "learner", "waiting [lag]", 4712, "host", "0.12"),
        ),
        "started": 1000.0,
        "time_left": 200.0,
        "name": "sort",
        "run_dir": "/runs/sort-20250101-1",
        "pid": 4700,
        "at": 1060.0,
    }
    return RunView(**(values | changes))
