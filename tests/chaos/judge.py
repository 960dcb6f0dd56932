"""The reward of a drill under torment: it takes its time, and leaves a file while it judges."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def judge(completions: Sequence[str], answer: Sequence[str], folder: str, seconds: float, **_: Any) -> list[float]:
    """1 where the answer has the right digit in it; after some seconds."""
    mark = Path(folder) / f"judging-{os.getpid()}-{time.monotonic_ns()}"
    mark.touch()
    time.sleep(seconds)
    mark.unlink()
    return [float(right in said) for said, right in zip(completions, answer, strict=True)]
