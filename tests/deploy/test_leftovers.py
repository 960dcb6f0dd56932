"""What a killed driver left is found by its mark and removed; what belongs to the living stays."""

from __future__ import annotations

import os
import socket
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


def test_weights_that_a_killed_driver_left_in_shared_memory_are_removed_and_a_foreign_folder_is_refused(tmp_path):
    dead, mine, foreign = (tmp_path / f"penstock-{name}" for name in ("dead", "mine", "foreign"))
    dead.mkdir()
    here = Path("/proc/self/ns/pid").readlink()
    (dead / leftovers.OWNER).write_text(f"{os.getpid()} 1.0 {here}")
    leftovers.claim(mine)
    assert {path.name for path in tmp_path.iterdir()} == {"penstock-mine"}
    leftovers.claim(tmp_path / "penstock-other")
    assert mine.exists(), "its driver lives"
    foreign.symlink_to(mine, target_is_directory=True)
    with pytest.raises(leftovers.PenstockError, match=r"made by another user .* or is no folder"):
        leftovers.claim(foreign)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setattr(leftovers.Path, "home", lambda: home)
    monkeypatch.setattr(leftovers.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return home


def test_a_copy_of_a_run_that_goes_on_is_not_started_and_harms_nothing(tmp_path, home):
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
    assert list(leftovers.private_folder().iterdir()) == []
    with leftovers.only_one("run-a", tmp_path / "b"):
        pass


def test_the_lock_lies_where_nobody_else_can_prepare_it(home):
    folder = leftovers.private_folder()
    assert folder.is_relative_to(home)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_link_that_lies_in_wait_for_the_lock_is_not_followed(tmp_path, home):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (leftovers.private_folder() / f"run-a@{socket.gethostname()}.lock").symlink_to(victim)
    with pytest.raises(OSError, match="Too many levels"), leftovers.only_one("run-a", tmp_path):
        raise AssertionError("it was let in")
    assert victim.read_text() == "precious"


def test_without_a_home_a_folder_in_the_temporary_one_will_do_if_it_is_ours(tmp_path, home):
    home.rmdir()
    home.write_text("no folder")
    shared = tmp_path / "tmp" / f"penstock-{os.geteuid()}"
    assert leftovers.private_folder() == shared
    assert shared.stat().st_mode & 0o777 == 0o700
    shared.rmdir()
    shared.symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(leftovers.PenstockError, match=r"made by another user .* or is no folder.*Set HOME, or TMPDIR"):
        leftovers.private_folder()


def test_a_lock_that_was_removed_between_opening_and_locking_is_made_anew(tmp_path, home, monkeypatch):
    """Its holder ends at that very moment; else two drivers would hold two files of one name."""
    path, lock = tmp_path / "run-a.lock", leftovers.fcntl.flock
    left = [path]

    def flock(handle, how):
        if left:
            left.pop().unlink()
        lock(handle, how)

    monkeypatch.setattr(leftovers.fcntl, "flock", flock)
    handle = leftovers._locked(path)
    assert handle is not None and os.path.samestat(os.fstat(handle), path.stat())
    assert leftovers._locked(path) is None
    os.close(handle)
