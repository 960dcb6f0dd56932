"""Ray clusters of a test's own, as people start them: their own ports, their own token, their own home.

Nothing here is stopped by `ray stop`, which would stop every cluster of the machine: what was started is ended by its
process ids, which are those of processes that name the cluster's own folder.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from penstock.services.ports import HeldPort

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SMALL = 128 * 1024 * 1024
"""Bytes of an object store; the least that Ray takes without a word is about that."""


class RayHead:
    """`ray start --head`, and what people then do with it. Use as a context manager."""

    def __init__(
        self, cpus: int = 6, *more: str, host: str = "127.0.0.1", environment: dict[str, str] | None = None
    ) -> None:
        """`host` is this machine's address as others see it; `environment` is for Ray's processes."""
        self.host = host
        self.folder = Path(tempfile.mkdtemp(prefix="pt-", dir="/tmp"))  # short: sockets lie in it
        self.home = self.folder / "home"
        self.home.mkdir()
        token = self.folder / "token"
        token.write_text(secrets.token_hex(16))
        token.chmod(0o600)
        held = [HeldPort("127.0.0.1") for _ in range(4)]
        self.gcs, self.dashboard, self.client, agent = (port.number for port in held)
        for port in held:
            port.release()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PENSTOCK_"))},
            "HOME": str(self.home),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "TORCH_EXTENSIONS_DIR": os.environ.get(
                "TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "penstock" / "torch_extensions")
            ),
            "DS_ACCELERATOR": "cpu",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "COLUMNS": "200",
        }
        self._command = [
            *("ray", "start", "--head", "--block", "--disable-usage-stats", f"--num-cpus={cpus}"),
            *(f"--port={self.gcs}", f"--dashboard-port={self.dashboard}", f"--ray-client-server-port={self.client}"),
            *(f"--dashboard-agent-listen-port={agent}", "--min-worker-port=0", "--max-worker-port=0"),
            *(f"--object-store-memory={SMALL}", f"--temp-dir={self.folder / 'ray'}", *more),
            *((f"--node-ip-address={host}",) if host != "127.0.0.1" else ()),
        ]
        self._started = {**self.environment, **(environment or {})}

    @property
    def address(self) -> str:
        return f"{self.host}:{self.gcs}"

    @property
    def jobs(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def __enter__(self) -> RayHead:
        with (self.folder / "head.log").open("wb") as log:
            self._process = subprocess.Popen(self._command, env=self._started, stdout=log, stderr=log)
        try:
            until("Ray's head answers", self._answers, 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self.folder / "head.log").read_text()[-3000:]
        try:
            with urllib.request.urlopen(self._authorised("/api/version"), timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _authorised(self, path: str) -> urllib.request.Request:
        token = (self.folder / "token").read_text()
        return urllib.request.Request(self.jobs + path, headers={"Authorization": f"Bearer {token}"})

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self.clear_away()

    def clear_away(self) -> None:
        """End what is left of the cluster, and remove its folder."""
        left = self.processes()
        for process in left:
            process.terminate()
        for process in psutil.wait_procs(left, timeout=10)[1]:
            process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[psutil.Process]:
        """Those that name the cluster's folder, which no other cluster does."""
        found = []
        for process in psutil.process_iter():
            try:
                if any(str(self.folder) in word for word in process.cmdline()):
                    found.append(process)
            except psutil.Error:  # ended meanwhile
                continue
        return found

    # --- what people do -----------------------------------------------------------------------------

    def run(self, *command: str, cwd: Path | None = None, code: int | None = 0, **environment: str) -> str:
        """What a command prints on both streams; it must end with `code`, unless that is None."""
        done = subprocess.run(
            command,
            env={**self.environment, **environment},
            cwd=cwd or self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
        )
        assert code is None or done.returncode == code, f"{' '.join(command)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def penstock(self, *words: str, code: int | None = 0, **environment: str) -> str:
        """A command of somebody who is on the head, in a folder without runs."""
        return self.run("penstock", *words, "--address", self.address, code=code, **environment)

    def status(self, run: str) -> dict[str, Any]:
        """What `penstock status RUN --json` says."""
        said: dict[str, Any] = json.loads(self.penstock("status", "--run", run, "--json"))
        return said

    def submit(self, name: str, folder: Path, *entrypoint: str) -> None:
        """`ray job submit` from `folder`, by a client that goes away at once."""
        command = ("ray", "job", "submit", "--address", self.jobs, "--submission-id", name, "--no-wait")
        self.run(*command, "--working-dir", ".", "--", *entrypoint, cwd=folder)

    def stop(self, name: str) -> None:
        """`ray job stop`, and wait until the job has ended."""
        self.run("ray", "job", "stop", "--address", self.jobs, "--no-wait", name)
        try:
            until(f"job {name} has ended", lambda: self.state_of(name)["status"] != "RUNNING", 120)
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self._whereabouts(name)}") from None

    def _whereabouts(self, name: str) -> str:
        """What is known of a job that does not end: its log and its supervisor's, and all processes."""
        logs = self.folder.glob(f"ray/session_2*/logs/jobs/supervisor-{name}.log")
        told = [self.logs_of(name)[-4000:], *(path.read_text()[-2000:] for path in logs)]
        for process in psutil.process_iter(["pid", "ppid", "status", "cmdline"]):
            told.append(" ".join(map(str, process.info.values()))[:200])
        return "\n".join(told)

    def state_of(self, name: str) -> dict[str, Any]:
        """What Ray knows of a job."""
        with urllib.request.urlopen(self._authorised(f"/api/jobs/{name}"), timeout=10) as answer:
            known: dict[str, Any] = json.loads(answer.read())
            return known

    def logs_of(self, name: str) -> str:
        """What a job has printed."""
        with urllib.request.urlopen(self._authorised(f"/api/jobs/{name}/logs"), timeout=10) as answer:
            return str(json.loads(answer.read())["logs"])

    def run_dir(self, name: str) -> Path:
        """Of the only run of that name in the home of whoever runs Ray."""
        (found,) = (self.home / "penstock" / "runs").glob(f"{name}-*")
        return found


