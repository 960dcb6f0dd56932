"""Limits by the clock and by the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.deploy import limits
from penstock.deploy.config import LimitsSection
from penstock.deploy.limits import Limits


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """[now], for both clocks."""
    now = [1000.0]
    monkeypatch.setattr(limits.time, "time", lambda: now[0])
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    return now


def test_minutes_count_from_the_first_published_weights(clock: list[float], tmp_path: Path) -> None:
    kept = Limits(LimitsSection(minutes=2), tmp_path)
    assert kept.reached(None) == "" and kept.reached(clock[0] - 119) == ""
    assert kept.reached(clock[0] - 121) == "limits.minutes: 2 minutes have passed"


def test_the_run_directory_is_measured_now_and_then_and_all_that_is_in_it(clock: list[float], tmp_path: Path) -> None:
    kept = Limits(LimitsSection(disk_gib=1e-6), tmp_path)  # 1073 bytes
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.log").write_bytes(b"x" * 1000)
    assert kept.reached(None) == ""
    (tmp_path / "b").write_bytes(b"x" * 100)
    clock[0] += 29
    assert kept.reached(None) == "", "it was measured half a minute ago"
    clock[0] += 2
    assert kept.reached(None) == "limits.disk_gib: the run directory holds 0.00 GiB, 1e-06 are allowed"
