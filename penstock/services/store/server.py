"""The private redis-server of one run: found, started, watched and ended.

Its append-only file lies in the run directory, in a folder that is closed to other users, so that a resume finds it.
Its socket lies in a short directory of mode 0700 elsewhere, to which the run directory links as `live`. Its password is
in no file: it reads its configuration from a pipe, and clients are given it in a `StoreAddress`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

import redis

from penstock.services.contracts import DeadlinePassed, StoreError
from penstock.services.files import closed_folder
from penstock.services.ports import HeldPort
from penstock.services.store import whereabouts
from penstock.services.store.binary import binary_version, find_binary
from penstock.services.store.config import Fsync
from penstock.services.store.connection import StoreAddress
from penstock.services.store.mending import TORN, mend

_APPENDFSYNC: dict[Fsync, str] = {"always": "always", "everysec": "everysec", "never": "no"}

# Runs in a fresh interpreter between fork and exec, where no other thread can hold a lock: the server shall be killed
# when its parent thread dies, by whatever cause; what it has acknowledged is in the file by then. The second line is
# for a parent that died before. SIGTERM and SIGINT are for the run, which needs its store to end cleanly: `ray job
# stop` and batch systems send them to every process they find, so the server is deaf to them.
_LAUNCH = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]): sys.exit(0)
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
os.execv(sys.argv[2], sys.argv[2:])
"""
_ATTEMPTS = 3
"""How often a server is started that is killed before it answers, or finds the end of its file torn."""
_LAST_WORDS = 5.0
"""Seconds in which a server that is asked to end must begin to."""


