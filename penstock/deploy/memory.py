"""What memory the processes of a run took at most, as the kernel remembers it of each."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import psutil

from penstock.deploy.leftovers import marked

_KIB = 1024


def peak_bytes(pid: int | None = None) -> int:
    """Most resident memory that a process, by default this one, has had; shared pages included. 0 for one that is
    gone."""
    try:
        lines = Path(f"/proc/{pid or 'self'}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * _KIB for line in lines if line.startswith("VmHWM:")), 0)


def resident() -> dict[str, float]:
    """Of this process, by metric name: resident memory now and at most."""
    now = float(psutil.Process().memory_info().rss)
    return {"process/rss": now, "process/peak_rss": max(now, float(peak_bytes()))}


def beside_actors(run_id: str, actors: Collection[int]) -> dict[str, int]:
    """Peaks of this run's processes on this machine that are none of the `actors`: `driver` (this one), `redis`,
    `page`; and summed up `rules` and, with all that is left, `ray`, whose processes are several."""
    found: Counter[str] = Counter({"driver": peak_bytes()})
    for process in {*psutil.Process().children(recursive=True), *marked(run_id)}:
        if process.pid not in actors and process.pid != os.getpid():
            with contextlib.suppress(psutil.Error):
                found[_kind(process)] += peak_bytes(process.pid)
    return dict(found)


def _kind(process: psutil.Process) -> str:
    line = " ".join(process.cmdline())
    kinds = {"redis-server": "redis", "penstock.deploy.page": "page", "penstock.reward.child": "rules"}
    return next((kind for sign, kind in kinds.items() if sign in line), "ray")