class Island:
    """Another machine, as far as Linux can make one of this: a network of its own, where this machine is `host` and the
    other one `address`, and folders of its own in the place of some. Needs root. Use as a context manager."""

    def __init__(self) -> None:
        number = secrets.randbelow(60) * 4
        self.name, subnet = f"pt{secrets.token_hex(3)}", f"10.231.{secrets.randbelow(250)}"
        self.host, self.address = f"{subnet}.{number + 1}", f"{subnet}.{number + 2}"
        self._nodes: list[subprocess.Popen[bytes]] = []

    @staticmethod
    def possible() -> bool:
        """Whether this process may make one."""
        made = ("unshare", "--mount", "--net", "true")
        return shutil.which("ip") is not None and subprocess.run(made, capture_output=True).returncode == 0

    def __enter__(self) -> Island:
        inside = ("ip", "-n", self.name)
        for command in (
            ("ip", "netns", "add", self.name),
            ("ip", "link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", self.name),
            ("ip", "addr", "add", f"{self.host}/30", "dev", self.name),
            ("ip", "link", "set", self.name, "up"),
            (*inside, "addr", "add", f"{self.address}/30", "dev", "eth0"),
            (*inside, "link", "set", "eth0", "up"),
            (*inside, "link", "set", "lo", "up"),
        ):
            subprocess.run(command, check=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.sink()
        subprocess.run(("ip", "netns", "delete", self.name))
        subprocess.run(("ip", "link", "delete", self.name), capture_output=True)

    def join(self, head: RayHead, cpus: int, *more: str, own: Sequence[Path] = ()) -> None:
        """Start a node there; the folders `own` are empty ones of its own. So is the one in which Ray unpacks a job's
        working directory: a node that finds it unpacked already removes it, under the feet of the others."""
        unpacked = head.folder.glob("ray/session_2*/runtime_resources")
        mounts = "".join(f"mount -t tmpfs none {folder} && " for folder in (*own, *unpacked))
        ray = (
            f"exec ray start --block --address={head.address} --node-ip-address={self.address} --num-cpus={cpus} "
            f"--disable-usage-stats --min-worker-port=0 --max-worker-port=0 --object-store-memory={SMALL} "
            + " ".join(more)
        )
        script = f"mount --make-rprivate / && {mounts}{ray}"
        command = ("ip", "netns", "exec", self.name, "unshare", "--mount", "sh", "-c", script)
        with (head.folder / "island.log").open("ab") as log:
            self._nodes.append(subprocess.Popen(command, env=head.environment, stdout=log, stderr=log))

    def sink(self) -> None:
        """End its nodes, and whatever else runs there: the agents of a node outlive it for a while."""
        for node in self._nodes:
            node.terminate()
        there = subprocess.run(("ip", "netns", "pids", self.name), capture_output=True, text=True).stdout.split()
        inside = [psutil.Process(int(pid)) for pid in there if psutil.pid_exists(int(pid))]
        for process in psutil.wait_procs(inside, timeout=20)[1]:
            process.kill()
        for node in self._nodes:
            node.wait(10)
        self._nodes.clear()


def until(what: str, true: Callable[[], object], seconds: float, pause: float = 0.2) -> None:
    """Waits; says what for when it was in vain."""
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, f"waited {seconds} s until {what}"
        time.sleep(pause)


def drill(folder: Path, *more: str) -> Path:
    """A project to submit: the drill's run file with its inputs and a reward of one's own beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(REPOSITORY / "recipes" / "drill"))
    try:
        from prepare import prepare
    finally:
        sys.path.pop(0)
    prepare(folder / "inputs")
    (folder / "own.py").write_text(
        "def length(completions, **columns):\n    return [len(c) / 32 for c in completions]\n"
    )
    text = (REPOSITORY / "recipes" / "drill" / "drill.yaml").read_text()
    text = text.replace("../../runs/drill-inputs", "inputs").replace("contains: {}", 'own: {rule: "own:length"}  #')
    (folder / "drill.yaml").write_text(text)
    return folder / "drill.yaml"


def events(run_dir: Path, kind: str) -> Sequence[dict[str, Any]]:
    """The events of a kind, as they are written."""
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def names(run_dir: Path, kind: str) -> list[str]:
    """Whom the events of a kind are about."""
    return [event["name"] for event in events(run_dir, kind)]
