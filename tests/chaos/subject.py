"""The run that is tormented: started, gone on with and steered as a person would, from outside, by the command line and
the run directory alone."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import redis

from penstock.services.contracts import PenstockError
from penstock.services.control import Command
from penstock.services.mailbox import MailboxControl
from penstock.services.rundir import RunDir
from penstock.services.weights.config import default_folder

MARK = "PENSTOCK_RUN_ID"
PENSTOCK = Path(sys.executable).parent / "penstock"
BORN = "--- process "
"""Begins the first line of every process in its actor's log."""
_NO_ANSWER = 2.0


class Subject:
    """One run and its driver, which may be killed and started again."""

    def __init__(self, run_file: Path, overrides: Sequence[str], home: Path, said: Path) -> None:
        """`home` is an empty folder for the run directory, `said` takes what the drivers print."""
        self._home, self._said = home, said
        self._launch("train", str(run_file), *overrides, f"runs_dir={home}")
        self.starts = 1
        self.path = self._find()
        self.run_id = self._wait_for(self.path / ".run-id")
        self._births: dict[Path, tuple[int, int]] = {}

    def _launch(self, *words: str) -> None:
        with self._said.open("ab") as out:
            out.write(f"--- {time.strftime('%H:%M:%S')} penstock {words[0]}\n".encode())
            out.flush()
            environment = {name: value for name, value in os.environ.items() if name != MARK} | {"COLUMNS": "200"}
            self.driver = subprocess.Popen(
                [str(PENSTOCK), *words], stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=environment
            )

    def go_on(self) -> None:
        """Start the next driver, as a person would."""
        self._launch("resume", str(self.path))
        self.starts += 1

    def _find(self) -> Path:
        ends = time.monotonic() + 120
        while time.monotonic() < ends:
            for found in self._home.glob("*/config.yaml"):
                return found.parent
            if self.driver.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"the run did not start:\n{self._said.read_text()[-3000:]}")

    def _wait_for(self, file: Path) -> str:
        ends = time.monotonic() + 120
        while not (file.exists() and (text := file.read_text())):
            if time.monotonic() > ends or self.driver.poll() is not None:
                raise RuntimeError(f"{file} did not come:\n{self._said.read_text()[-3000:]}")
            time.sleep(0.1)
        return text

    # --- steering ---------------------------------------------------------------------------------

    def ask(self, command: Command) -> bool:
        """Whether the driver did it. One that is dead or stopped does nothing, and that is no fault here."""
        try:
            MailboxControl(RunDir(self.path)).send(command, "chaos", _NO_ANSWER)
        except (PenstockError, OSError):
            return False
        return True

    # --- looking ----------------------------------------------------------------------------------

    @property
    def status(self) -> dict[str, Any]:
        """status.json, which a driver of the past may have written."""
        with contextlib.suppress(OSError, ValueError):
            read: dict[str, Any] = json.loads((self.path / "status.json").read_bytes())
            return read
        return {}

    @property
    def fresh(self) -> bool:
        """Whether the present driver has written it."""
        return self.status.get("pid") == self.driver.pid

    @property
    def phase(self) -> str:
        """Of the present driver; empty before it has said so."""
        status = self.status
        return str(status["phase"]) if status.get("pid") == self.driver.pid else ""

    def workers(self, role: str) -> list[dict[str, Any]]:
        """As the present driver sees them."""
        status = self.status
        there = status.get("workers", []) if status.get("pid") == self.driver.pid else []
        return [worker for worker in there if worker["role"] == role]

    def events(self, kind: str, since: float = 0.0) -> list[dict[str, Any]]:
        """Those of one kind from a unix time on."""
        found = []
        with contextlib.suppress(OSError), (self.path / "events.jsonl").open("rb") as file:
            for line in file:
                if line.endswith(b"\n") and b'"%s"' % kind.encode() in line:
                    event = json.loads(line)
                    if event["kind"] == kind and event["time"] >= since:
                        found.append(event)
        return found

    @property
    def summary(self) -> dict[str, Any] | None:
        path = self.path / "summary.json"
        return json.loads(path.read_bytes()) if path.exists() else None

    def rows(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    # --- processes --------------------------------------------------------------------------------

    def born(self, name: str) -> int | None:
        """The newest process of the actor `name`, by its log; it may be dead."""
        log = self.path / "logs" / f"{name}.log"
        read, pid = self._births.get(log, (0, 0))
        with contextlib.suppress(OSError), log.open("rb") as file:
            file.seek(read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                read += len(line)
                if line.startswith(BORN.encode()):
                    pid = int(line.removeprefix(BORN.encode()).split()[0])
        self._births[log] = read, pid
        return pid or None

    def lives(self, pid: int | None) -> bool:
        """Whether it is a living process of this run."""
        if pid is None:
            return False
        try:
            mark = f"{MARK}={self.run_id}".encode()
            whole = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            return mark in whole and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except (OSError, psutil.Error):
            return False

    def marked(self) -> list[str]:
        """Command lines of the living processes of this run, but for its driver."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != self.driver.pid and self.lives(process.pid):
                    found.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
        return found

    def page(self) -> int | None:
        """The process that serves the page."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.driver.pid).children():
                with contextlib.suppress(psutil.Error):
                    if "penstock.deploy.page" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                        return child.pid
        return None

    # --- the store --------------------------------------------------------------------------------

    def store(self) -> dict[str, Any] | None:
        """What the private server has left word of."""
        with contextlib.suppress(OSError, ValueError):
            facts: dict[str, Any] = json.loads((self.path / "store" / "live" / "server.json").read_bytes())
            return facts
        return None

    def server(self) -> int | None:
        """The process of the private server, while it lives. It writes over its environment, so that its run's mark is
        no longer in it."""
        facts = self.store()
        with contextlib.suppress(psutil.Error):
            if facts is not None:
                process = psutil.Process(facts["pid"])
                same = abs(process.create_time() - facts["started"]) < 1.0
                return process.pid if same and process.status() != psutil.STATUS_ZOMBIE else None
        return None

    def serves(self) -> bool:
        """Whether the server answers; that it wants a password is an answer."""
        facts = self.store()
        if facts is None:
            return False
        client = redis.Redis.from_url(facts["url"], socket_timeout=0.5, protocol=2)
        try:
            with client:
                return bool(client.ping())
        except redis.exceptions.AuthenticationError:
            return True
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    @property
    def weights(self) -> Path:
        """Where versions are published."""
        return default_folder("shm", self.run_id, self.path)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"
