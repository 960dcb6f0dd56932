"""Tells an address elsewhere that a guard has fired; beside the run, which never waits for it and never ends by it."""

from __future__ import annotations

import http.client
import json
import math
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

_DEADLINE = 10.0
"""Seconds for one attempt."""
_ATTEMPTS = 3
_MOST = 100
"""Messages that wait at a time; more are not sent."""
_LAST_CHANCE = 5.0
"""Seconds for what still waits when the run ends."""


def address_of(webhook: str) -> str | None:
    """The address behind a run file's word: the word itself, or the environment variable that `$NAME` names. None where
    that is not set."""
    return os.environ.get(webhook[1:]) if webhook.startswith("$") else webhook


class Webhooks:
    """One thread that sends; what fails is kept for whoever asks."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[str, bytes] | None] = queue.Queue(_MOST)
        self._failures: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def send(self, webhook: str, message: Mapping[str, Any]) -> None:
        """Send `message` as JSON, later and up to three times."""
        address = address_of(webhook)
        if not address or urlsplit(address).scheme not in ("http", "https"):
            self._failures.put(f"no message was sent to {_shown(webhook)}: it holds no address of http or https")
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait((address, json.dumps(_plain(message), allow_nan=False).encode()))
        except queue.Full:
            self._failures.put(f"a message to {_shown(address)} was not sent: {_MOST} are waiting already")

    def failures(self) -> list[str]:
        """What went wrong since this was last asked; addresses without what may be secret in them."""
        found = []
        while not self._failures.empty():
            found.append(self._failures.get())
        return found

    def close(self) -> None:
        """Returns when all is sent, or after some seconds."""
        if self._thread is not None:
            try:
                self._waiting.put(None, timeout=1.0)
            except queue.Full:
                return
            self._thread.join(_LAST_CHANCE)

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            self._deliver(*item)

    def _deliver(self, address: str, body: bytes) -> None:
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method="POST")
        why = ""
        for attempt in range(_ATTEMPTS):
            try:
                with urllib.request.urlopen(request, timeout=_DEADLINE):
                    return
            except (OSError, ValueError, http.client.HTTPException) as error:
                # Its own text may repeat the address, and with it a secret.
                why = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
                time.sleep(0.5 * 2**attempt)
        self._failures.put(f"{_shown(address)} could not be told, in {_ATTEMPTS} attempts: {why}")


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinity; `float()` reads the text."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in message.items()}


def _shown(address: str) -> str:
    """Scheme and host: paths of webhooks are often their password."""
    if address.startswith("$"):
        return address
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.hostname}/…"
