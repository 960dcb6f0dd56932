"""A reward function that wants the store's credentials, and looks wherever they could be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from penstock.reward import confinement

SECRET = "planted-store-password"
SHORTAGE = confinement.lacking()
needs_landlock = pytest.mark.skipif(bool(SHORTAGE), reason=SHORTAGE)

THIEF = '''
import ctypes, json, os, pathlib, signal, socket, subprocess, sys

libc = ctypes.CDLL(None, use_errno=True)

def own(*_):
    """What the process was given."""
    yield os.environ
    yield pathlib.Path("/proc/self/environ").read_bytes()
    for name in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            pass

def others(*_):
    """What the kernel tells of other processes: environment, command line, open files by their content."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for what in ("environ", "cmdline", "stat", "maps"):
            try:
                yield pathlib.Path(f"/proc/{pid}/{what}").read_bytes()
            except OSError:
                pass
    yield subprocess.run(["ps", "axeww"], capture_output=True).stdout

def memory(scorer, server, secrets):
    """The memory of the scorer and of the store's server."""
    for pid in (scorer, server):
        try:
            areas = pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines()
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as held:
                for area in areas:
                    ends, rights = area.split()[:2]
                    low, high = (int(end, 16) for end in ends.split("-"))
                    if rights.startswith("rw") and high - low < 1 << 26:
                        held.seek(low)
                        try:
                            yield held.read(high - low)
                        except OSError:
                            pass
        except OSError:
            pass
        buffer = ctypes.create_string_buffer(1 << 12)
        if libc.ptrace(0x4206, pid, 0, 0) == 0:  # PTRACE_SEIZE, which stops nobody
            yield "attached: " + " ".join(secrets)

def descriptors(scorer, server, secrets):
    """Files, pipes and sockets that the scorer and the server have open."""
    for pid in (scorer, server):
        for number in range(64):
            try:
                with open(f"/proc/{pid}/fd/{number}", "rb", buffering=0) as held:
                    os.set_blocking(held.fileno(), False)
                    yield f"opened {number}: " + " ".join(secrets)
            except OSError:
                pass
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            continue
        for number in range(64):
            if libc.syscall(438, handle, number, 0) >= 0:  # pidfd_getfd
                yield f"copied {number}: " + " ".join(secrets)

def files(scorer, server, secrets, run):
    """Whatever lies in the run directory, behind its links, and in the usual places for temporary files."""
    for top in (run, *map(str, pathlib.Path("/tmp").glob("penstock-*")), "/dev/shm", "/run"):
        for place, folders, names in os.walk(top, followlinks=top == run):
            for name in names:
                path = pathlib.Path(place, name)
                try:
                    if path.is_file() and path.stat().st_size < 1 << 20:
                        yield path.read_bytes()
                except OSError:
                    pass

def store(scorer, server, secrets, run):
    """The store itself, whose socket is easily found."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(pathlib.Path(run, "store", "live").resolve() / "redis.sock"))
    connection.sendall(b"CONFIG GET requirepass\\r\\n")
    said = connection.recv(1000)
    yield said
    if not said.startswith(b"-NOAUTH"):
        yield " ".join(secrets)

def kill(scorer, server, secrets):
    """Not a credential, but an end."""
    for pid in (scorer, server):
        try:
            os.kill(pid, 0)
            yield "could kill: " + " ".join(secrets)
        except OSError:
            pass

WAYS = {f.__name__: f for f in (own, others, memory, descriptors, files, store, kill)}

def steal(completions, way, run, scorer, server, hashes, **kwargs):
    """1 for each secret that turns up; the thief knows only what they begin with."""
    import hashlib, re
    shapes = [s.encode() for s in hashes]
    found, looked = set(), 0
    arguments = (int(scorer[0]), int(server[0]), ["by force"], run[0])
    function = WAYS[way[0]]
    for seen in function(*arguments[: function.__code__.co_argcount] if function.__code__.co_argcount else arguments):
        looked += 1
        text = seen if isinstance(seen, bytes) else str(seen).encode()
        if b"by force" in text:
            found.add("by force")
        for word in set(re.findall(rb"[A-Za-z0-9_-]{22,43}", text)):
            if hashlib.sha256(word).hexdigest().encode() in shapes:
                found.add(word.decode())
    with open("found.json", "w") as file:
        json.dump({"found": sorted(found), "looked": looked}, file)
    return [float(len(found))] * len(completions)
'''

SCORER = """
import hashlib, json, os, sys
from pathlib import Path
from penstock.reward import wire
from penstock.reward.config import RewardSection
from penstock.reward.sandbox import Sandbox
from penstock.services.store.server import PrivateServer

