"""The checks while the run goes on: reads what has come since the last look and holds it against the promises."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from chaos import checks
from chaos.aof import AofError, AofReader
from chaos.shadow import Shadow
from chaos.subject import Subject
from chaos.versions_seen import At
from chaos.violations import Violation

_GRACE = 10.0
"""Seconds in which the last processes must be gone once the driver is."""


class Watch:
    """Everything that is known of one run, and what was found wrong. `tell` is called with each violation once."""

    def __init__(self, subject: Subject, tell: Callable[[Violation], None]) -> None:
        self._subject, self._tell = subject, tell
        self.shadow = Shadow(subject.run_id)
        self._aof = AofReader(subject.path / "store")
        self._workers = checks.WorkerVersions()
        self._manifests: set[Path] = set()
        self._batches: dict[At, frozenset[int]] = {}
        self._told: set[Violation] = set()
        self._shadowed = 0

    def say(self, *violations: Violation) -> None:
        """Tell of those that are new."""
        for violation in violations:
            if violation not in self._told:
                self._told.add(violation)
                self._tell(violation)

    def follow_store(self) -> None:
        """What the server has done since; takes microseconds."""
        try:
            for transaction in self._aof.new():
                self.shadow.feed(transaction)
        except AofError as error:
            self.say(Violation("lost", str(error)))
        new = self.shadow.violations[self._shadowed :]
        self._shadowed += len(new)
        self.say(*new)

    def follow(self) -> None:
        """The store, every checkpoint, every worker; cheap, and done all the time."""
        self.follow_store()
        for manifest in self._subject.checkpoints.glob("step-*/manifest.json"):
            if manifest not in self._manifests:
                with contextlib.suppress(FileNotFoundError):  # pruned at this moment
                    kept = json.loads(manifest.read_bytes())
                    self._manifests.add(manifest)
                    self.say(*checks.memo(kept, self.shadow))
        self.say(*self._workers.look(self._subject.status.get("workers", [])))

    def check(self) -> None:
        """The books, after a strike has been got over."""
        self.follow()
        if lost := sorted(self.shadow.missing()):
            self.say(Violation("lost", f"prompts {lost[:5]} were issued and have no state"))
        self.say(*checks.metrics(self._subject.rows()))
        self._read_batches()
        self.say(*checks.trained(self._batches, self.shadow))

    def _read_batches(self) -> None:
        """What the learner archived of its steps: the prompts of the rows it was trained on."""
        from safetensors import safe_open

        for file in self._subject.path.glob("archive/step-*/batch.safetensors"):
            _, step, _, lineage = file.parent.name.split("-")
            if (at := At(int(lineage), int(step))) not in self._batches:
                with contextlib.suppress(FileNotFoundError), safe_open(file, framework="np") as batch:
                    self._batches[at] = frozenset(int(index) for index in batch.get_tensor("groups"))

    def end(self, groups_per_step: int) -> None:
        """After the run has come to its end."""
        self.check()
        self.say(*checks.end(self._subject.summary, self.shadow, groups_per_step))
        ends = time.monotonic() + _GRACE
        while (left := self._subject.marked()) and time.monotonic() < ends:
            time.sleep(0.5)
        if left:
            self.say(Violation("left_over", f"processes of the run still live: {left}"))
        folder = self._subject.weights.parent
        if folder.exists():
            self.say(Violation("left_over", f"{folder} is still there"))
