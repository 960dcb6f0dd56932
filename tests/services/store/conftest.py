"""One real private server for all tests of the store; every test has a run of its own on it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from ledger_steps import RULES

from penstock.services.replay import ReplayStore
from penstock.services.store.ledger import RedisStore
from penstock.services.store.memory import MemoryStore
from penstock.services.store.server import PrivateServer
from penstock.services.versions import FIRST

settings.register_profile(
    "long",
    settings.get_profile("default"),
    max_examples=500,
    stateful_step_count=80,
    derandomize=False,
    print_blob=True,
)
_runs = itertools.count()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    folder: Path = tmp_path_factory.mktemp("redis")
    with PrivateServer(folder / "store", folder / "logs" / "store.log") as running:
        yield running


@pytest.fixture
def run_id() -> str:
    return f"run-{next(_runs)}"


@pytest.fixture
def redis_store(server: PrivateServer, run_id: str) -> Iterator[RedisStore]:
    store = server.address(run_id, deadline=10.0).connect()
    yield store
    store.close()


@pytest.fixture(params=["memory", "redis"])
def blank(request: pytest.FixtureRequest) -> ReplayStore:
    """A store that no learner has attached to yet, once in memory and once on Redis."""
    return MemoryStore() if request.param == "memory" else request.getfixturevalue("redis_store")


@pytest.fixture
def opened(blank: ReplayStore) -> Callable[..., ReplayStore]:
    """A store with the given rules, at its first version."""

    def open_store(**rules: int | None) -> ReplayStore:
        blank.attach(replace(RULES, **rules))
        assert blank.reconcile(FIRST, 0, "start") == FIRST
        return blank

    return open_store
