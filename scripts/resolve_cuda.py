"""Write constraints-cuda.txt: what pip would install on a Linux machine with an NVIDIA GPU, without installing it.

    python scripts/resolve_cuda.py

Where the CPU installation has the same package, its version is taken, since the tests ran with it. pip's configuration
of this machine is left aside (`--isolated`): it may offer a torch without CUDA.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
# What scripts/setup_env.py installs on a machine with an NVIDIA GPU. Made by: make constraints-cuda
# Resolved by pip and not installed by us; the packages that the CPU installation has too are of the same version.
"""
OWN = "penstock"
PINNED_OTHERWISE = ("apache-tvm-ffi", "triton")
"""Packages of the CPU installation for which vLLM and torch for CUDA name other versions."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        tested = Path(folder) / "tested.txt"
        lines = (ROOT / "constraints-cpu.txt").read_text().splitlines()
        tested.write_text("\n".join(line for line in lines if line.split("==")[0] not in PINNED_OTHERWISE))
        pip = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "-q"]
        what = ["--dry-run", "--ignore-installed", "--report", str(report), "-c", str(tested), ".[cuda]"]
        if subprocess.run([*pip, *what], cwd=ROOT).returncode != 0:
            sys.exit("[constraints] pip could not resolve the CUDA installation; its own message stands above")
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    lines = sorted((f"{one['name']}=={one['version']}" for one in found if one["name"] != OWN), key=str.lower)
    (ROOT / "constraints-cuda.txt").write_text(HEAD + "".join(f"{line}\n" for line in lines))
    print(f"[constraints] {len(lines)} packages in constraints-cuda.txt")


if __name__ == "__main__":
    main()
