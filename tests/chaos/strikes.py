"""Signals sent, and what has become of those who got them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Literal

import psutil

from chaos.subject import Subject
from chaos.targets import Victim

Sent = Literal["kill", "stop"]
_NOT_YET = ("starting", "ready", "dead")


@dataclass
class Strike:
    """One signal, and the way back."""

    victim: Victim
    sent: Sent
    moment: str
    held: float = 0.0
    """Seconds for which it stays stopped."""
    at: float = field(default_factory=time.time)
    """Unix seconds at which it was killed, or let go on."""
    stopped: bool = False
    back_at: float = 0.0
    """When it, or another in its place, was at work again."""
    steps_then: int = 0
    recovered_at: float = 0.0
    """When the first train step had ended that was published after that."""

    @property
    def seconds(self) -> float:
        """From the kill, or the end of the stop, to the next train step with everybody there."""
        return self.recovered_at - self.at

    def send(self) -> bool:
        """False where the victim was gone already."""
        try:
            os.kill(self.victim.pid, signal.SIGKILL if self.sent == "kill" else signal.SIGSTOP)
        except ProcessLookupError:
            return False
        self.at, self.stopped = time.time() + self.held, self.sent == "stop"
        return True

    def let_go(self, anyway: bool = False) -> None:
        """End a stop whose time is over, or whose victim somebody has ended meanwhile."""
        if self.stopped and not _same(self.victim.pid):
            self.stopped, self.at = False, time.time()
        elif self.stopped and (anyway or time.time() >= self.at):
            self.stopped = False
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.victim.pid, signal.SIGCONT)

    def look(self, subject: Subject, steps: int) -> None:
        """`steps` are those published so far."""
        if self.stopped or self.recovered_at:
            return
        if not self.back_at:
            if subject.phase == "training" and _back(subject, self):
                self.back_at, self.steps_then = time.time(), steps
        elif steps > self.steps_then:
            self.recovered_at = time.time()


def _back(subject: Subject, strike: Strike) -> bool:
    """Whether the victim, or who came in its place, is at work."""
    victim = strike.victim
    unharmed = strike.sent == "stop" and _same(victim.pid)
    if victim.target == "driver":
        return subject.status.get("at", 0.0) > strike.at and (unharmed or subject.driver.pid != victim.pid)
    if victim.target == "store":
        facts = subject.store()
        return facts is not None and (unharmed or facts["pid"] != victim.pid) and subject.serves()
    if victim.target == "page":
        return subject.page() != (None if unharmed else victim.pid) and _serves(subject)
    if unharmed:
        return True
    role = {"worker": "rollout", "scorer": "scorer", "learner": "learner"}[victim.target]
    views = [view for view in subject.workers(role) if view["name"] == victim.name]
    if not views:  # it has left, or had joined a run that goes on without it; or the status is of before
        return bool(subject.status.get("at", 0.0) > strike.at + 2.0)
    born = subject.born(victim.name)
    new = born != victim.pid and subject.lives(born) and views[0]["pid"] == born
    return new and not views[0]["state"].startswith(_NOT_YET)


def _same(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def _serves(subject: Subject) -> bool:
    """Whether the page answers."""
    address = subject.status.get("page", "")
    if not address:
        return False
    with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(address, timeout=1) as answer:
        return bool(answer.status == 200)
    return False
