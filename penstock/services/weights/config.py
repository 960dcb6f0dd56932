"""The section of a run file that says how weights travel."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from penstock.services.settings import Section, on_resume

Transport = Literal["shm", "file", "nccl", "ipc"]


class WeightsSection(Section):
    """How new weights reach the rollout workers."""

    transport: Literal["auto", "shm", "file", "nccl", "ipc"] = on_resume("auto")
    """`shm`: files in shared memory, one node. `file`: files on a file system that all nodes share. `nccl`, `ipc`:
    the engine's own transfer between NVIDIA GPUs, of one network or of one card. `auto`: shm on one node, file on
    several."""
    folder: Path | None = on_resume(None)
    """Where the files lie. By default a folder of the run in /dev/shm, or in the run directory for `file`; the
    latter must then be on a shared file system."""
    deadline: float = on_resume(120.0, gt=0, le=3600)
    """Seconds that one worker may need to fetch and load a version. A longer wait hides a dead learner."""


def choose(transport: str, several: bool, cuda: bool) -> tuple[Transport | None, str]:
    """The transport that will be used, or None and why the one asked for cannot be.

    several: actors of this run may live on several nodes. cuda: every learner rank and worker has an NVIDIA GPU.
    """
    if transport == "auto":
        return ("file", "several nodes share files") if several else ("shm", "one node")
    if transport == "shm" and several:
        return None, "shared memory ends at a node and this run may use several; use file, on a shared file system"
    if transport in ("nccl", "ipc") and not cuda:
        return None, f"{transport} moves weights between NVIDIA GPUs and none is in use; use auto, shm or file"
    if transport == "ipc" and several:
        return None, "CUDA IPC ends at a node and this run may use several; use nccl"
    for known in ("shm", "file", "nccl", "ipc"):
        if transport == known:
            return known, "as asked"
    return None, f"no transport is called {transport!r}; there are auto, shm, file, nccl, ipc"


def default_folder(transport: Transport, run_id: str, run_directory: Path) -> Path:
    """Where the files of a run lie when the run file does not say. Whoever ends a run removes it."""
    return Path("/dev/shm") / f"penstock-{run_id}" / "weights" if transport == "shm" else run_directory / "weights"
