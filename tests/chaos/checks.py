"""What else a run leaves, held against what was followed: metrics, checkpoints, trained batches, workers, the summary.

Pure functions of what was read; each returns the violations it found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chaos.shadow import Shadow
from chaos.versions_seen import At, led_to, way_to
from chaos.violations import Violation

TRAINED = "learner/tokens"
"""A metric that the line of every train step has, and that of an evaluation has not."""


def metrics(rows: Sequence[Mapping[str, Any]]) -> list[Violation]:
    """Steps follow each other within a lineage, and lineages come in their order."""
    found: list[Violation] = []
    newest = At(0, 0)
    for row in rows:
        at = At(row["lineage"], row["step"])
        begins = TRAINED not in row
        if begins and at.lineage <= newest.lineage:
            continue  # the first line of the run, or an evaluation that ended later
        if not begins and at != At(newest.lineage, newest.step + 1):
            found.append(Violation("backwards", f"metrics.jsonl goes from step {newest} to {at}"))
        newest = at
    return found


def memo(manifest: Mapping[str, Any], shadow: Shadow) -> list[Violation]:
    """A checkpoint's view of the ledger: it balances, and it contains what the steps on its way have used."""
    at, kept = At.of(manifest["version"]), manifest["ledger"]
    outstanding, dropped = kept["outstanding"], sum(kept["dropped"].values())
    found = []
    if len(set(outstanding)) != len(outstanding) or any(not 0 <= index < kept["issued"] for index in outstanding):
        found.append(Violation("balance", f"the checkpoint of {at} names a prompt twice, or one that was not issued"))
    if kept["issued"] != kept["committed"] + dropped + len(outstanding):
        found.append(Violation("balance", f"the checkpoint of {at} does not add up: {kept['issued']} issued, {kept}"))
    way = way_to(at, shadow.forks)
    used = {index for step, indices in shadow.steps.items() if led_to(step, way, shadow.forks) for index in indices}
    if kept["committed"] != len(used):
        what = f"the checkpoint of {at} contains {kept['committed']} groups, its steps have used {len(used)}"
        found.append(Violation("balance", what))
    if twice := sorted(used & set(outstanding)):
        found.append(Violation("twice", f"the checkpoint of {at} contains prompts {twice[:5]} and expects them again"))
    return found


def trained(batches: Mapping[At, frozenset[int]], shadow: Shadow) -> list[Violation]:
    """What the learner says that it trained on, against what the ledger says that its steps have used. A step that was
    archived and never published counts for nobody."""
    return [
        Violation("twice", f"step {at} was trained on {sorted(indices)}, the ledger says {sorted(shadow.steps[at])}")
        for at, indices in batches.items()
        if at in shadow.steps and shadow.steps[at] != indices
    ]


class WorkerVersions:
    """What the workers say that they generate with; it never goes back within a lineage."""

    def __init__(self) -> None:
        self._newest: dict[tuple[str, int], At] = {}

    def look(self, workers: Iterable[Mapping[str, Any]]) -> list[Violation]:
        """At the workers of one status."""
        found = []
        for worker in workers:
            if worker["role"] != "rollout" or not worker["version"] or not worker["pid"]:
                continue
            who, at = (worker["name"], worker["pid"]), At.of(worker["version"])
            before = self._newest.get(who, at)
            if at < before:
                found.append(Violation("backwards", f"{who[0]} (process {who[1]}) went from {before} to {at}"))
            self._newest[who] = max(at, before)
        return found


def end(summary: Mapping[str, Any] | None, shadow: Shadow, groups_per_step: int) -> list[Violation]:
    """A run that has come to its end: everything is committed or dropped, and every step has used whole batches."""
    if summary is None:
        return [Violation("ended", "the run left no summary")]
    found = []
    if summary["outcome"] != "finished":
        found.append(Violation("ended", f"the run is {summary['outcome']}: {summary['why']}"))
        return found
    if left := {index: next(iter(there)) for index, there in shadow.places.items() if there}:
        found.append(Violation("lost", f"prompts without an end: {dict(list(left.items())[:5])}"))
    if lost := sorted(shadow.missing()):
        found.append(Violation("lost", f"prompts {lost[:5]} were issued and have no state"))
    last = At.of(summary["version"])
    way = way_to(last, shadow.forks)
    on_way = {at: indices for at, indices in shadow.steps.items() if led_to(at, way, shadow.forks)}
    if len(on_way) != last.step:
        found.append(Violation("lost", f"of {last.step} steps of the surviving lineage the ledger knows {len(on_way)}"))
    used = [index for indices in on_way.values() for index in indices]
    if len(set(used)) != len(used):
        found.append(Violation("twice", "the surviving lineage has used some prompts more than once"))
    if len(used) != groups_per_step * last.step:
        found.append(Violation("balance", f"{last.step} steps used {len(used)} groups, not {groups_per_step} each"))
    told = summary["ledger"]
    mine = {"issued": len(shadow.committed) + len(shadow.dropped), "committed": len(shadow.committed)}
    theirs = {"issued": told["issued"], "committed": told["by_state"]["committed"]}
    if mine != theirs or not told["balanced"]:
        found.append(Violation("balance", f"the summary says {theirs}, the records say {mine}"))
    found += [
        Violation("goal", f"{goal['of']} {goal['metric']} {goal['wanted']}, found {goal['value']}")
        for goal in summary["goals"]
        if not goal["reached"]
    ]
    return found
