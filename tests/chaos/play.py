"""One run and what is done to it: strike, wait until it has recovered, check, strike again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos import moments
from chaos.strikes import Sent, Strike
from chaos.subject import Subject
from chaos.targets import WEIGHTS, Target, chosen
from chaos.violations import Violation
from chaos.watch import Watch
from penstock.services.control import Checkpoint, Stop

_SLOW, _FAST = 0.05, 0.002
"""Seconds between looks: at any time, and while a moment of milliseconds is waited for."""
_MOMENT = 8.0
"""Seconds for which a moment is waited for before the strike comes all the same."""
_ON_TOP = 0.92
"""How often the next strike does not wait until the last ones have been got over."""
_PAGES = 3
"""Strikes at the page between two starts of the driver, which gives up a page that dies more often in ten minutes."""
_AT_START = 0.3
"""How often a driver that starts the run again is disturbed in it."""


@dataclass(frozen=True)
class Wish:
    """What a chaos run shall do."""

    kills: int
    minutes: float
    targets: tuple[Target, ...]
    signals: tuple[Sent, ...]
    at_once: int = 4
    """Strikes that are not got over yet, at most, when the next one comes."""
    in_turn: bool = False
    """One target after the other."""
    gap: float = 2.0
    """Seconds of quiet between a recovery and the next strike, at most."""
    silence: float = 10.0
    """`deadlines.silence` of the run; some stops are longer, most are shorter."""
    patience: float = 240.0
    """Seconds in which the run must have recovered from a strike."""


@dataclass
class Log:
    """What was done and found, over all runs of one chaos run."""

    say: Callable[[str], None]
    strikes: list[Strike] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    resumed: int = 0
    steps: int = 0
    lineages: int = 0
    runs: int = 0
    goals: list[Mapping[str, Any]] = field(default_factory=list)
    """As the summaries of runs that came to their own end have judged them."""
    leased_again: int = 0
    delivered_again: int = 0
    began: float = field(default_factory=time.monotonic)

    def violated(self, violation: Violation) -> None:
        self.violations.append(violation)
        self.say(f"VIOLATION {violation}")


class GivenUp(Exception):
    """The run does not come back at all."""


class Play:
    """Torments one run until the wish is fulfilled or the run has reached its goal."""

    def __init__(self, subject: Subject, wish: Wish, log: Log, judged: Path, random: random.Random) -> None:
        """`judged` is the folder of the judge's marks."""
        self._subject, self._wish, self._log, self._judged, self._random = subject, wish, log, judged, random
        self._watch = Watch(subject, log.violated)
        self._pending: list[Strike] = []
        self._failed_starts = 0
        self._pages = 0

    def go(self, to_the_end: bool, groups_per_step: int) -> None:
        """`to_the_end`: the run ends at its own limit, else it is asked to end when the wish is fulfilled."""
        try:
            self._until("the run has its first checkpoint", self._has_begun)
            while not self._enough and not self._over:
                self._strike_once()
            self._until("all strikes are got over", lambda: not self._pending or self._over)
            if to_the_end:
                self._until("the run has come to its end", lambda: self._over, 1800)
            else:
                self._bring_to_its_end()
            self._watch.end(groups_per_step)
            self._judge(to_the_end)
        except GivenUp as error:
            self._log.violated(Violation("stuck", str(error)))
        finally:
            self._end_driver()
            shadow = self._watch.shadow
            self._log.runs += 1
            self._log.steps += len(shadow.steps)
            self._log.lineages += 1 + len(shadow.forks)
            self._log.leased_again += shadow.leased_again
            self._log.delivered_again += shadow.delivered_again

    def _judge(self, to_the_end: bool) -> None:
        """A run that ends at a limit of its own has goals, of which `Watch.end` has told those that were missed."""
        if not to_the_end:
            return
        goals = (self._subject.summary or {}).get("goals", [])
        self._log.goals += goals
        if not goals:
            self._log.violated(Violation("goal", "the run has come to its end, and no goal was judged"))

    # --- the wish -----------------------------------------------------------------------------------

    @property
    def _enough(self) -> bool:
        spent = time.monotonic() - self._log.began
        return len(self._log.strikes) >= self._wish.kills or spent > 60 * self._wish.minutes

    @property
    def _over(self) -> bool:
        """The driver has ended by itself, as it should."""
        return self._subject.driver.poll() in (0, 3)

    def _has_begun(self) -> bool:
        if self._subject.phase == "training" and not any(self._subject.checkpoints.glob("step-*/manifest.json")):
            self._subject.ask(Checkpoint())
            return False
        return self._subject.phase == "training"

    def _bring_to_its_end(self) -> None:
        """And strike once more while it ends. A driver that dies of it is asked again when the run goes on."""
        asked, later = 0, self._random.uniform(0, 2)
        possible = [
            target for target in ("worker", "scorer", "store", "learner", "driver") if target in self._wish.targets
        ]

        def over() -> bool:
            nonlocal asked
            driver = self._subject.driver.pid
            if not self._over and asked != driver and self._subject.phase == "training":
                disturb, asked = not asked, driver if self._subject.ask(Stop("enough chaos")) else asked
                if disturb and asked and possible:
                    time.sleep(later)
                    self._strike(self._random.choice(possible), "", moments.END)
            return self._over

        self._until("the run has come to its end", over)
        for strike in self._pending:
            strike.recovered_at = time.time()

    # --- one strike ---------------------------------------------------------------------------------

    def _strike_once(self) -> None:
        self._rest(self._random.uniform(0, self._wish.gap))
        targets = self._wish.targets
        target = self._random.choices(targets, [WEIGHTS[target] for target in targets])[0]
        if self._wish.in_turn:
            target = targets[len(self._log.strikes) % len(targets)]
        moment = self._random.choice(moments.for_target(target))
        name, moment = self._await(moment)
        self._strike(target, name, moment)
        if self._random.random() > _ON_TOP:
            self._until("the strikes are got over", lambda: not self._pending or self._over)
        else:
            self._until("a strike is got over", lambda: len(self._pending) < self._wish.at_once or self._over)
        if not self._over:
            self._watch.check()

    def _await(self, moment: str) -> tuple[str, str]:
        """The name of the actor that the moment happens to, and the moment; `any` for one that does not come."""
        if moment not in moments.MOMENTS:
            return "", moment
        scene = moments.Scene(self._subject, self._watch.shadow, self._judged, self._random)
        seen = moments.MOMENTS[moment].watch(scene)
        ends = time.monotonic() + _MOMENT
        looked = 0.0
        while seen is not None and time.monotonic() < ends and not self._over:
            if (name := seen()) is not None:
                return name, moment
            if time.monotonic() - looked > _SLOW:
                self._look()
                looked = time.monotonic()
            self._watch.follow_store()
            time.sleep(_FAST)
        return "", moments.ANY

    def _strike(self, target: Target, name: str, moment: str) -> None:
        victim = chosen(self._subject, target, name, self._random)
        if victim is None or self._over or any(strike.victim == victim for strike in self._pending):
            return
        if target == "page":
            if self._pages >= _PAGES:
                return
            self._pages += 1
        if self._subject.phase != "training" and moment != moments.END:
            moment = moments.START
        signals = self._wish.signals
        sent: Sent = self._random.choices(signals, [2 if each == "kill" else 1 for each in signals])[0]
        self._send(Strike(victim, sent, moment, self._held() if sent == "stop" else 0.0))

    def _send(self, strike: Strike) -> None:
        if strike.send():
            self._log.strikes.append(strike)
            self._pending.append(strike)
            victim, held = strike.victim, f" for {strike.held:.1f} s" if strike.held else ""
            number = len(self._log.strikes)
            self._log.say(f"{number}: {strike.sent} {victim.name} ({victim.pid}) at moment {strike.moment}{held}")

    def _held(self) -> float:
        """Most stops are over before anybody has missed who was stopped."""
        silence = self._wish.silence
        return self._random.uniform(1.2, 1.8) * silence if self._random.random() < 0.3 else self._random.uniform(0.1, 3)

    # --- meanwhile ----------------------------------------------------------------------------------

    def _rest(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self._look()
            time.sleep(_SLOW)

    def _until(self, what: str, true: Callable[[], bool], deadline: float | None = None) -> None:
        """Raises GivenUp when it does not come to pass."""
        deadline = deadline or self._wish.patience
        ends = time.monotonic() + deadline
        while not true():
            if time.monotonic() > ends:
                waiting = ", ".join(f"{s.sent} {s.victim.name} at {s.moment}" for s in self._pending)
                status = {key: self._subject.status.get(key) for key in ("phase", "version", "message", "workers")}
                raise GivenUp(f"waited {deadline:.0f} s until {what}; not got over: {waiting or 'nothing'}; {status}")
            self._look()
            time.sleep(_SLOW)

    def _look(self) -> None:
        """At everything, once."""
        for strike in self._pending:
            strike.let_go()
        self._watch.follow()
        self._look_at_driver()
        steps = len(self._watch.shadow.steps)
        for strike in self._pending:
            strike.look(self._subject, steps)
            if strike.recovered_at:
                self._log.say(f"   {strike.victim.name} got over after {strike.seconds:.1f} s")
        self._pending = [strike for strike in self._pending if not strike.recovered_at]

    def _look_at_driver(self) -> None:
        """Go on with a run whose driver is gone, as a person would; one that went without reason is a violation."""
        code = self._subject.driver.poll()
        if self._subject.phase == "training":
            self._failed_starts = 0
        if code is None or code in (0, 3):
            return
        # A start has nobody to mend it: who loses a part of it tries again. A run that goes on mends everything else.
        excused = any(s.victim.pid == self._subject.driver.pid or s.moment == moments.START for s in self._pending)
        if not excused:
            why = (self._subject.summary or {}).get("why", "it has left no summary")
            self._watch.say(Violation("ended", f"the driver ended with code {code}: {why}"))
        self._failed_starts += 1
        if self._failed_starts > 6:
            raise GivenUp(f"the run could not be gone on with {self._failed_starts} times in a row")
        self._log.say(f"   the driver has ended ({code}); resume")
        self._log.resumed += 1
        self._pages = 0
        self._subject.go_on()
        if self._random.random() < _AT_START and not self._enough:
            self._disturb_start()

    def _disturb_start(self) -> None:
        """Strike while the run is put together again."""
        time.sleep(self._random.uniform(0.5, 12))
        possible: tuple[Target, ...] = ("driver", "learner", "store", "worker", "scorer")
        target = self._random.choice([target for target in possible if target in self._wish.targets] or ["worker"])
        victim = chosen(self._subject, target, "", self._random)
        if victim is not None and self._subject.phase in ("", "starting"):
            self._send(Strike(victim, "kill", moments.START))

    def _end_driver(self) -> None:
        """Whatever was stopped goes on, and nothing is left running."""
        for strike in self._pending:
            strike.let_go(anyway=True)
        if self._subject.driver.poll() is None:
            self._subject.driver.kill()
            self._subject.driver.wait(30)
