"""The same command given again: a run of this name that is there is gone on with, and one that has ended stays so.

Job systems repeat a command when its machine was taken away, and cannot tell a first start from a later one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from penstock.learner import checkpoints
from penstock.services.rundir import RunDir


def earlier(runs_dir: Path, name: str) -> tuple[Literal["start", "resume", "ended"], RunDir | None]:
    """What to do about a run called `name`, and the newest directory that earlier starts left under `runs_dir`.

    One without a complete checkpoint has nothing to go on from: a new one is started beside it.
    """
    newest = RunDir.newest_of(runs_dir, name)
    if newest is None:
        return "start", None
    if (newest.read_summary() or {}).get("outcome") == "finished":
        return "ended", newest
    return ("resume" if checkpoints.latest(newest.checkpoints) is not None else "start"), newest
