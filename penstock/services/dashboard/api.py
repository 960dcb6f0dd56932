"""The page's API over HTTP. Everything is read from the run directory; what is asked of the run goes through
`control.RunControl`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, HTTPException, Query, Request, Response

from penstock.services.contracts import PenstockError
from penstock.services.control import Command, NoAnswer, Refused, RunControl
from penstock.services.dashboard.live import Facts, Live, Wanted, live
from penstock.services.dashboard.watch import Watch
from penstock.services.metrics import Catalogue, describe
from penstock.services.rundir import RunDir, RunDirError

MOST_BUCKETS = 2000
ANSWER_DEADLINE = 20.0
"""Seconds in which the driver must have answered a command."""
_COMMAND = msgspec.json.Decoder(Command)


@dataclass(frozen=True)
class Subject:
    """The run that a page is about, and what belongs to layers above."""

    directory: RunDir
    facts: Facts
    control: RunControl
    catalogue: Catalogue
    user: str = ""
    """Who serves the page, for the run's events."""


def run_router(subject: Subject, watch: Watch) -> APIRouter:
    """Routes of the overview."""
    router = APIRouter(tags=["run"])
    directory = subject.directory

    @router.get("/run")
    def run() -> Response:
        """What does not change: the run's name, its folder, its run file with secrets masked."""
        try:
            config = directory.read_config()
        except OSError as error:
            raise HTTPException(404, f"{directory.config} cannot be read: {error}") from error
        return encoded(
            {
                "name": config.get("name", directory.path.name),
                "run_dir": str(directory.path),
                "config": config,
            }
        )

    @router.get("/status")
    def status() -> Response:
        """The facts of `penstock status --json`."""
        return encoded(found(subject.facts))

    @router.get("/live", response_model=Live)
    def now(
        select: Annotated[str, Query(max_length=4000, description="Names of metrics by commas; * for any part.")] = "",
        buckets: Annotated[int, Query(ge=1, le=MOST_BUCKETS, description="Most points per curve.")] = 300,
        revision: Annotated[int | None, Query(description="Of the metrics that the asker has.")] = None,
        width: Annotated[int, Query(ge=0, description="Of the buckets that it has.")] = 0,
        first: Annotated[int | None, Query(ge=0, description="Only steps from this one on.")] = None,
        last: Annotated[int | None, Query(ge=0, description="Only steps up to this one.")] = None,
        events: Annotated[int, Query(ge=0, description="Number of its newest event.")] = 0,
        lanes_from: Annotated[float, Query(ge=0, description="Unix seconds up to which it has the lanes.")] = 0,
        lanes_span: Annotated[float, Query(gt=0, le=7 * 86400, description="Seconds of lanes at first.")] = 120,
        resolution: Annotated[float, Query(ge=0.02, description="Seconds per dot of a lane.")] = 0.2,
    ) -> Response:
        """What is new since the asker asked last: status, metrics in buckets of steps, events, lanes."""
        between = None if first is None and last is None else (first or 0, 2**62 if last is None else last)
        patterns = tuple(pattern for pattern in select.split(",") if pattern)
        wanted = Wanted(patterns, buckets, revision, width, between, events, lanes_from, lanes_span, resolution)
        return encoded(found(live, watch, subject.facts, wanted))

    @router.get("/metrics")
    def metrics() -> Response:
        """Every metric that was recorded: newest value, meaning, unit, estimator, and the direction one wants."""
        known = watch.history.latest()
        entries = {}
        for name in watch.history.names:
            told = describe(name, subject.catalogue)
            entries[name] = {"value": known.get(name)} | (asdict(told) if told else {})
        return encoded(entries)

    @router.get("/samples/{step}")
    def samples(step: int, lineage: Annotated[int | None, Query(ge=0)] = None) -> Response:
        """Some answers of a step as text. 404 names the nearest step that has some."""
        try:
            return encoded(directory.read_samples(step, lineage))
        except RunDirError as error:
            raise HTTPException(404, str(error)) from error

    return router


def command_router(subject: Subject) -> APIRouter:
    """The one route that changes anything."""
    router = APIRouter(tags=["steering"])

    @router.post(
        "/commands",
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/json": {"schema": _command_schema()}}}
        },
        responses={409: {"description": "refused; nothing was changed"}, 503: {"description": "nobody answered"}},
    )
    async def command(request: Request) -> Response:
        """Ask something of the run: `{"type": "scale", "role": "rollout", "count": 3}`. Answers what changes now."""
        from starlette.concurrency import run_in_threadpool

        try:
            asked = _COMMAND.decode(await request.body())
        except ValueError as error:  # msgspec's own, and that of bytes that are no text
            raise HTTPException(422, f"no command: {error}") from error
        client = request.client.host if request.client else "unknown"
        by = f"page from {client}" + (f", served by {subject.user}" if subject.user else "")
        try:
            text = await run_in_threadpool(subject.control.send, asked, by, ANSWER_DEADLINE)
        except Refused as error:
            raise HTTPException(409, str(error)) from error
        except (NoAnswer, OSError) as error:
            raise HTTPException(503, str(error)) from error
        return encoded({"text": text})

    return router


@functools.cache
def _command_schema() -> dict[str, Any]:
    """All commands, with their definitions inside of it: where OpenAPI wants them, references would lead nowhere."""
    schemas, components = msgspec.json.schema_components([Command], ref_template="{name}")
    alternatives = schemas[0].get("anyOf", [])
    return {"oneOf": [components[reference["$ref"]] for reference in alternatives]}


def encoded(values: Any) -> Response:
    """As JSON. What was checked when it was made is not checked again, which takes longer than all the rest."""
    return Response(msgspec.json.encode(values, enc_hook=str), media_type="application/json")


def found(look: Callable[..., Any], *arguments: Any) -> Any:
    """What `look` finds; 503 with the reason when the run directory cannot be read now."""
    try:
        return look(*arguments)
    except (PenstockError, OSError) as error:
        raise HTTPException(503, str(error)) from error
