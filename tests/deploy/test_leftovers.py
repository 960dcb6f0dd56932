"""What a killed driver left is found by its mark and removed; what belongs to the living stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from penstock.deploy import leftovers


def sleeper(run_id: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={**os.environ, leftovers.MARK: run_id}
    )


def test_processes_of_a_run_are_found_by_their_mark_and_ended():
    ours, other = sleeper("run-a"), sleeper("run-b")
    try:
        assert [process.pid for process in leftovers.marked("run-a")] == [ours.pid]
        assert leftovers.end_marked("run-a") == 1
        assert not psutil.pid_exists(ours.pid)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait(10)


def test_folders_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path):
    for name in ("ray-mine", "ray-dead", "ray-unknown", "ray-of-another-container"):
        (tmp_path / name).mkdir()
    leftovers.own(tmp_path / "ray-mine")
    here, mine = Path("/proc/self/ns/pid").readlink(), os.getpid()
    (tmp_path / "ray-dead" / leftovers.OWNER).write_text(f"{mine} 1.0 {here}")  # the same number, another life
    (tmp_path / "ray-of-another-container" / leftovers.OWNER).write_text(f"{mine} 1.0 pid:[1]")
    leftovers.remove_orphans(tmp_path, "ray-")
    assert {p.name for p in tmp_path.iterdir()} == {"ray-mine", "ray-unknown", "ray-of-another-container"}


def test_a_copy_of_a_run_that_goes_on_is_not_started_and_harms_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers.tempfile, "gettempdir", lambda: str(tmp_path))
    with leftovers.only_one("run-a", tmp_path / "a"):
        with (
            pytest.raises(
                leftovers.Doubled, match=r"the id run-a is going on on this machine already\. Is .*/b a copy"
            ),
            leftovers.only_one("run-a", tmp_path / "b"),
        ):
            raise AssertionError("it was let in")
        with leftovers.only_one("run-b", tmp_path / "c"):
            pass
    assert list(tmp_path.iterdir()) == []
    with leftovers.only_one("run-a", tmp_path / "b"):
        pass
