"""A pool of rule processes, in which a user's function may hang, crash or exit without taking anyone along.

Each call has a deadline. A process that misses it, dies, or answers nonsense is killed and replaced; the
answers it was judging are unscored, with the cause. A rule runs with the user's rights over files and the network; into
other processes, where passwords are, it cannot look (`confinement`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import msgspec

from penstock.reward import wire
from penstock.reward.config import RewardSection
from penstock.services.contracts import DeadlinePassed, PenstockError

log = logging.getLogger(__name__)

_SYSTEM = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")
_PYTHON = ("PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "HF_HOME", "XDG_CACHE_HOME")
HARMLESS = frozenset((*_SYSTEM, *_PYTHON))
"""The environment that rules see without being asked; never a password or a token."""


class RewardError(PenstockError):
    """Rules that cannot be used at all: a name that does not exist, a module that does not import."""


class _Ended(Exception):
    """A rule process that cannot go on; the text is the cause."""


class _RuleProcess:
    """One process and the socket to it. Used by one thread at a time; `kill` from any."""

    def __init__(self, folder: str, environment: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "penstock.reward.child", str(theirs.fileno()), str(os.getpid())]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env=dict(environment),
                cwd=folder,
                start_new_session=True,
            )
        finally:
            theirs.close()
        assert self._process.stderr is not None
        self._stderr = self._process.stderr.fileno()
        os.set_blocking(self._stderr, False)
        self._socket.setblocking(False)
        self._printed: deque[str] = deque(maxlen=5)
        self._alive = os.pidfd_open(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def exchange(self, message: wire.Request, seconds: float) -> wire.Reply:
        """Send one message and wait for its reply. Raises _Ended when the process hangs, dies or talks nonsense."""
        outgoing = memoryview(wire.frame(message))
        incoming = bytearray()
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
            selector.register(self._stderr, selectors.EVENT_READ)
            selector.register(self._alive, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                ready = {key.fd: events for key, events in selector.select(left)}
                if self._stderr in ready and not self._read_stderr():
                    selector.unregister(self._stderr)
                events = ready.get(self._socket.fileno(), 0)
                if events & selectors.EVENT_READ and self._receive(incoming):
                    return self._decode(incoming)
                if events & selectors.EVENT_WRITE:
                    outgoing = outgoing[self._send(outgoing) :]
                    if not outgoing:
                        selector.modify(self._socket, selectors.EVENT_READ)
                if self._alive in ready and not events & selectors.EVENT_READ:
                    raise _Ended(self._how_it_died())
        raise _Ended(f"timed out after {seconds:.1f} s")

    def _send(self, data: memoryview) -> int:
        try:
            return self._socket.send(data)
        except OSError:
            raise _Ended(self._how_it_died()) from None

    def _receive(self, incoming: bytearray) -> bool:
        """True when a whole message is there."""
        try:
            piece = self._socket.recv(1 << 16)
        except OSError:
            piece = b""
        if not piece:
            raise _Ended(self._how_it_died())
        incoming += piece
        return len(incoming) >= 4 and len(incoming) >= 4 + wire.HEADER.unpack_from(incoming)[0]

    def _decode(self, incoming: bytearray) -> wire.Reply:
        self._read_stderr()
        try:
            return wire.REPLIES.decode(memoryview(incoming)[wire.HEADER.size :])
        except msgspec.MsgspecError as error:
            raise _Ended(f"the rule process sent what is no reply: {error}") from error

    def _read_stderr(self) -> bool:
        """Keep and log what the rules printed; False at its end."""
        try:
            text = os.read(self._stderr, 1 << 16).decode(errors="replace")
        except BlockingIOError:
            return True
        for line in text.splitlines():
            self._printed.append(line[:200])
            log.info("rule process %d: %s", self._process.pid, line)
        return bool(text)

    def _how_it_died(self) -> str:
        """After the socket closed: exit code or signal, and the last lines it printed."""
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "the rule process closed its socket and went on running"
        while self._read_stderr() and self._pending():
            pass
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            how = f"the rule process was killed by {name}{hint}"
        else:
            how = f"the rule process ended with exit code {code}"
        return how + (f"; it last printed: {' | '.join(self._printed)}" if self._printed else "")

    def _pending(self) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self._stderr, selectors.EVENT_READ)
            return bool(selector.select(0))

    def kill(self) -> None:
        """End the process and whatever it started, now."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            log.error("rule process %d was killed 10 s ago and the kernel has not ended it", self._process.pid)

    def dispose(self) -> None:
        """Kill, and give the descriptors back. Only by the thread that uses the process."""
        self.kill()
        self._socket.close()
        os.close(self._alive)
        assert self._process.stderr is not None
        self._process.stderr.close()


