"""The page's application: its files, its API, its sign-in, behind the rules of `access`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.responses import Response as AnyResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from penstock.services.dashboard.access import WRONG_TOKEN_PAUSE, Access, Guarded
from penstock.services.dashboard.api import Subject, command_router, run_router
from penstock.services.dashboard.libraries import LIBRARIES
from penstock.services.dashboard.watch import Watch

STATIC = Path(__file__).with_name("static")
_QUOTED = 80
"""Characters of what was sent and meant nothing."""


def create_app(subject: Subject, access: Access, routers: Sequence[APIRouter] = ()) -> ASGIApp:
    """The application of one run; `routers` are more parts of the API. Raises PageError when a library's file is not
    installed."""
    watch = Watch(subject.directory)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with watch:
            yield

    app = FastAPI(
        title="Penstock",
        summary="One run of Penstock: watch it and steer it.",
        openapi_url="/api/openapi.json",
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        responses={422: {"model": Problem, "description": "what was asked means nothing"}},
        exception_handlers={RequestValidationError: _misunderstood},
    )
    for router in (run_router(subject, watch), command_router(subject), *routers):
        app.include_router(router, prefix="/api")
    app.include_router(_sign_in_router(access))
    app.include_router(_files_router())
    app.mount("/static", _Files(directory=STATIC), name="static")
    return Guarded(app, access)


class Problem(BaseModel):
    """Every answer that is an error."""

    detail: str
    """What is wrong, where, and what was found."""


async def _misunderstood(_: Request, error: RequestValidationError) -> Response:
    """One sentence for people. What was sent is quoted in part, and as what any text can hold."""
    wrong = [
        f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}; found {ascii(one.get('input'))[:_QUOTED]}"
        for one in error.errors()
    ]
    return JSONResponse({"detail": "; ".join(wrong)}, 422)


class _Files(StaticFiles):
    """The page's own files, which are asked for again each time and answered by their tag."""

    def file_response(self, full_path: Any, stat_result: Any, scope: Scope, status_code: int = 200) -> AnyResponse:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["cache-control"] = "no-cache"
        return response


def _files_router() -> APIRouter:
    """The page, and the files of the libraries, which never change under their name."""
    router = APIRouter(include_in_schema=False)
    files = {library.name: library.locate() for library in LIBRARIES}
    pages = {name: _with_digests((STATIC / name).read_text()) for name in ("index.html", "sign-in.html")}

    @router.get("/")
    def index() -> HTMLResponse:
        return HTMLResponse(pages["index.html"])

    @router.get("/sign-in")
    def sign_in() -> HTMLResponse:
        return HTMLResponse(pages["sign-in.html"])

    @router.get("/library/{name}")
    def library(name: str) -> FileResponse:
        if name not in files:
            raise HTTPException(404, f"no library {name!r}; there are: {', '.join(files)}")
        return FileResponse(files[name], headers={"cache-control": "public, max-age=86400"})

    return router


def _with_digests(page: str) -> str:
    """The page with what every library's file must be, for the browser to check."""
    for library in LIBRARIES:
        page = page.replace(f'"/library/{library.name}"', f'"/library/{library.name}" integrity="{library.digest}"')
    return page


def _sign_in_router(access: Access) -> APIRouter:
    router = APIRouter(tags=["access"])

    @router.get("/api/sign-in")
    def needed() -> dict[str, bool]:
        """Whether this page asks for a token at all."""
        return {"token_needed": access.needs_token}

    @router.post("/api/sign-in")
    async def sign_in(token: Annotated[str, Body(embed=True, max_length=1000)], response: Response) -> dict[str, bool]:
        """Exchange the token for a cookie that no script can read."""
        if not access.is_token(token.strip()):
            await asyncio.sleep(WRONG_TOKEN_PAUSE)
            raise HTTPException(401, "this is not the token; it is in the environment of whoever serves the page")
        response.set_cookie(access.cookie, access.seal, httponly=True, samesite="strict", path="/")
        return {"signed_in": True}

    return router
