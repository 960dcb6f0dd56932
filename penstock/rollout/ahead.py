"""Weights that are fetched and verified while the engine goes on, so that a swap need not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any

from penstock.services.contracts import WeightReceiver
from penstock.services.versions import Version
from penstock.services.weights.manifest import Manifest

Fetched = tuple[Manifest, Mapping[str, Any]]
"""What is known of a version, and its tensors by name."""


class Ahead:
    """One version on its way, in a thread of its own from birth on."""

    def __init__(self, receiver: WeightReceiver, version: Version) -> None:
        self.version = version
        self._receiver, self._held = receiver, ExitStack()
        self._found: Future[Fetched] = Future()
        threading.Thread(target=self._fetch, name=f"fetch-{version}", daemon=True).start()

    def _fetch(self) -> None:
        try:
            manifest = self._receiver.manifest(self.version)
            tensors = self._held.enter_context(self._receiver.fetch(self.version))
            self._found.set_result((manifest, tensors))
        except BaseException as error:  # noqa: BLE001  (whoever takes it gets it)
            self._found.set_exception(error)

    @property
    def done(self) -> bool:
        """It is there, or has failed."""
        return self._found.done()

    @contextmanager
    def taken(self) -> Iterator[Fetched]:
        """The version, waited for; its tensors are valid inside, once. Raises what the fetch raised."""
        with self._held:
            yield self._found.result()

    def drop(self) -> None:
        """Let go of a version that is `done` and that nobody wants any more."""
        self._held.close()