folder, confine, ways = Path(sys.argv[1]), sys.argv[2] == "yes", sys.argv[3:]
run = folder / "run"
told = {}
with PrivateServer(run / "store", run / "logs" / "redis.log") as server:
    secrets = [os.environ["PENSTOCK_STORE_PASSWORD"], server.address("run").password]
    hashes = [hashlib.sha256(s.encode()).hexdigest() for s in secrets]
    rules = {"theft": {"rule": "thief:steal", "args": {"hashes": hashes}}}
    sandbox = Sandbox(RewardSection.model_validate({"rules": rules, "folder": str(folder), "confine": confine}))
    for way in ways:
        (folder / "found.json").unlink(missing_ok=True)
        columns = {"way": way, "run": str(run), "scorer": os.getpid(), "server": server.pid}
        values = sandbox.call(wire.Call("theft", "", ["a"], [[1]], columns, {}))
        found = json.loads((folder / "found.json").read_text()) if (folder / "found.json").exists() else {}
        told[way] = found | {"value": values[0]}
    sandbox.close()
print(json.dumps(told))
"""
WAYS = ("own", "others", "memory", "descriptors", "files", "store", "kill")


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What each way of looking finds, with rule processes that are shut in (`yes`) or not (`no`)."""
    known: dict[str, dict[str, Any]] = {}

    def made(confine: str) -> dict[str, Any]:
        if confine not in known:
            folder = tmp_path_factory.mktemp("theft")
            (folder / "thief.py").write_text(THIEF)
            environment = os.environ | {"PENSTOCK_STORE_PASSWORD": SECRET}
            command = [sys.executable, "-c", SCORER, str(folder), confine, *WAYS]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
            assert done.returncode == 0, done.stderr
            known[confine] = json.loads(done.stdout.splitlines()[-1])
        return known[confine]

    return made


@needs_landlock
@pytest.mark.parametrize("way", WAYS)
def test_wherever_a_reward_function_looks_the_stores_credentials_are_not_there(
    attempts: Callable[[str], dict[str, Any]], way: str
) -> None:
    found = attempts("yes")[way]
    assert found["value"] == 0.0, found


@pytest.mark.parametrize("way", ["own", "files", "store"])
def test_not_even_where_the_kernel_helps_with_nothing(attempts: Callable[[str], dict[str, Any]], way: str) -> None:
    found = attempts("no")[way]
    assert found["value"] == 0.0, found
    assert found["looked"] > 0


@pytest.mark.parametrize("way", ["others", "memory", "descriptors", "kill"])
def test_without_being_shut_in_it_would_find_them_so_this_thief_is_a_real_one(
    attempts: Callable[[str], dict[str, Any]], way: str
) -> None:
    found = attempts("no")[way]
    assert found["value"] >= 1.0, found


# --- how it is shut in -----------------------------------------------------------------------------------

SHUT_IN = """
import os, subprocess, sys, tempfile
from pathlib import Path
from penstock.reward import confinement
other = int(sys.argv[2])
assert confinement.shut_in(int(sys.argv[1]) or None) == ""
told = []
try:
    Path(f"/proc/{other}/environ").read_bytes()
except PermissionError:
    told.append("closed")
own = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
Path(f"/proc/{own.pid}/environ").read_bytes()
own.communicate()
with tempfile.TemporaryDirectory() as folder:
    for name in ("a", "b"):
        Path(folder, name).mkdir()
    Path(folder, "a", "file").write_text("x")
    try:
        Path(folder, "a", "file").rename(Path(folder, "b", "file"))
        told.append("moved")
    except OSError:
        pass
try:
    os.kill(other, 0)
except PermissionError:
    told.append("no signals")
print(" ".join(told))
"""


@needs_landlock
@pytest.mark.parametrize(("version", "told"), [(0, None), (1, "closed"), (2, "closed moved"), (5, "closed moved")])
def test_the_interfaces_of_older_kernels_close_other_processes_too(version: int, told: str | None) -> None:
    """What a process starts afterwards is in there with it, and files go on as before: the first version alone cannot
    move them between folders."""
    if confinement.version() < max(version, 1):
        pytest.skip(f"this kernel has version {confinement.version()}")
    with subprocess.Popen(["sleep", "60"]) as other:
        command = [sys.executable, "-c", SHUT_IN, str(version), str(other.pid)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        other.kill()
    assert done.returncode == 0, done.stderr
    newest = "closed moved" + (" no signals" if confinement.version() >= 6 else "")
    assert done.stdout.strip() == (told or newest)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")
def test_root_keeps_rights_over_files_alone() -> None:
    code = (
        "from penstock.reward import confinement; confinement.shut_in()\n"
        "import subprocess; subprocess.run(['grep', 'Cap', '/proc/self/status'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    sets = dict(line.split(":\t") for line in done.stdout.split("\n") if line)
    kept = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 10))
    assert int(sets["CapEff"], 16) == int(sets["CapPrm"], 16) == int(sets["CapBnd"], 16) == kept


def test_without_landlock_it_is_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement, "version", lambda: 0)
    assert "Linux 5.13 and newer" in confinement.lacking()
