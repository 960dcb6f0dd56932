"""The error a user sees when an actor died: cause first, then the end of its log."""

from __future__ import annotations

import subprocess
import sys

import pytest
import ray.exceptions

from penstock.deploy import deaths, exits
from penstock.deploy.deaths import Life
from penstock.services.contracts import PenstockError


class Died(ray.exceptions.ActorDiedError):
    """As Ray raises it when a process is gone."""

    def __init__(self, text: str = "worker process has died") -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


def test_an_exception_of_the_actor_is_the_cause(tmp_path):
    log = tmp_path / "worker.log"
    log.write_text("one\ntwo\n")
    error = ray.exceptions.RayTaskError("run", "Traceback …", ValueError("no room for 5 tokens"))
    told = deaths.explain("rollout-0", error, log, Life())
    assert told.startswith("rollout-0 died: ValueError: no room for 5 tokens")
    assert told.endswith("one\n    two")


def test_a_fatal_signal_is_read_from_the_log(tmp_path):
    log = tmp_path / "worker.log"
    log.write_text("*** SIGSEGV received at time=1 on cpu 0 ***\n")
    assert "ended by SIGSEGV" in deaths.explain("learner-0", Died(), log, Life.begins())


def test_a_silent_death_is_named_as_what_it_looks_like(tmp_path):
    told = deaths.explain("learner-0", Died(), tmp_path / "none.log", Life.begins())
    assert "SIGKILL" in told and "the log is empty" in told


def test_the_kernels_count_of_memory_kills_makes_it_the_cause(tmp_path):
    told = deaths.explain("learner-0", Died(), tmp_path / "none.log", Life(oom=deaths.out_of_memory_kills() - 1))
    assert "want of memory" in told


@pytest.mark.parametrize(
    ("ended", "node", "said"),
    [
        (("signal", 9), None, "want of memory"),
        (("exit code", 3), None, "its process 7 ended with exit code 3, without a word"),
        (("signal", 6), None, "its process 7 was ended by SIGABRT (6), without a word"),
        (("exit code", 3), "another-node", "gone without a word"),
    ],
)
def test_memory_is_the_cause_only_of_what_was_killed_here(tmp_path, monkeypatch, ended, node, said):
    monkeypatch.setattr(exits, "how_it_ended", lambda pid, since: ended)
    life = Life(oom=deaths.out_of_memory_kills() - 1, pid=7, node=node)
    assert said in deaths.explain("learner-0", Died(), tmp_path / "none.log", life)


def test_only_the_last_lines_of_a_long_log_are_shown(tmp_path):
    log = tmp_path / "long.log"
    log.write_text("".join(f"line {i}\n" for i in range(100_000)))
    assert deaths.last_lines(log, 2) == ["line 99998", "line 99999"]


def test_a_process_that_said_nothing_has_no_last_lines_and_those_of_the_one_before_are_not_its_own(tmp_path):
    log = tmp_path / "worker.log"
    log.write_text(f"{deaths.BIRTH} 101\nof the first\n{deaths.BIRTH} 102\n")
    assert deaths.last_lines(log) == []
    assert "(the log is empty)" in deaths.explain("rollout-0", Died(), log, Life.begins())
    log.write_text(f"{deaths.BIRTH} 101\nof the first\n{deaths.BIRTH} 102\nof the second\n")
    assert deaths.last_lines(log) == ["of the second"]


def test_a_node_that_does_not_see_the_run_directory_says_so_and_makes_none(tmp_path):
    with pytest.raises(PenstockError, match=r"does not see the run directory .*/elsewhere/run: all nodes"):
        deaths.begin_life(tmp_path / "elsewhere" / "run" / "logs" / "a.log")
    assert list(tmp_path.iterdir()) == []


def test_output_of_a_process_and_of_its_libraries_goes_to_its_log(tmp_path):
    (tmp_path / "logs").mkdir()
    code = (
        "import os, pathlib, sys\nfrom penstock.deploy.deaths import begin_life\n"
        f"begin_life(pathlib.Path({str(tmp_path / 'logs' / 'a.log')!r}))\n"
        "print('from python', flush=True); os.write(2, b'from a library\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    text = (tmp_path / "logs" / "a.log").read_text()
    assert "--- process" in text and "from python" in text and "from a library" in text
