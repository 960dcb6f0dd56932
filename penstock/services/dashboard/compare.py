"""The part of the page's API that compares this run with another one in its folder."""

from __future__ import annotations

import difflib
import threading
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Response

from penstock.services.contracts import PenstockError
from penstock.services.dashboard import comparison
from penstock.services.dashboard.answers import NotRecorded
from penstock.services.dashboard.api import encoded
from penstock.services.dashboard.comparison import Comparison, Curves, Over, Side, state_of
from penstock.services.dashboard.history import History
from penstock.services.rundir import RunDir

MOST_RUNS, MOST_POINTS = 200, 2000
_HISTORIES = 4
"""Runs whose metrics stay in memory."""


@dataclass(frozen=True)
class Other:
    """A run that this one can be compared with."""

    name: str
    state: str
    """How it ended, or what it was doing when it was last heard of."""
    step: int


class Neighbours:
    """A run and the others in its folder. Safe to use from several threads."""

    def __init__(self, directory: RunDir) -> None:
        self._directory = directory
        self._sides: dict[str, Side] = {}
        self._lock = threading.Lock()

    def others(self) -> list[Other]:
        """The newest first."""
        found = self._directory.beside()[:MOST_RUNS]
        return [_other(run) for run in found]

    def compare(self, name: str) -> Comparison:
        """With the run `name`. Raises NotRecorded where there is none."""
        with self._lock:
            return comparison.compare(self._side(self._directory), self._side(self._other(name)))

    def curves(self, name: str, metric: str, over: Over, points: int) -> Curves:
        """Raises NotRecorded where there is no such run or metric."""
        with self._lock:
            return comparison.curves((self._side(self._directory), self._side(self._other(name))), metric, over, points)

    def _other(self, name: str) -> RunDir:
        """By the name of its folder, which must be one of those that are there: a request names no path."""
        runs = {run.path.name: run for run in self._directory.beside()}
        if name in runs:
            return runs[name]
        near = difflib.get_close_matches(name, runs, n=1, cutoff=0.4) or list(runs)[:1]
        hint = f"nearest: {near[0]}" if near else "it is the only run there"
        raise NotRecorded(f"no run {name!r} beside {self._directory.path.name}; {hint}")

    def _side(self, directory: RunDir) -> Side:
        name = directory.path.name
        side = self._sides.pop(name, None) or Side(directory, History(directory.metrics))
        self._sides[name] = side  # the one used last comes last
        while len(self._sides) > _HISTORIES:
            del self._sides[next(iter(self._sides))]
        side.follow()
        return side


def _other(run: RunDir) -> Other:
    """One that is damaged is offered all the same: which of its files is, a comparison with it says."""
    try:
        return Other(run.path.name, state_of(run), (run.read_status() or {}).get("step", 0))
    except (PenstockError, OSError):
        return Other(run.path.name, "damaged", 0)


Name = Annotated[str, Query(max_length=300, description="Name of the other run's directory.")]


def compare_router(directory: RunDir) -> APIRouter:
    """Routes below `compare/`; other runs are looked for beside this one only."""
    router, neighbours = APIRouter(prefix="/compare", tags=["compare"]), Neighbours(directory)

    @router.get("/runs", response_model=list[Other])
    def runs() -> Response:
        """Runs that this one can be compared with, the newest first."""
        return _found(neighbours.others)

    @router.get("/with", response_model=Comparison)
    def with_run(run: Name) -> Response:
        """What differs in the run files, and what came of both."""
        return _found(neighbours.compare, run)

    @router.get("/curves", response_model=Curves)
    def curves_of(
        run: Name,
        metric: Annotated[str, Query(max_length=300)],
        over: Over = "steps",
        points: Annotated[int, Query(ge=2, le=MOST_POINTS)] = 600,
    ) -> Response:
        """One metric of both runs."""
        return _found(neighbours.curves, run, metric, over, points)

    return router


def _found(look: Any, *arguments: Any) -> Response:
    """What `look` finds; 404 for what is not there, 503 for what cannot be read."""
    try:
        return encoded(look(*arguments))
    except NotRecorded as error:
        raise HTTPException(404, str(error)) from error
    except (PenstockError, ValueError, OSError) as error:
        raise HTTPException(503, str(error)) from error
