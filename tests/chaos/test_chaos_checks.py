"""The other checks, each against what is right and against planted faults."""

from __future__ import annotations

from collections import defaultdict

import pytest

from chaos import checks
from chaos.shadow import Shadow
from chaos.versions_seen import At


def row(lineage: int, step: int, trained: bool = True) -> dict:
    return {"lineage": lineage, "step": step, **({checks.TRAINED: 1.0} if trained else {})}


GOOD = [
    row(0, 0, trained=False),
    row(0, 1),
    row(0, 2),
    row(0, 1, trained=False),  # an evaluation that ended later
    row(0, 3),
    row(1, 2, trained=False),  # fell back to step 2
    row(1, 3),
    row(3, 3, trained=False),  # lineage 2 never came to a step
    row(3, 4),
]


def test_metrics_of_a_run_that_fell_back_are_in_order():
    assert checks.metrics(GOOD) == []


@pytest.mark.parametrize("wrong", [row(3, 4), row(3, 3), row(3, 6), row(1, 4), row(4, 5)])
def test_a_step_that_comes_again_goes_back_jumps_or_belongs_to_nobody_is_found(wrong):
    assert [violation.promise for violation in checks.metrics([*GOOD, wrong])] == ["backwards"]


@pytest.fixture
def shadow() -> Shadow:
    """Two steps of two groups each, a third is in hand and one was dropped."""
    made = Shadow("run")
    made.meta = {"lineage": "0", "step": "2", "issued": "6"}
    made.steps = {At(0, 1): frozenset({0, 1}), At(0, 2): frozenset({2, 3})}
    made.committed = {0: At(0, 1), 1: At(0, 1), 2: At(0, 2), 3: At(0, 2)}
    made.dropped = {4}
    made.places = defaultdict(dict, {5: {"stored": 5.0}})
    return made


def manifest(**changes) -> dict:
    kept = {"issued": 6, "committed": 4, "dropped": {"stale": 1}, "outstanding": [5], "forks": {}}
    return {"version": "0.2", "ledger": kept | changes}


def test_a_checkpoint_that_contains_what_its_steps_used_is_right(shadow):
    assert checks.memo(manifest(), shadow) == []


@pytest.mark.parametrize(
    ("changes", "promises"),
    [
        ({"issued": 7}, ["balance"]),
        ({"outstanding": [5, 5], "issued": 7}, ["balance"]),
        ({"outstanding": [6]}, ["balance"]),
        ({"committed": 3, "issued": 5, "outstanding": [4]}, ["balance"]),
        ({"outstanding": [3]}, ["twice"]),
    ],
)
def test_a_checkpoint_that_is_wrong_about_the_ledger_is_found(shadow, changes, promises):
    assert [violation.promise for violation in checks.memo(manifest(**changes), shadow)] == promises


def test_a_batch_of_other_groups_than_the_ledgers_is_found(shadow):
    right = {At(0, 1): frozenset({0, 1}), At(0, 9): frozenset({99})}  # step 9 was never published
    assert checks.trained(right, shadow) == []
    assert [v.promise for v in checks.trained({At(0, 2): frozenset({1, 2})}, shadow)] == ["twice"]


def test_a_worker_that_goes_back_in_its_lineage_is_found():
    def seen(version: str, pid: int = 7) -> list[dict]:
        return [{"role": "rollout", "name": "rollout-0", "pid": pid, "version": version}]

    workers = checks.WorkerVersions()
    for version in ("", "0.1", "0.5", "1.3"):
        assert workers.look(seen(version)) == []
    assert workers.look(seen("0.2", pid=8)) == []
    assert [violation.promise for violation in workers.look(seen("1.2"))] == ["backwards"]


def summary(**changes) -> dict:
    ledger = {"issued": 5, "by_state": {"committed": 4}, "balanced": True}
    return {"outcome": "finished", "why": "", "version": "0.2", "ledger": ledger, "goals": []} | changes


def test_the_end_of_a_run_that_kept_its_promises(shadow):
    shadow.places.clear()
    shadow.meta["issued"] = "5"
    assert checks.end(summary(), shadow, groups_per_step=2) == []


@pytest.mark.parametrize(
    ("changes", "promises"),
    [
        ({"outcome": "failed", "why": "no disk"}, ["ended"]),
        ({"version": "0.3"}, ["lost", "balance"]),
        ({"ledger": {"issued": 6, "by_state": {"committed": 4}, "balanced": True}}, ["balance"]),
        ({"goals": [{"reached": False, "metric": "m", "of": "final", "wanted": ">= 1", "value": 0.5}]}, ["goal"]),
    ],
)
def test_an_end_that_breaks_a_promise_is_found(shadow, changes, promises):
    shadow.places.clear()
    shadow.meta["issued"] = "5"
    assert [violation.promise for violation in checks.end(summary(**changes), shadow, 2)] == promises


def test_what_has_no_end_what_is_missing_and_what_was_used_twice_is_found_at_the_end(shadow):
    shadow.meta["issued"] = "7"
    shadow.steps[At(0, 2)] = frozenset({1, 3})
    found = [violation.promise for violation in checks.end(summary(), shadow, 2)]
    assert found == ["lost", "lost", "twice"]
    assert [violation.promise for violation in checks.end(None, shadow, 2)] == ["ended"]