class PrivateServer:
    """One redis-server for one run, behind a generated password. When it has died, `start` brings it back at the same
    address with the same data.

    data      folder of the append-only file, in the run directory
    log       file the server writes its log to
    fsync     see `config.Fsync`
    host      None listens on a unix socket only; an address of this machine listens there on TCP
    deadline  seconds to become ready, which includes reading the append-only file, and again to end
    """

    def __init__(
        self, data: Path, log: Path, *, fsync: Fsync = "never", host: str | None = None, deadline: float = 60.0
    ) -> None:
        self._data, self._log = data.absolute(), log.absolute()
        self._fsync: Fsync = fsync
        self._host = host
        self._deadline = self._patience = deadline
        self._folder: Path | None = None
        # On the socket too: reward functions run as the same user, and a socket's path is no secret.
        self._password = secrets.token_urlsafe(32)
        self._port: HeldPort | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._holder: threading.Thread | None = None
        self._binary: Path | None = None

    @property
    def url(self) -> str:
        """Where the server listens; known after the first `start`."""
        if self._folder is None:
            raise StoreError("the private Redis server has not been started")
        if self._host:
            assert self._port is not None, "chosen when the folder was made"
            return f"redis://{_bracketed(self._host)}:{self._port.number}/0"
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

    def start(self, patience: float | None = None) -> None:
        """Start and wait until it answers, at most `patience` seconds instead of the deadline. Raises StoreError when
        it ends instead, or when another living run uses the same folder; DeadlinePassed when it takes too long."""
        if self.alive:
            return
        self._patience = self._deadline if patience is None else patience
        try:
            self._start()
        except (StoreError, DeadlinePassed):
            self.stop()
            raise

    def stop(self) -> None:
        """End the server, by SHUTDOWN and then by SIGKILL, and remove socket and link."""
        process, holder = self._process, self._holder
        if process is not None and holder is not None and self.alive:
            if self._ask_to_end():
                holder.join(self._deadline)
            if holder.is_alive():
                process.kill()
                holder.join(self._deadline)
        if self._folder is not None:
            whereabouts.remove(self._data, self._folder)
            self._folder = None
        if self._port is not None:
            self._port.release()
            self._port = None

    def kill(self) -> None:
        """End a server that does not answer any more, so that `start` can begin again from its file."""
        if self._process is not None and self._holder is not None and self.alive:
            self._process.kill()
            self._holder.join(self._deadline)

    def _ask_to_end(self) -> bool:
        """Whether it will: it has written what it knows, and closes its file."""
        client = redis.Redis.from_url(self.url, password=self._password, socket_timeout=_LAST_WORDS, protocol=2)
        try:
            with client:
                client.shutdown()
        except redis.RedisError:
            return False
        return True

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

    def _start(self) -> None:
        closed_folder(self._data)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._folder is None:
            whereabouts.end_predecessor(self._data, self._deadline)
            self._folder = whereabouts.short_folder()
        if self._binary is None:
            self._binary = find_binary()
            self._check_format(self._binary)
        if self._host and self._port is None:
            self._port = HeldPort(self._host)  # for as long as the server may be started again
        for attempt in range(_ATTEMPTS):
            said = self._log.stat().st_size if self._log.exists() else 0
            try:
                self._serve()
                return
            except StoreError:
                if attempt + 1 == _ATTEMPTS:
                    raise
                if self._says_torn(said):
                    mend(self._data, self._binary, self._deadline)
                elif not self._was_killed:  # what it found wrong by itself it would find again
                    raise

    def _says_torn(self, since: int) -> bool:
        """Whether the server has complained of the end of its file in what it has logged since."""
        with self._log.open(errors="replace") as log:
            log.seek(since)
            return TORN in log.read()

    @property
    def _was_killed(self) -> bool:
        code = self._process.returncode if self._process is not None else None
        return code is not None and code < 0

    def _serve(self) -> None:
        self._launch(self._configuration())
        assert self._folder is not None and self._process is not None
        whereabouts.describe(self._data, self._folder, self._process.pid, self.url)
        self._wait_until_ready()

    def _check_format(self, binary: Path) -> None:
        """Redis 7 keeps the file in a folder that Redis 6 would not look into: it would start empty."""
        if (self._data / "appendonlydir").exists() and binary_version(binary) < (7,):
            raise StoreError(
                f"{self._data} was written by Redis 7 or newer, {binary} is older and would start with an empty store; "
                "install the newer redis-server again"
            )

    def _configuration(self) -> bytes:
        assert self._folder is not None
        settings = {
            "port": self._port.number if self._port is not None else 0,
            "bind": self._host,
            "unixsocket": None if self._host else self._folder / "redis.sock",
            "unixsocketperm": None if self._host else 700,
            "requirepass": self._password,
            "dir": self._data,
            "appendonly": "yes",
            "appendfsync": _APPENDFSYNC[self._fsync],
            "aof-load-truncated": "no",  # see `mending`
            "save": "",
            "maxmemory-policy": "noeviction",
            # Small sorted sets as lists of text are searched from the front: a third of what a move costs.
            "zset-max-ziplist-entries": 0,
            "always-show-logo": "no",
            "daemonize": "no",
        }
        lines = [f"{name} {_quoted(value)}" for name, value in settings.items() if value is not None]
        return ("\n".join(lines) + "\n").encode()

    def _launch(self, configuration: bytes) -> None:
        """Start the process from a thread that lives as long as the process does.

        The kernel sends the death signal when the *thread* that forked ends, so that thread must not end early."""
        started, failed = threading.Event(), []

        def hold() -> None:
            launcher = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid())]
            try:
                with self._log.open("ab") as out:
                    self._process = subprocess.Popen(
                        [*launcher, str(self._binary), "-"],  # it reads its configuration from the pipe
                        stdin=subprocess.PIPE,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # Ctrl-C is for the run, which stops the server last
                    )
                assert self._process.stdin is not None
                with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:  # it ended at once
                    pipe.write(configuration)
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
                if waited > self._patience:
                    raise DeadlinePassed(
                        f"redis-server (process {self.pid}) was not ready after {waited:.0f} s: "
                        f"{waiting_for}; its log is {self._log}"
                    )
                time.sleep(0.01)


def _bracketed(host: str) -> str:
    """As it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def _quoted(value: object) -> str:
    text = str(value)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
