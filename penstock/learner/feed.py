"""The learner's inlet: takes whole groups from the store until a step has enough with signal. On rank 0."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from penstock.learner.algorithms.bound import BoundAlgorithm
from penstock.learner.assemble import signal_in
from penstock.learner.refusals import Refusals
from penstock.services.codec import CodecError, decode
from penstock.services.contracts import DeadlinePassed
from penstock.services.replay import ReplayStore, Stored
from penstock.services.staleness import lag
from penstock.services.trajectory import Group
from penstock.services.versions import Version

_LONGEST_PAUSE = 0.1
"""Seconds between questions for groups where none is put; other things end a wait, too."""


@dataclass
class Fed:
    """What one step is made of, and what was looked at on the way."""

    version: Version
    groups: list[Group] = field(default_factory=list)
    """Held for the step."""
    indices: list[int] = field(default_factory=list)
    """The ledger's keys of `groups`."""
    passed_over: list[Group] = field(default_factory=list)
    """Groups without signal: not trained on, but part of what the policy achieves."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Groups dropped while this step was filled, by reason."""
    damage: list[str] = field(default_factory=list)
    """What was wrong with the damaged ones."""
    ended: str = ""
    """Why there will be no such step; then `groups` is empty. Empty when the step can be made."""

    def put_in_order(self) -> None:
        """By prompt: what a step computes depends on which groups it has, to the bit, and not on when each came."""
        order = sorted(range(len(self.indices)), key=self.indices.__getitem__)
        self.groups = [self.groups[place] for place in order]
        self.indices = [self.indices[place] for place in order]


def why_useless(group: Group, algorithm: BoundAlgorithm) -> Literal["", "unscored", "no_signal"]:
    """Why `algorithm` does not train on a group; empty for one that it trains on."""
    if len(group.scored) < algorithm.quorum:
        return "unscored"
    return "" if algorithm.keeps_all_groups or signal_in(group) else "no_signal"


