"""How processes ended, as Ray's raylet writes it, and as people read it."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import ray

from penstock.deploy import deaths, exits
from penstock.deploy.cluster import Cluster

LINE = "[2026-11-27 02:54:45,209 I 1696 1696] (raylet) subreaper.cc:74: Child process {} exited {}\n"


@pytest.fixture
def logs(tmp_path: Path):
    exits.read_from(tmp_path)
    yield tmp_path
    exits._where.clear()


def test_a_signal_and_an_exit_code_are_told_by_the_newest_line_of_that_process(logs: Path) -> None:
    (logs / "raylet.out").write_text(
        LINE.format(70, "with status 1") + LINE.format(7, "from signal 9") + LINE.format(7, "with status 3")
    )
    assert exits.how_it_ended(7) == ("exit code", 3)
    assert exits.how_it_ended(70) == ("exit code", 1)
    (logs / "raylet.1.out").write_text(LINE.format(8, "from signal 9") + LINE.format(9, "from signal 77"))
    assert exits.in_words(*(exits.how_it_ended(8) or ())) == "was ended by SIGKILL (9)"
    assert exits.in_words(*(exits.how_it_ended(9) or ())) == "was ended by signal 77"
    assert exits.in_words("exit code", 3) == "ended with exit code 3"
    assert exits.how_it_ended(1, patience=0.0) is None


def test_a_log_that_cannot_be_read_says_nothing(logs: Path) -> None:
    (logs / "raylet.out").mkdir()
    assert exits.how_it_ended(7, patience=0.0) is None


def test_lines_from_before_the_process_was_started_are_of_another_one_with_its_number(logs: Path) -> None:
    at = datetime(2026, 11, 27, 2, 54, 45).timestamp()
    (logs / "raylet.out").write_text(LINE.format(7, "with status 3"))
    assert exits.how_it_ended(7, at) == ("exit code", 3), "the log has whole seconds"
    assert exits.how_it_ended(7, at + 10, 0.0) is None


def test_a_program_hears_of_its_children_afterwards_as_it_did_before(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, _: heard.append(number))
    try:
        with exits.parent_as_before():
            exits.ctypes.CDLL(None).signal(signal.SIGCHLD, 1)  # ignored, as Ray does
            assert subprocess.run(["sh", "-c", "exit 5"]).returncode == 0, "the kernel forgets"
        assert subprocess.run(["sh", "-c", "exit 5"]).returncode == 5
        assert heard == [signal.SIGCHLD]
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with exits.parent_as_before():
            pass
        assert subprocess.run(["sh", "-c", "exit 5"]).returncode == 5, "a job's driver may have inherited that"
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_without_a_cluster_nobody_is_waited_for() -> None:
    assert exits.how_it_ended(7, patience=60) is None


ORPHAN = """
sh -c 'until [ $(ps -o ppid= -p $$) -ne $0 ]; do :; done; ps -o ppid= -p $$' $$ &
"""
"""Says who has adopted it."""


@pytest.mark.engine
def test_a_cluster_that_a_run_starts_tells_how_its_actors_end_and_is_closed_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def foster_parent() -> int:
        return int(subprocess.run(["sh", "-c", ORPHAN], stdout=subprocess.PIPE, text=True).stdout)

    class Actor:
        def pid(self) -> int:
            return os.getpid()

        def end(self, code: int) -> None:
            os._exit(code)

        def of_a_child(self, log: Path) -> tuple[int, int]:
            deaths.begin_life(log)
            return subprocess.run(["sh", "-c", "exit 5"]).returncode, foster_parent()

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # too long for Ray's sockets
    cluster = Cluster(None, "exits", actors=2)
    try:
        assert cluster._folder is not None and cluster._folder.parent == Path("/tmp")
        assert cluster._folder.stat().st_mode & 0o077 == 0, "Ray's own folder, in it, is open to everybody"
        assert subprocess.run(["sh", "-c", "exit 5"]).returncode == 5, "the driver's own children"
        assert foster_parent() != os.getpid(), "whom nobody would reap"
        start = ray.remote(Actor).options(num_cpus=0).remote
        for end, told in (
            (lambda actor, pid: os.kill(pid, signal.SIGKILL), "was ended by SIGKILL (9), without a word"),
            (lambda actor, pid: actor.end.remote(7), "ended with exit code 7, without a word"),
        ):
            actor = start()
            code, foster = ray.get(actor.of_a_child.remote(tmp_path / "b.log"), timeout=60)
            pid = ray.get(actor.pid.remote(), timeout=60)
            assert code == 5 and foster != pid, "an actor's children, and theirs"
            end(actor, pid)
            with pytest.raises(ray.exceptions.ActorDiedError) as died:
                ray.get(actor.pid.remote(), timeout=60)
            said = deaths.explain("a", died.value, tmp_path / "a.log", replace(deaths.Life.begins(), pid=pid))
            assert said.startswith(f"a died: its process {pid} {told}")
    finally:
        cluster.close()
        exits._where.clear()
