"""The token inspector's part of the page's API: steps, the answers of one, the tokens of one answer.

Steps and answers are named by numbers, and every path is put together by `RunDir`: no request names a file.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Response

from penstock.services.contracts import PenstockError
from penstock.services.dashboard.answers import Answers, NotRecorded, Source, StepEntry, Steps, Tokens, page
from penstock.services.dashboard.api import encoded
from penstock.services.dashboard.archived import Archive
from penstock.services.dashboard.sampled import Samples
from penstock.services.rundir import RunDir
from penstock.services.token_texts import find_tokenizer
from penstock.services.versions import Version

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_STEPS, MOST_ANSWERS, MOST_TOKENS = 1000, 200, 4096
"""In one answer of the API."""


class Inspector:
    """What can be inspected of one run, running or ended."""

    def __init__(self, directory: RunDir) -> None:
        self._directory = directory
        self._listed: dict[Source, tuple[int, list[Version]]] = {}

    def steps(self, source: Source, near: int | None = None, offset: int | None = None, limit: int = 100) -> Steps:
        """Steps of which answers are there: from `offset` on, or around the step `near`, or else the newest."""
        versions = self._versions(source)
        if offset is None:
            place = len(versions) if near is None else _nearest(versions, near) - limit // 2
            offset = max(0, min(place, len(versions) - limit))
        steps = [StepEntry(version.step, version.lineage) for version in versions[offset : offset + limit]]
        ends = (versions[0].step, versions[-1].step) if versions else (None, None)
        return Steps(source, len(versions), offset, steps, *ends)

    def answers(self, source: Source, step: int, lineage: int | None, offset: int = 0, limit: int = 50) -> Answers:
        """Answers of a step, by default of its newest lineage. Raises NotRecorded."""
        version = self._version(source, step, lineage)
        found = self._read(source, version)
        listed = page(range(len(found)), offset, limit, lambda _, index: found.answer(index))
        return Answers(source, version.step, version.lineage, len(found), offset, listed)

    def tokens(
        self, source: Source, step: int, lineage: int | None, index: int, start: int = 0, count: int = 1024
    ) -> Tokens:
        """Tokens `start` to `start + count` of one answer of a step. Raises NotRecorded."""
        version = self._version(source, step, lineage)
        found = self._read(source, version)
        if index >= len(found):
            raise NotRecorded(f"step {step} has {len(found)} answers in {source}, 0 to {len(found) - 1}; found {index}")
        return found.recorded(index).tokens(source, version, start, count)

    def _read(self, source: Source, version: Version) -> Samples | Archive:
        if source == "samples":
            return Samples(self._directory, version)
        return Archive(self._directory, version, self._tokenizer)

    def _version(self, source: Source, step: int, lineage: int | None) -> Version:
        """The recorded version of a step. Raises NotRecorded that names the nearest."""
        versions = self._versions(source)
        of_step = [version for version in versions if version.step == step and lineage in (None, version.lineage)]
        if of_step:
            return of_step[-1]
        if not versions:
            key = "recording.samples" if source == "samples" else "archive.every"
            raise NotRecorded(f"no step has answers in {source} (yet); {key} says of which steps they are kept")
        near = versions[_nearest(versions, step)]
        which = f"step {step}" + (f" of lineage {lineage}" if lineage is not None else "")
        raise NotRecorded(
            f"{which} has no answers in {source}; there are steps {versions[0].step} to {versions[-1].step}, the "
            f"nearest is {near.step} of lineage {near.lineage}"
        )

    def _versions(self, source: Source) -> list[Version]:
        """Listed anew when the folder has changed."""
        folder = self._directory.samples if source == "samples" else self._directory.archive
        changed = folder.stat().st_mtime_ns if folder.is_dir() else 0
        known = self._listed.get(source)
        if known is None or known[0] != changed:
            found = self._directory.sampled() if source == "samples" else self._directory.archived()
            known = self._listed[source] = (changed, found)
        return known[1]

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        model: dict[str, Any] = self._directory.read_config().get("model") or {}
        own, path = model.get("tokenizer"), model.get("path")
        return find_tokenizer(own, self._directory.model, path, revision=None if own else model.get("revision"))


def _nearest(versions: list[Version], step: int) -> int:
    """Place of the version whose step is nearest."""
    return min(range(len(versions)), key=lambda place: abs(versions[place].step - step), default=0)


# --- over HTTP ------------------------------------------------------------------------------------

Step = Annotated[int, Query(ge=0, description="The train step that the answers were trained in.")]
Lineage = Annotated[int | None, Query(ge=0, description="By default the newest that has the step.")]
Offset = Annotated[int, Query(ge=0)]


def inspector_router(directory: RunDir) -> APIRouter:
    """Routes below `inspector/`; each is a function of the run directory and of numbers."""
    router, inspector = APIRouter(prefix="/inspector", tags=["inspector"]), Inspector(directory)

    @router.get("/steps", response_model=Steps)
    def steps(
        source: Source = "samples",
        near: Annotated[int | None, Query(ge=0, description="Steps around this one; by default the newest.")] = None,
        offset: Annotated[int | None, Query(ge=0)] = None,
        limit: Annotated[int, Query(ge=1, le=MOST_STEPS)] = 100,
    ) -> Response:
        """Steps of which answers can be looked at."""
        return _json(inspector.steps, source, near, offset, limit)

    @router.get("/answers", response_model=Answers)
    def answers(
        step: Step,
        source: Source = "samples",
        lineage: Lineage = None,
        offset: Offset = 0,
        limit: Annotated[int, Query(ge=1, le=MOST_ANSWERS)] = 50,
    ) -> Response:
        """The answers of one step."""
        return _json(inspector.answers, source, step, lineage, offset, limit)

    @router.get("/tokens", response_model=Tokens)
    def tokens(
        step: Step,
        index: Annotated[int, Query(ge=0, description="Place of the answer in its step.")],
        source: Source = "samples",
        lineage: Lineage = None,
        start: Offset = 0,
        count: Annotated[int, Query(ge=1, le=MOST_TOKENS)] = 1024,
    ) -> Response:
        """The tokens of one answer with their numbers."""
        return _json(inspector.tokens, source, step, lineage, index, start, count)

    return router


def _json(look: Any, *arguments: Any) -> Response:
    """What `look` finds; 404 for what is not there."""
    try:
        found = look(*arguments)
    except (PenstockError, FileNotFoundError) as error:
        raise HTTPException(404, str(error)) from error
    return encoded(found)
