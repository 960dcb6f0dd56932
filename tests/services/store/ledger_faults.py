"""A network between the ledger's clients and a real Redis server that loses, cuts and delays, as it is told to.

It is a proxy on a unix socket. Clients know nothing of it: they see connections that break. Only the commands that
carry a call of the ledger are counted and meddled with, not those by which a client library introduces itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass, field
from enum import Enum, auto
from importlib.resources import files
from pathlib import Path
from typing import BinaryIO

from penstock.services.store.connection import script
from penstock.services.store.server import PrivateServer

_FILES = (files("penstock.services.store") / "scripts").iterdir()
NAMES = {script(file.name[:-4])[1]: file.name[:-4] for file in _FILES if file.name not in ("common.lua", "__init__.py")}
"""SHA-1 of every script → its name."""
_TEXTS = {script(name)[0]: name for name in NAMES.values()}


class Fault(Enum):
    """What becomes of one command."""

    NONE = auto()
    REQUEST_LOST = auto()
    """Nothing of it arrives."""
    REQUEST_CUT = auto()
    """Half of it arrives, then the connection ends."""
    REPLY_LOST = auto()
    """It takes effect; the client never hears of it."""
    LATE = auto()
    """It stays on the way; the client gives it up, and it may arrive at any later moment."""
    KILLED_BEFORE = auto()
    """The server is killed by SIGKILL before it arrives, and started again."""
    KILLED_DURING = auto()
    """The server is killed while it has it: who knows whether it took effect."""
    KILLED_AFTER = auto()
    """It takes effect and is acknowledged; the server is killed before the client hears of it."""


@dataclass
class Passed:
    """What became of the commands of one call."""

    executed: list[tuple[str, bytes]] = field(default_factory=list)
    """Script and the tag it answered with, for every command that the server has certainly executed."""
    unknown: list[str] = field(default_factory=list)
    """Scripts that may have been executed, or not."""
    broken: bool = False
    """Whether the fault has happened."""


class Network:
    """Accepts at `url` and passes on to `server`; `plan` says what befalls the next call."""

    def __init__(self, server: PrivateServer, folder: Path) -> None:
        self._server = server
        self._path = folder / "proxy.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._listener.listen(64)
        self._living: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._fault, self._at = Fault.NONE, 0
        self.passed = Passed()
        self.late: list[tuple[str, bytes]] = []
        """Commands that are still on their way."""
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    def plan(self, fault: Fault = Fault.NONE, at: int = 0) -> None:
        """Let `fault` befall command number `at`, from 0, of the next call."""
        self._fault, self._at, self.passed = fault, at, Passed()

    def kill(self) -> None:
        """SIGKILL to the server; every connection ends, and what was on its way is lost."""
        assert self._server.pid is not None
        os.kill(self._server.pid, signal.SIGKILL)
        ends = time.monotonic() + 30.0
        while self._server.alive:
            assert time.monotonic() < ends, "the server outlives SIGKILL"
            time.sleep(0.001)
        self.late.clear()
        with self._lock:
            living, self._living = self._living, set()
        for end in living:
            _end(end)

    def restart(self) -> None:
        self._server.start()

    def deliver_late(self, which: int) -> tuple[str, bytes]:
        """Let a command arrive after all; its script, and the tag that it was answered with and nobody heard."""
        name, request = self.late.pop(which)
        with self._upstream() as upstream, upstream.makefile("rb") as answers:
            upstream.sendall(request)
            return name, _tag(_frame(answers))

    def close(self) -> None:
        _end(self._listener)
        for end in list(self._living):
            _end(end)

    # --- one connection -----------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(client,), name="proxied", daemon=True).start()

    def _upstream(self) -> socket.socket:
        upstream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        upstream.connect(self._server.url.removeprefix("unix://"))
        if password := self._server.address("proxied").password:
            upstream.sendall(b"AUTH %s\r\n" % password.encode())
            assert upstream.recv(5) == b"+OK\r\n"
        return upstream

    def _serve(self, client: socket.socket) -> None:
        ends = [client]
        with self._lock:
            self._living.add(client)
        try:
            ends.append(upstream := self._upstream())
            with client.makefile("rb") as requests, upstream.makefile("rb") as answers:
                while request := _frame(requests):
                    if not self._pass_on(request, client, upstream, answers):
                        return
        except (OSError, EOFError, ValueError):  # an end has gone
            pass
        finally:
            with self._lock:
                self._living.discard(client)
            for end in ends:
                _end(end)

    def _pass_on(self, request: bytes, client: socket.socket, upstream: socket.socket, answers: BinaryIO) -> bool:
        """False when the connection must end."""
        name = _script_of(request)
        fault = self._next_fault() if name else Fault.NONE
        if fault is Fault.LATE:
            self.late.append((name, request))
        elif fault is Fault.REQUEST_CUT:
            upstream.sendall(request[: len(request) // 2])
        elif fault is Fault.KILLED_BEFORE:
            self._kill_and_restart(client)
        elif fault is Fault.KILLED_DURING:
            self.passed.unknown.append(name)
            upstream.sendall(request)
            self._kill_and_restart(client)
        elif fault is not Fault.REQUEST_LOST:
            upstream.sendall(request)
            answer = _frame(answers)
            if answer.startswith(b"-NOSCRIPT"):  # the client sends the text at once
                self._at += 1
            elif name:
                self.passed.executed.append((name, _tag(answer)))
            if fault is Fault.NONE or answer.startswith(b"-NOSCRIPT"):
                client.sendall(answer)
                return True
            if fault is Fault.KILLED_AFTER:
                self._kill_and_restart(client)
        return False

    def _next_fault(self) -> Fault:
        self._at -= 1
        if self._at != -1 or self._fault is Fault.NONE:
            return Fault.NONE
        self.passed.broken = True
        return self._fault

    def _kill_and_restart(self, client: socket.socket) -> None:
        with self._lock:
            self._living.discard(client)  # it shall not try again before the server is back
        self.kill()
        self.restart()


def _end(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended already
        end.shutdown(socket.SHUT_RDWR)
    end.close()


def _frame(stream: BinaryIO) -> bytes:
    """One whole value of the protocol, as it came. Raises EOFError."""
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise EOFError
    kind, rest = line[:1], line[1:-2]
    if kind == b"$" and rest != b"-1":
        body = stream.read(int(rest) + 2)
        if len(body) < int(rest) + 2:
            raise EOFError
        return line + body
    if kind == b"*" and rest != b"-1":
        return line + b"".join(_frame(stream) for _ in range(int(rest)))
    return line


def _words(frame: bytes, count: int) -> list[bytes]:
    """The first bulk strings of an array."""
    words, at = [], frame.index(b"\r\n") + 2
    while len(words) < count and frame[at : at + 1] == b"$":
        end = frame.index(b"\r\n", at)
        size = int(frame[at + 1 : end])
        words.append(frame[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return words


def _script_of(request: bytes) -> str:
    """The script that a command runs; '' for all other commands."""
    command, argument, *_ = [*_words(request, 2), b"", b""]
    if command.upper() == b"EVALSHA":
        return NAMES[argument.decode()]
    return _TEXTS[argument.decode()] if command.upper() == b"EVAL" else ""


def _tag(answer: bytes) -> bytes:
    """The first word of a script's answer, or the whole of an error."""
    return (_words(answer, 1) or [answer])[0] if answer.startswith(b"*") else answer
