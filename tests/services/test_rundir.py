"""The run directory: made, found, locked, written and read."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from disks import fill, small_disk

from penstock.services.file_lock import FileLock
from penstock.services.rundir import RunDir, RunDirError
from penstock.services.versions import Version


def _run(tmp_path: Path, name: str = "sort") -> RunDir:
    return RunDir.create(tmp_path / "runs", name, "name: sort\n")


def test_a_fresh_run_gets_a_name_of_its_own(tmp_path: Path) -> None:
    first, second = _run(tmp_path), _run(tmp_path)
    stem = f"sort-{time.strftime('%Y%m%d')}"
    assert [first.path.name, second.path.name] == [f"{stem}-1", f"{stem}-2"]
    assert first.read_config() == {"name": "sort"}


def test_a_folder_that_is_no_run_is_refused_with_the_nearest_run(tmp_path: Path) -> None:
    run = _run(tmp_path)
    with pytest.raises(RunDirError, match=rf"lacks config.yaml; nearest: {run.path}"):
        RunDir.open(tmp_path)


def test_a_misspelt_run_is_refused_with_the_run_that_was_meant(tmp_path: Path) -> None:
    run = _run(tmp_path)
    _run(tmp_path, "reverse")
    with pytest.raises(RunDirError, match=f"does not exist; nearest: {run.path}"):
        RunDir.open(run.path.with_name(run.path.name.replace("sort", "srot")))


def test_the_newest_run_is_the_one_written_to_last(tmp_path: Path) -> None:
    first, second = _run(tmp_path), _run(tmp_path)
    os.utime(second.config, (1, 1))
    assert RunDir.newest(tmp_path / "runs").path == first.path
    second.write_status({"phase": "training"})
    os.utime(first.config, (2, 2))
    assert RunDir.newest(tmp_path / "runs").path == second.path


def test_no_run_at_all_is_said_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"no run directory under .* penstock train"):
        RunDir.newest(tmp_path / "runs")


def test_two_drivers_never_run_one_directory(tmp_path: Path) -> None:
    run = _run(tmp_path)
    program = (
        "import sys, time; from penstock.services.rundir import RunDir\n"
        "RunDir.open(sys.argv[1]).lock(); print('locked', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        assert run.locked
        with pytest.raises(RunDirError, match=f"in use by process {other.pid}"):
            run.lock()
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.stdout.close()
    assert not run.locked, "a driver that was killed leaves no lock behind"
    run.lock()
    assert run.locked
    run.unlock()
    assert not run.locked


def test_status_is_replaced_as_a_whole(tmp_path: Path) -> None:
    run = _run(tmp_path)
    assert run.read_status() is None
    run.write_status({"phase": "starting", "step": 0})
    run.write_status({"phase": "training", "step": 1})
    assert run.read_status() == {"phase": "training", "step": 1}
    assert [p.name for p in run.path.iterdir() if p.name.endswith(".new")] == []


def test_events_come_back_in_order(tmp_path: Path) -> None:
    run = _run(tmp_path)
    run.add_event("started", "learner started", pid=7)
    run.add_event("swapped", "worker 0 is at 0.3", worker="rollout-0")
    assert [(e.kind, e.message, dict(e.facts)) for e in run.read_events()] == [
        ("started", "learner started", {"pid": 7}),
        ("swapped", "worker 0 is at 0.3", {"worker": "rollout-0"}),
    ]


def test_samples_of_a_step_are_those_of_its_newest_lineage(tmp_path: Path) -> None:
    run = _run(tmp_path)
    run.write_samples(Version(0, 12), [{"prompt": "a"}, {"prompt": "b"}])
    run.write_samples(Version(10, 12), [{"prompt": "d"}])
    run.write_samples(Version(2, 12), [{"prompt": "c"}])
    assert run.read_samples(12) == [{"prompt": "d"}]
    assert run.read_samples(12, lineage=0) == [{"prompt": "a"}, {"prompt": "b"}]


def test_a_step_without_samples_names_the_nearest_that_has_some(tmp_path: Path) -> None:
    run = _run(tmp_path)
    with pytest.raises(RunDirError, match="none recorded"):
        run.read_samples(3)
    for step in (5, 10, 15):
        run.write_samples(Version(0, step), [])
    with pytest.raises(RunDirError, match="recorded are steps 5 to 15, the nearest is 10"):
        run.read_samples(9)


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    run = _run(tmp_path)
    run.write_summary({"steps": 3})
    assert run.read_summary() == {"steps": 3}
    run.summary.write_text("{")
    with pytest.raises(RunDirError, match=r"summary\.json is damaged"):
        run.read_summary()


def test_whoever_only_asks_whether_a_run_goes_on_keeps_nobody_from_starting_it(tmp_path: Path) -> None:
    """Asking takes a shared lock for an instant, and a page asks often."""
    lock = FileLock(tmp_path / ".lock")
    (tmp_path / ".lock").touch()
    with (tmp_path / ".lock").open("rb") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        threading.Timer(0.03, asking.close).start()
        assert lock.claim() is None
    lock.release()


def test_a_run_directory_that_cannot_be_made_is_an_error_of_the_users(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        RunDirError, match=r"no run directory can be made in .*/file/runs: Not a directory; make room, or"
    ):
        RunDir.create(tmp_path / "file" / "runs", "sort", "name: sort\n")
    with small_disk(tmp_path / "disk") as disk:
        fill(disk)
        with pytest.raises(RunDirError, match="No space left on device"):
            RunDir.create(disk, "sort", "name: sort\n" + "# long\n" * 1000)
