"""Is the newest run in good health? For HEALTHCHECK and probes.

    python health.py RUNS_DIR

Exit code 1 when its driver has died without a word, or lives and has been silent for too long; 0 when it goes on, has
ended one way or another, or when there is no run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from penstock.deploy.status import STALE_SECONDS, status
from penstock.deploy.view import ENDED
from penstock.services.rundir import RunDirError

PATIENCE = 4 * STALE_SECONDS
"""Seconds. A driver that draws its plots at the end writes no status meanwhile."""


def healthy(runs_dir: Path) -> tuple[bool, str]:
    """Whether nothing is amiss, and one line for people."""
    try:
        facts = status(None, runs_dir)
    except RunDirError as error:
        return True, str(error)
    over = facts.view is not None and facts.view.phase in ENDED
    well = over or facts.summary is not None or (facts.alive and facts.age < PATIENCE)
    return well, f"{facts.run_dir.name}: {facts.verdict}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    well, said = healthy(Path(sys.argv[1]))
    print(said)
    sys.exit(0 if well else 1)
