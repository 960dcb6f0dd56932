"""Publication of weights beside the training: at most one in flight, its failure surfaces in the loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import torch

from penstock.services.contracts import DeadlinePassed, WeightSender
from penstock.services.replay import ReplayStore
from penstock.services.versions import Version
from penstock.services.weights.manifest import ProbeRecord

_READER = "audit"
"""Under which the publisher pins versions in the store."""


class Publisher:
    """Makes versions readable and then opens the gate for them, one after the other.

    The newest `keeps` versions stay pinned for audits; a pin is renewed with every publication and ends by itself after
    twice the `deadline` in which the next one must come.
    """

    def __init__(self, store: ReplayStore, sender: WeightSender, keeps: int = 0, deadline: float = 0.0) -> None:
        self._store = store
        self._sender = sender
        self._keeps, self._pin_seconds = keeps, 2 * deadline
        self._pins: tuple[Version, ...] = ()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._version: Version | None = None
        self._previous: tuple[Version, ...] = ()
        self._began = 0.0
        self.seconds = 0.0
        """How long the last publication took."""

    def start(
        self, version: Version, weights: Mapping[str, torch.Tensor], probe: ProbeRecord | None, advance: bool
    ) -> None:
        """Publish `version` with its probe in the background; `advance` then marks the step that made it as applied.

        The one before must have been waited for: `wait`.
        """
        self._version, self._began = version, time.monotonic()
        self._thread = threading.Thread(
            target=self._publish, args=(version, weights, probe, advance), name=f"publish-{version}", daemon=True
        )
        self._thread.start()

    def wait(self, meanwhile: Callable[[], object], deadline: float) -> None:
        """Until nothing is in flight, calling `meanwhile` now and then. Raises what the publication raised."""
        while self._thread is not None:
            self._thread.join(timeout=0.5)
            if not self._thread.is_alive():
                self._thread = None
            elif time.monotonic() - self._began > deadline:
                raise DeadlinePassed(
                    f"publishing version {self._version} has taken {time.monotonic() - self._began:.0f} s, the limit "
                    f"is {deadline:.0f} s (staleness.take_deadline); the weight transport "
                    f"({type(self._sender).__name__}) or the store is stuck"
                )
            else:
                meanwhile()
        self.check()

    def check(self) -> None:
        """Raises what a publication raised, once."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _pin(self, version: Version) -> None:
        """Before anything is retired: what is kept is pinned, what is too old is let go."""
        pins = (*self._pins, version)[-self._keeps :] if self._keeps else ()
        for kept in pins:
            self._store.pin(kept, _READER, self._pin_seconds)
        for old in set(self._pins) - set(pins):
            self._store.unpin(old, _READER)
        self._pins = pins

    def _publish(
        self, version: Version, weights: Mapping[str, torch.Tensor], probe: ProbeRecord | None, advance: bool
    ) -> None:
        try:
            self._sender.publish(version, weights.items(), probe)
            if advance:
                self._store.advance(version)
            self._pin(version)
            # The one before stays for a worker that is just about to ask for it.
            self._sender.retire(self._store.pinned() | {version, *self._previous})
            self._previous = (version,)
        except BaseException as error:  # noqa: BLE001  (handed over whole: the loop raises it)
            self._failure = error
        self.seconds = time.monotonic() - self._began
