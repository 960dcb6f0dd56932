"""A store that does not answer for a while, because it is being restarted, is asked again and not given up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from penstock.services.contracts import DeadlinePassed, StoreError

T = TypeVar("T")


def patiently(
    what: str,
    call: Callable[[], T],
    seconds: float,
    first: float = 0.2,
    meanwhile: Callable[[], object] = lambda: None,
) -> T:
    """The result of `call`, which may be repeated; `meanwhile` is called before it is. Raises DeadlinePassed after
    `seconds` of StoreErrors."""
    began = time.monotonic()
    pause = first
    while True:
        try:
            return call()
        except StoreError as error:
            waited = time.monotonic() - began
            if waited + pause > seconds:
                raise DeadlinePassed(
                    f"{what}: the store has not answered for {waited:.0f} s, the limit is {seconds:.0f} s; "
                    f"its last error: {error}"
                ) from error
        time.sleep(pause)
        meanwhile()
        pause = min(2 * pause, 2.0)
