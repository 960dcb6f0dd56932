"""What a crash has left at the end of a server's append-only file.

A transition is several commands between MULTI and EXEC. Where the file ends within one, Redis's own repair at the start
(`aof-load-truncated yes`) takes away the last command only: the transition stays open, what is written next becomes a
part of it, and the start after that carries out half a transition. So the private server starts without that repair,
and a file that is torn is cut off before the transition, which nobody was told of.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from penstock.services.contracts import StoreError

TORN = "Unexpected end of file reading the append only file"
"""What the server says, and ends, when its file stops within a command or a transition."""


def mend(data: Path, binary: Path, deadline: float) -> None:
    """Cut off an unfinished transition at the end of the append-only file in `data`. Raises StoreError."""
    parts = data / "appendonlydir" / "appendonly.aof.manifest"  # since Redis 7
    path = parts if parts.exists() else data / "appendonly.aof"
    try:
        said = subprocess.run(
            ["redis-check-aof", "--fix", path],  # by this name the server's program is the tool that checks its files
            executable=binary,
            input="y\n",
            capture_output=True,
            text=True,
            timeout=deadline,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StoreError(f"{path} ends within a transition, and {binary} could not cut it off: {error}") from error
    if said.returncode != 0:
        raise StoreError(
            f"{path} ends within a transition, and {binary} could not cut it off: {said.stdout.strip()[-500:]}"
        )