class Sandbox:
    """The rules of a reward section behind `section.workers` processes.

    The first process is started at once and imports all rules: raises RewardError where one cannot be had.
    The others start when they are needed.
    """

    def __init__(self, section: RewardSection) -> None:
        self._section = section
        self._setup = wire.Setup(
            folder=section.folder,
            rules={part: wire.RuleSpec(rule.rule or part, rule.args) for part, rule in section.rules.items()},
            memory_bytes=int((section.memory_gb or 0) * 2**30),
            confine=section.confine,
        )
        names = HARMLESS | set(section.environment)
        self._environment = {name: os.environ[name] for name in names if name in os.environ}
        # Rules are many small processes' work: threads of their own libraries would only get in each other's way.
        self._environment.setdefault("OMP_NUM_THREADS", "1")
        # The kernel ends a rule process with the thread that started it; this thread lives as long as the pool.
        self._starter = ThreadPoolExecutor(1, "rule-starter")
        self._lock = threading.Lock()
        self._closed = False
        self._living: set[_RuleProcess] = set()
        self._slots: queue.SimpleQueue[_RuleProcess | None] = queue.SimpleQueue()
        self.restarts: Counter[str] = Counter()
        """How often a process was replaced, by the part that was running."""
        try:
            first = self._start()
        except _Ended as error:
            self.close()
            raise RewardError(str(error)) from error
        for slot in (first, *[None] * (section.workers - 1)):
            self._slots.put(slot)

    def call(self, request: wire.Call) -> list[wire.Entry]:
        """One entry per completion; never raises for what the rule does. Waits while all processes are busy.

        Raises RewardError after `close`.
        """
        rule = self._section.rules[request.part]
        process = self._slot()
        try:
            process = process or self._start()
            reply = process.exchange(request, rule.timeout)
        except _Ended as error:
            self.restarts[request.part] += 1
            self._discard(process)
            process = None
            if self._closed:
                raise RewardError("the scorer was closed while it judged") from error
            reply = wire.Failed(str(error))
        finally:
            self._slots.put(process)
        count = len(request.completions)
        if isinstance(reply, wire.Scores) and len(reply.values) == count:
            return list(reply.values)
        cause = reply.cause if isinstance(reply, wire.Failed) else "the rule process answered another question"
        return [cause] * count

    def _slot(self) -> _RuleProcess | None:
        """A process that nobody uses, or the right to start one."""
        longest = max(rule.timeout for rule in self._section.rules.values()) + self._section.start_timeout
        try:
            return self._slots.get(timeout=longest)
        except queue.Empty:
            raise DeadlinePassed(
                f"waited {longest:.0f} s for one of {self._section.workers} rule processes; each should have been "
                "given back within its rule's timeout. Raise reward.workers, or judge fewer groups at a time"
            ) from None

    def _start(self) -> _RuleProcess:
        """A process that has imported all rules. Raises _Ended."""
        seconds = self._section.start_timeout
        with self._lock:
            if self._closed:
                raise _Ended("the scorer was closed")
            try:
                process = self._starter.submit(_RuleProcess, self._setup.folder, self._environment).result()
            except OSError as error:
                raise _Ended(f"cannot start a rule process in {self._setup.folder!r}: {error}") from error
            self._living.add(process)
        try:
            reply = process.exchange(self._setup, seconds)
        except _Ended as error:
            self._discard(process)
            raise _Ended(f"starting a rule process and importing {self._modules()}: {error}") from error
        if isinstance(reply, wire.Failed):
            self._discard(process)
            raise _Ended(reply.cause)
        if isinstance(reply, wire.Ready) and reply.unconfined:
            log.warning("rule process %d is not shut in: %s", process.pid, reply.unconfined)
        return process

    def _modules(self) -> str:
        return ", ".join(sorted({spec.rule for spec in self._setup.rules.values()}))

    def _discard(self, process: _RuleProcess | None) -> None:
        if process is not None:
            with self._lock:
                self._living.discard(process)
            process.dispose()

    def close(self) -> None:
        """Kill all processes; calls in progress raise. May be repeated."""
        with self._lock:
            self._closed = True
            living = list(self._living)
        for process in living:
            process.kill()
        with contextlib.suppress(queue.Empty):
            while True:
                self._discard(self._slots.get_nowait())
        self._starter.shutdown()
