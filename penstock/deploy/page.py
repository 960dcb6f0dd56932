"""The page of one run, put together: what it reads, what it may ask, and the process that serves it beside a run."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from penstock.deploy.catalogue import catalogue
from penstock.deploy.status import Place, as_json, status_of
from penstock.services.control import RunControl
from penstock.services.dashboard.config import DashboardSection, token_for
from penstock.services.dashboard.listener import Listener, listen
from penstock.services.mailbox import MailboxControl, whoami
from penstock.services.rundir import RunDir

_NICE = 5
"""How much more polite than the run its page is: it must not slow the run down."""
_END = 5.0
"""Seconds in which the page's process must have ended."""
RESTARTS, WITHIN = 3, 600.0
"""So often in so many seconds a page that ends is started again; a fault that stays must not be paid for for ever."""


def serve_page(
    directory: RunDir,
    listener: Listener,
    token: str | None,
    control: RunControl | None = None,
    place: Place | None = None,
) -> None:
    """Serve the page of a run, running or ended, until a signal comes. `control` and `place` are those of a run that
    goes on elsewhere, of which `directory` is a copy."""
    from penstock.services.dashboard.access import Access
    from penstock.services.dashboard.api import Subject
    from penstock.services.dashboard.app import create_app
    from penstock.services.dashboard.compare import compare_router
    from penstock.services.dashboard.inspector import inspector_router
    from penstock.services.dashboard.server import serve

    subject = Subject(
        directory=directory,
        facts=lambda: as_json(status_of(directory, place)),
        control=control or MailboxControl(directory),
        catalogue=catalogue(),
        user=whoami(),
    )
    routers = (inspector_router(directory), compare_router(directory))
    serve(create_app(subject, Access(listener.host, listener.port, token), routers), listener)


class Page:
    """The page of a run in a process of its own beside it. `look` never waits."""

    def __init__(self, section: DashboardSection, directory: RunDir, listener: Listener) -> None:
        """The socket stays open here too: while there is no process for a moment, who asks waits and is not refused."""
        self._section, self._directory, self._listener = section, directory, listener
        self.address = listener.address
        """Empty when nothing is served any more."""
        self._again: deque[float] = deque(maxlen=RESTARTS)
        """When it was started again, seconds of the monotonic clock."""
        self._process = _start(section, directory, listener)

    def look(self) -> str:
        """Serve the page again when its process has ended. What there is to say of that, often nothing."""
        code = self._process.poll() if self.address else None
        if code is None:
            return ""
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        what = f"the page's process {how}; its log is {self._directory.log('dashboard')}."
        if len(self._again) == RESTARTS and time.monotonic() - self._again[0] < WITHIN:
            return self._give_up(f"{what} It was started again {RESTARTS} times in {WITHIN / 60:g} minutes")
        self._again.append(time.monotonic())
        try:
            self._process = _start(self._section, self._directory, self._listener)
        except OSError as error:  # a machine that is out of processes, say: no reason for a run to end
            return self._give_up(f"{what} It cannot be started again, {error},")
        return f"{what} It is served again"

    def _give_up(self, why: str) -> str:
        self.address = ""
        self._listener.socket.close()
        return f"{why} and is given up. To serve it apart from the run: penstock dashboard {self._directory.path}"

    def close(self) -> None:
        """End it; returns when it has ended."""
        self._listener.socket.close()
        self._process.terminate()
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def beside(section: DashboardSection, directory: RunDir) -> Iterator[Page | None]:
    """Inside, the page of the run is served by a process of its own; None when the section does not ask for it.

    Raises PageError when it cannot be served as asked. What happens to the page later does not harm the run.
    """
    if not section.enabled:
        yield None
        return
    token_for(section.host, section.token_env)
    listener = listen(section.host, section.port)
    try:
        page = Page(section, directory, listener)
    except BaseException:
        listener.socket.close()
        raise
    try:
        yield page
    finally:
        page.close()


def _start(section: DashboardSection, directory: RunDir, listener: Listener) -> subprocess.Popen[bytes]:
    """The process, which has the socket and so the port. Signals from the terminal go to the run alone."""
    number = listener.socket.fileno()
    home = Path(__file__).parents[2]
    paths = os.pathsep.join([str(home), *filter(None, [os.environ.get("PYTHONPATH")])])
    arguments = [str(directory.path), str(number), section.host, section.token_env, str(os.getpid())]
    with directory.log("dashboard").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "penstock.deploy.page", *arguments],
            pass_fds=(number,),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": paths},
        )


def main(arguments: list[str]) -> None:
    """The process of `beside`: RUN_DIR, the socket's number, the host, the token's variable, the parent's id."""
    run_dir, number, host, token_env, parent = arguments
    # Ends with the run also when that is killed; the second line is for one that was killed before the first.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(parent):
        return
    os.nice(_NICE)
    listener = Listener(socket.socket(fileno=int(number)), host)
    serve_page(RunDir.open(run_dir), listener, token_for(host, token_env))


if __name__ == "__main__":
    main(sys.argv[1:])
