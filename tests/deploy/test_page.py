"""The page beside a run: a process of its own that comes and goes with it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from views import view

from penstock.deploy.page import RESTARTS, beside
from penstock.services.dashboard.config import DashboardSection, PageError
from penstock.services.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir.create(tmp_path / "runs", "sort", "name: sort\n")
    made.write_status(view())
    return made


def ask(address: str, path: str, token: str = "") -> Any:
    request = urllib.request.Request(f"{address}{path}", headers={"authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_nothing_is_served_unless_it_is_asked_for(run: RunDir) -> None:
    before = children()
    with beside(DashboardSection(), run) as page:
        assert page is None
        assert children() == before


def test_the_page_of_a_run_answers_at_once_and_ends_with_it(run: RunDir) -> None:
    before = children()
    with beside(DashboardSection(enabled=True), run) as page:
        assert page is not None
        address = page.address
        # The port was held by the run before the process was up: what comes early waits and is not refused.
        told = ask(address, "api/status")
        (process,) = children() - before
        assert os.getpriority(os.PRIO_PROCESS, process) > os.getpriority(os.PRIO_PROCESS, 0)
    assert told["facts"]["view"]["step"] == 12
    assert children() == before
    with pytest.raises(urllib.error.URLError):
        ask(address, "api/status")


def test_a_port_that_is_taken_ends_the_start_with_a_remedy_and_leaves_nothing(run: RunDir) -> None:
    before = children()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        section = DashboardSection(enabled=True, port=other.getsockname()[1])
        with pytest.raises(PageError, match="in use"), beside(section, run):
            pass
    assert children() == before


def test_beyond_this_machine_a_token_is_demanded_before_anything_starts(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAGE_TOKEN", raising=False)
    with (
        pytest.raises(PageError, match="PAGE_TOKEN is not set"),
        beside(DashboardSection(enabled=True, host="0.0.0.0", token_env="PAGE_TOKEN"), run),
    ):
        pass


def test_the_token_reaches_the_page_by_the_environment_alone(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGE_TOKEN", "correct-horse-battery-staple")
    before = children()
    with beside(DashboardSection(enabled=True, token_env="PAGE_TOKEN"), run) as page:
        assert page is not None
        address = page.address
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(address, "api/status")
        assert ask(address, "api/status", "correct-horse-battery-staple")["verdict"]
        (process,) = children() - before
        assert "correct-horse" not in " ".join(psutil.Process(process).cmdline())


def test_a_page_that_is_killed_is_served_again_at_the_same_address(run: RunDir) -> None:
    before = children()
    with beside(DashboardSection(enabled=True), run) as page:
        assert page is not None
        assert page.look() == ""
        (killed,) = children() - before
        kill(killed)
        told = page.look()
        assert "was killed by SIGKILL" in told
        assert "served again" in told
        assert str(run.log("dashboard")) in told
        assert ask(page.address, "api/status")["facts"]["view"]["step"] == 12
        assert page.look() == ""
    assert children() == before


def test_a_page_that_ends_again_and_again_is_given_up_and_its_port_is_free(run: RunDir) -> None:
    before = children()
    with beside(DashboardSection(enabled=True), run) as page:
        assert page is not None
        address = page.address
        for _ in range(RESTARTS):
            kill(*(children() - before))
            assert "served again" in page.look()
        kill(*(children() - before))
        assert f"given up. To serve it apart from the run: penstock dashboard {run.path}" in page.look()
        assert page.address == ""
        assert page.look() == ""
        assert children() == before
        with pytest.raises(urllib.error.URLError):
            ask(address, "api/status")


def test_a_page_that_cannot_be_started_again_is_no_harm(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    with beside(DashboardSection(enabled=True), run) as page:
        assert page is not None
        kill(*(children() - before))
        monkeypatch.setattr(subprocess, "Popen", Mock(side_effect=BlockingIOError(11, "no more processes")))
        assert "cannot be started again, [Errno 11] no more processes, and is given up" in page.look()
        assert page.look() == ""


def kill(*processes: int) -> None:
    """And see to it that they are gone, without taking from the page how."""
    for process in processes:
        os.kill(process, signal.SIGKILL)
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