class Feed:
    """Fills steps. `waiting` is called at every turn of a wait; what it returns, if anything, ends the wait. `warn`
    is told when nothing comes because the workers drop all they have."""

    def __init__(
        self,
        store: ReplayStore,
        algorithm: BoundAlgorithm,
        groups_per_step: int,
        refill_attempts: int,
        deadline: float,
        pause: float = 0.02,
        warn: Callable[[str], object] = lambda _: None,
        max_lag: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`max_lag` gives the bound that every token of a group must keep to; None where those beyond it are masked.
        `pause`: seconds between two questions for groups at least, where the last had none: what comes in the meantime
        is taken together."""
        self._store = store
        self._max_lag = max_lag
        self._algorithm = algorithm
        self._want = groups_per_step
        self._most_refills = refill_attempts * groups_per_step
        self._deadline = deadline
        self._pause = pause
        self.excused = False
        """Nothing is to come: somebody has closed the gate by hand, and how long is up to him."""
        self.refusals = Refusals(store, groups_per_step, refill_attempts, warn)

    def next(self, version: Version, waiting: Callable[[], str], begun: Fed | None = None) -> Fed:
        """`groups_per_step` groups with signal for the step that starts from `version`, or why there are none. `begun`
        is what the step has of them already.

        Raises DeadlinePassed when they do not come within the deadline, StoreError when the store does not answer.
        """
        fed = begun or Fed(version)
        seen = set(fed.indices)
        began, since = time.monotonic(), time.time()
        while not fed.ended:
            taken = self._store.take(version, self._want)
            fed.dropped["stale"] += taken.stale
            new = [stored for stored in taken.groups if stored.index not in seen]
            seen.update(stored.index for stored in new)
            if new:
                self.refusals.came()
            refused = self._sort_out(fed, new)
            if len(fed.groups) == self._want:
                fed.put_in_order()
                return fed
            asked = time.monotonic()
            if stop := waiting():
                # What is held stays taken: who stops the run also says what becomes of what is outstanding.
                return Fed(version, dropped=fed.dropped, ended=stop)
            # A pause, or a checkpoint, is stood out in there, and is not the workers' delay.
            began = time.monotonic() if self.excused else began + time.monotonic() - asked
            over = taken.exhausted and not refused
            fed.ended = self._hopeless(fed, taken.exhausted) or (self._data_end() if over else "")
            if not fed.ended and time.monotonic() - began > self._deadline:
                raise DeadlinePassed(self._late(fed, since))
            if not new and not fed.ended:
                time.sleep(self._pause)
                self._store.await_arrival(_LONGEST_PAUSE)
        self._give_up(fed)
        return fed

    def drop_outlived(self, fed: Fed) -> bool:
        """Drop what is held and lies beyond the bound as it is now; True when there was some. `take` judges what it
        hands out, by the bound of that moment, and a step may be filled for long."""
        outlived = self._outlived_at(fed.version)
        old = {index for index, group in zip(fed.indices, fed.groups, strict=True) if outlived(group)}
        if old:
            self._store.discard(fed.version, sorted(old), "stale")
            fed.dropped["stale"] += len(old)
            fed.groups = [group for index, group in zip(fed.indices, fed.groups, strict=True) if index not in old]
            fed.indices = [index for index in fed.indices if index not in old]
        return bool(old)

    def _sort_out(self, fed: Fed, new: list[Stored]) -> bool:
        """Keep the useful groups, drop the others with their reason; True when some were dropped."""
        refused: dict[str, list[int]] = {}
        # On the first lineage `take` has found all there is to find.
        outlived = self._outlived_at(fed.version) if new and fed.version.lineage else None
        for stored in new:
            try:
                group = decode(stored.payload, Group)
            except CodecError as error:
                fed.damage.append(f"group {stored.index}: {error}")
                refused.setdefault("damaged", []).append(stored.index)
                continue
            if outlived is not None and outlived(group):
                refused.setdefault("stale", []).append(stored.index)
            elif why := why_useless(group, self._algorithm):
                refused.setdefault(why, []).append(stored.index)
                fed.passed_over += [group] if why == "no_signal" else []
            else:
                fed.groups.append(group)
                fed.indices.append(stored.index)
        for reason, indices in refused.items():
            self._store.discard(fed.version, indices, reason)
            fed.dropped[reason] += len(indices)
        return bool(refused)

    def _outlived_at(self, now: Version) -> Callable[[Group], bool]:
        """Whether a group has a token beyond the bound for the step from `now`.

        `take` judges by one version of a group, the one that was stalest where the group was played. A learner that has
        gone back to a checkpoint stands elsewhere in the tree: of two versions of the future it gave up the younger one
        is farther from it."""
        bound = self._max_lag()
        if bound is None:
            return lambda _: False
        forks, most = self._store.forks() if now.lineage else {}, bound
        # Few versions and many spans.
        outlived = cache(lambda version: lag(now, version, forks) > most)
        return lambda group: any(outlived(span.version) for span in group.spans)

    def _hopeless(self, fed: Fed, exhausted: bool) -> str:
        """Why refilling stops, once too many groups had nothing to teach, here or at the workers."""
        useless = sum(fed.dropped[reason] for reason in ("no_signal", "unscored", "damaged"))
        if useless < self._most_refills:
            return self.refusals.hopeless(at_once=exhausted)
        best = max((max(t.task_reward or 0.0 for t in g.scored) for g in fed.passed_over), default=0.0)
        solved = sum(all(t.task_reward == best for t in g.scored) for g in fed.passed_over)
        counts = ", ".join(f"{n} {reason}" for reason, n in sorted(fed.dropped.items()) if n)
        return (
            f"no_signal: the step from version {fed.version} found {len(fed.groups)} of {self._want} groups with "
            f"signal and dropped {useless} ({counts}); {solved} of the {len(fed.passed_over)} without signal had all "
            f"answers at the reward {best:g}. The prompts are all solved or all hopeless: change the data or the "
            "reward, or raise staleness.refill_attempts"
        )

    def _data_end(self) -> str:
        """The prompts are used up; with what became of the last of them when that was not here."""
        return f"data_end: {self.refusals}" if self.refusals else "data_end"

    def _give_up(self, fed: Fed) -> None:
        """Hand back what a step that will not be made has held."""
        reason = fed.ended.split(":")[0]
        if fed.indices:
            self._store.discard(fed.version, fed.indices, reason)
            fed.dropped[reason] += len(fed.indices)
        fed.groups, fed.indices = [], []

    def _late(self, fed: Fed, since: float) -> str:
        counts = self._store.counts()
        states = ", ".join(f"{n} {state}" for state, n in counts.by_state.items() if n) or "nothing issued"
        dropped = ", ".join(f"{n} {reason}" for reason, n in sorted(fed.dropped.items()) if n) or "none"
        return (
            f"the learner at version {fed.version} waited {self._deadline:.0f} s (staleness.take_deadline), since "
            f"{time.strftime('%H:%M:%S', time.localtime(since))}, for {self._want} groups from the rollout workers "
            f"and holds {len(fed.groups)}; dropped meanwhile: {dropped}; {self.refusals}; ledger: {states}; "
            f"gate: {self._store.gate() or 'open'}. See the workers' logs for what they were doing"
        )
