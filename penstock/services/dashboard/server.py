"""Serves the page: uvicorn on a socket that listens already."""

from __future__ import annotations

import uvicorn
from starlette.types import ASGIApp

from penstock.services.dashboard.listener import Listener


def serve(app: ASGIApp, listener: Listener) -> None:
    """Until SIGINT or SIGTERM. What is being answered then has a second to end."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whoever asks would say himself from where
        ws="none",
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[listener.socket])
