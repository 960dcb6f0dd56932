"""The lag that the scripts compute, on random trees of lineages, and the tree that the client sends them."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_steps import RULES

from penstock.services import staleness
from penstock.services.store.lineages import Tree
from penstock.services.versions import FIRST, Version

_runs = itertools.count()


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_lag_that_the_script_computes_is_that_of_staleness(server, data):
    """One group of a random version of a random tree is stale at max_lag = lag - 1 and is not at max_lag = lag."""
    known = [FIRST]
    forks: dict[int, Version] = {}
    with_redis = server.address(f"lag-{next(_runs)}", deadline=10.0).connect()
    with_redis.attach(replace(RULES, max_lag=10**6, groups_per_step=1))
    with_redis.reconcile(FIRST, 0, "start")
    for lineage in range(data.draw(st.integers(0, 3), label="resumes") + 1):
        if lineage:
            forks[lineage] = data.draw(st.sampled_from(known), label="fork")
            known.append(with_redis.reconcile(forks[lineage], 0, f"resume {lineage}"))
        for _ in range(data.draw(st.integers(0, 4), label="steps")):
            known.append(known[-1].next())
            with_redis.advance(known[-1])
    now, sampled = known[-1], data.draw(st.sampled_from(known), label="sampled")
    expected = staleness.lag(now, sampled, forks)
    (ticket,) = with_redis.reserve("w", now, 1, 60.0, "r").tickets
    with_redis.put(ticket, b"x", sampled)
    with_redis.amend(replace(RULES, max_lag=expected))
    assert with_redis.take(now, 0).stale == 0
    with_redis.amend(replace(RULES, max_lag=expected - 1))
    assert with_redis.take(now, 0).stale == 1
    with_redis.erase()
    with_redis.close()


def test_lineages_that_are_only_named_as_a_fork_are_known():
    tree = Tree(3, {3: Version(2, 50)})
    assert tree.common(Version(3, 60)) == {2: 50, 3: 60}
