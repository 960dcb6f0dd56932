"""All runs at a glance: those in a folder, and those that go on on a Ray cluster."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import msgspec

from penstock.deploy import ray_address
from penstock.deploy.reach import joined, mirrored
from penstock.deploy.status import Place, Status, status_of
from penstock.deploy.view import ENDED
from penstock.services.control import NoAnswer
from penstock.services.rundir import RunDir, RunDirError, runs_in


class Row(msgspec.Struct, frozen=True):
    """One run."""

    name: str
    """Of its directory."""
    state: str
    """A word or two: training, finished, died while training …"""
    step: int | None
    """None where it has not written yet."""
    steps_total: int | None
    age: float
    """Seconds since it was last heard of."""
    place: str
    """Where its directory is."""


def listing(runs_dir: Path, address: str | None) -> list[Row]:
    """Runs under `runs_dir` and, where an address is given or in RAY_ADDRESS, on that Ray cluster; what was heard of
    last comes first. Raises ClusterAway."""
    rows = {_id_of(found): _row(found) for found in runs_in(runs_dir)}
    asked = ray_address.to_look_at(address)
    if asked is not None:
        with joined(asked) as desks:
            for run_id, desk in desks.items():
                if (row := _remote(desk)) is not None:
                    rows[run_id] = row
    return sorted(rows.values(), key=lambda row: row.age)


def _remote(desk: Any) -> Row | None:
    """None for a run that ends while we look."""
    with contextlib.suppress(NoAnswer), mirrored(desk) as found:
        return _row(found.directory, found.place)
    return None


def _id_of(run: RunDir) -> str:
    """Tells that a run here and one on the cluster are the same."""
    known = run.path / ".run-id"
    return known.read_text() if known.is_file() else str(run.path)


def _row(run: RunDir, place: Place | None = None) -> Row:
    where = str(place or run.path)
    try:
        facts = status_of(run, place)
    except RunDirError:
        return Row(run.path.name, "of another version of Penstock", None, None, time.time() - run.touched(), where)
    age = facts.age if facts.view is not None else time.time() - run.touched()
    step, total = (facts.view.step, facts.view.steps_total) if facts.view is not None else (None, None)
    return Row(run.path.name, _state(facts), step, total, age, where)


def _state(facts: Status) -> str:
    """The verdict without its reasons."""
    if facts.view is None:
        return "starting" if facts.alive else "never started"
    if facts.view.phase not in ENDED and not facts.alive:
        return f"died while {facts.view.phase}"
    paused = facts.view.phase not in ENDED and facts.view.controls.paused_by
    return "paused" if paused else facts.view.phase
