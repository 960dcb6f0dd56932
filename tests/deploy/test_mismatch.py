"""Sampler and learner that differ are warned of: before anything is sampled, and at every step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from penstock.deploy.mismatch import Mismatch
from penstock.services.versions import Version

BOUNDS = [(None, "bfloat16", 0.04, 0.06), (0.5, "float32", 0.4, 0.6)]


class Warned(list[str]):
    def warn(self, message: str, **_: Any) -> None:
        self.append(message)


def worker(gap: float | None, restarts: int = 0) -> Any:
    stats = {} if gap is None else {"largest_gap": gap, "largest_gap_at": "0.0"}
    return SimpleNamespace(name="rollout-0", restarts=restarts, stats=stats)


@pytest.fixture
def warned() -> Warned:
    return Warned()


def test_a_probe_beyond_the_bound_is_warned_of_once_in_every_life_of_a_worker(warned: Any):
    look = Mismatch(warned, None, "float32")
    look.swapped([worker(None), worker(9e-5)])
    assert warned == []
    for _ in range(3):
        look.swapped([worker(2e-4)])
    (only,) = warned
    assert only.startswith("rollout-0 and the learner differ by 0.0002 nats on the probe of version 0.0")
    look.swapped([worker(2e-4, restarts=1)])
    assert len(warned) == 2


@pytest.mark.parametrize(("limit", "dtype", "passes", "warns"), BOUNDS)
def test_every_step_beyond_the_bound_is_warned_of(warned: Any, limit: Any, dtype: str, passes: float, warns: float):
    look = Mismatch(warned, limit, dtype)
    look.stepped(Version(0, 1), {})
    look.stepped(Version(0, 1), {"mismatch/max": passes})
    assert warned == []
    look.stepped(Version(0, 2), {"mismatch/max": warns})
    assert len(warned) == 1 and "without lag" in warned[0] and "recording.mismatch_warning" in warned[0]
