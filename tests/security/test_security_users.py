"""What is closed to other users of the machine: the private store, commands, weights in shared memory."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import redis
import torch
from other_user import NOBODY, as_nobody, needs_root, open_folder

from penstock.deploy.storehost import run_id_of
from penstock.services.contracts import PenstockError
from penstock.services.files import own_folder
from penstock.services.mailbox import Mailbox
from penstock.services.rundir import RunDir, RunDirError
from penstock.services.store import whereabouts
from penstock.services.store.server import PrivateServer
from penstock.services.versions import Version
from penstock.services.weights.files import FileSender

pytestmark = needs_root


@pytest.fixture
def run() -> Iterator[RunDir]:
    """A run directory that everybody may look into."""
    with open_folder() as folder:
        yield RunDir.create(folder, "open", "name: open\n")


@pytest.fixture
def server(run: RunDir) -> Iterator[PrivateServer]:
    with PrivateServer(run.store, run.log("redis")) as running:
        store = running.address("run").connect()
        store._connection._redis.set("a group", "its answers")
        yield running


def everything_below(folder: Path) -> list[str]:
    """Paths that can be read, followed through links."""
    found = []
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            try:
                os.close(os.open(f"{place}/{name}", os.O_RDONLY))
                found.append(f"{place}/{name}")
            except OSError:
                pass
    return found


def listed(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def asked(family: int, where: Any, question: bytes) -> str:
    """What a server says to a stranger's question."""
    with socket.socket(family) as connection:
        connection.settimeout(5)
        connection.connect(where)
        connection.sendall(question)
        return connection.recv(200).decode()


# --- the store -------------------------------------------------------------------------------------------


def test_the_stores_files_and_its_socket_are_closed(run: RunDir, server: PrivateServer) -> None:
    path = urlsplit(server.url).path
    assert asked(socket.AF_UNIX, path, b"PING\r\n").startswith("-NOAUTH"), "it is there"
    assert as_nobody(lambda: asked(socket.AF_UNIX, path, b"PING\r\n")) == "PermissionError"
    assert as_nobody(lambda: listed(Path(path).parent)) == "PermissionError"
    data = next(p for p in run.store.rglob("*") if p.is_file() and b"its answers" in p.read_bytes())
    seen = as_nobody(lambda: everything_below(run.path))
    assert str(run.config) in seen, "a stranger may look into the run directory"
    assert not [name for name in seen if "/store/" in name]
    assert as_nobody(lambda: data.read_bytes().hex()) == "PermissionError"


def test_data_that_an_older_build_left_open_is_closed(run: RunDir) -> None:
    run.store.mkdir(mode=0o755)
    run.store.chmod(0o755)
    with PrivateServer(run.store, run.log("redis")):
        assert run.store.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "question", ["PING", "INFO", "CONFIG GET requirepass", "KEYS *", "EVAL 'return 1' 0", "DEBUG JMAP"]
)
def test_who_is_let_through_to_the_socket_needs_the_password(server: PrivateServer, question: str) -> None:
    folder = Path(urlsplit(server.url).path).parent
    folder.chmod(0o755)
    (folder / "redis.sock").chmod(0o777)
    where = str(folder / "redis.sock")
    assert as_nobody(lambda: asked(socket.AF_UNIX, where, f"{question}\r\n".encode())).startswith("-NOAUTH")


def test_over_tcp_everybody_reaches_the_port_and_nobody_the_store(run: RunDir) -> None:
    with PrivateServer(run.store, run.log("redis"), host="127.0.0.1") as server:
        where = ("127.0.0.1", urlsplit(server.url).port)
        for question in ("PING", "KEYS *", "AUTH guess", "HELLO 3 AUTH default guess"):
            said = as_nobody(lambda question=question: asked(socket.AF_INET, where, f"{question}\r\n".encode()))
            assert said.startswith(("-NOAUTH", "-WRONGPASS")), said
        secret = server.address("run").password
        assert redis.Redis.from_url(server.url, password=secret).ping()


def test_the_password_is_in_no_file_no_command_line_and_no_environment(run: RunDir, server: PrivateServer) -> None:
    secret = (server.address("run").password or "").encode()
    assert len(secret) >= 32
    assert server.pid is not None
    process = psutil.Process(server.pid)
    assert secret not in " ".join(process.cmdline()).encode()
    assert secret not in str(process.environ()).encode()
    files = [Path(name) for name in everything_below(run.path)]
    assert any("/store/live/" in str(file) for file in files), "root sees all of them"
    assert [file for file in files if secret in file.read_bytes()] == []


# --- what a run directory of somebody else's may make us do --------------------------------------------------


def test_a_process_that_a_planted_note_calls_our_old_server_is_left_alone(run: RunDir) -> None:
    mine = psutil.Process()
    run.store.mkdir()
    folder = whereabouts.short_folder()
    whereabouts.describe(run.store, folder, mine.pid, "unix:///nowhere")
    note = folder / "server.json"
    note.write_text(note.read_text().replace('"driver_started": ', '"driver_started": 1'))
    whereabouts.end_predecessor(run.store, 1.0)
    assert mine.is_running()


def test_a_folder_that_a_planted_link_leads_to_is_left_alone(run: RunDir, tmp_path: Path) -> None:
    run.store.mkdir()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "server.json").write_text('{"pid": 1, "started": 0, "driver": 1, "driver_started": 0}')
    (run.store / "live").symlink_to(precious)
    whereabouts.end_predecessor(run.store, 1.0)
    assert (precious / "server.json").exists()
    assert not (run.store / "live").is_symlink()


@pytest.mark.parametrize("name", ["../../../home/ada", "..", ".hidden", "a/b", "", "x" * 101, "a\nb"])
def test_a_run_id_that_leads_elsewhere_is_refused(run: RunDir, name: str) -> None:
    (run.path / ".run-id").write_text(name)
    with pytest.raises(RunDirError, match=r"\.run-id holds .* is no name of a run"):
        run_id_of(run)


# --- commands --------------------------------------------------------------------------------------------


def test_nobody_else_can_put_a_command_into_the_mailbox(run: RunDir) -> None:
    Mailbox(run)
    assert as_nobody(lambda: listed(run.control)) == "PermissionError"
    assert as_nobody(lambda: (run.control / "00.json").write_text("{}")) == "PermissionError"


# --- weights in shared memory ----------------------------------------------------------------------------


@pytest.fixture
def shared() -> Iterator[Path]:
    folder = Path(f"/dev/shm/penstock-test-{os.getpid()}-{time.monotonic_ns()}")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_weights_in_shared_memory_are_closed(shared: Path) -> None:
    own_folder(shared)
    FileSender(shared / "weights").publish(Version(0, 1), [("w", torch.ones(2))])
    assert as_nobody(lambda: listed(shared)) == "PermissionError"
    assert as_nobody((shared / "weights" / "0.1" / "manifest.json").read_text) == "PermissionError"


def test_a_folder_that_somebody_else_made_before_is_refused(shared: Path) -> None:
    assert as_nobody(lambda: shared.mkdir(mode=0o777)) is None
    assert shared.stat().st_uid == NOBODY
    with pytest.raises(PenstockError, match=rf"{shared} was made by another user \(uid {NOBODY}"):
        own_folder(shared)


def test_a_link_that_somebody_else_made_before_is_refused(shared: Path) -> None:
    assert as_nobody(lambda: shared.symlink_to("/root")) is None
    try:
        with pytest.raises(PenstockError, match="was made by another user"):
            own_folder(shared)
    finally:
        shared.unlink()
