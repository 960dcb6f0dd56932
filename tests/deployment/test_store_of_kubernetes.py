"""The store of deploy/kubernetes, started as its pod starts it, on a server that is here: promises and password."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from deployment_parts import rendered

from penstock.services.contracts import StoreError
from penstock.services.store.binary import find_binary
from penstock.services.store.connection import Connection

ODD = 'a "quoted" \\ pass word #1'
"""What a password may hold and a configuration file would read otherwise."""


@dataclass
class Store:
    url: str
    folder: Path
    process: subprocess.Popen[bytes]

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, password=ODD, decode_responses=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("store")
    maps = [found["data"] for found in rendered("job") if found["kind"] == "ConfigMap"]
    files = next(data for data in maps if "redis.conf" in data)
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "data").mkdir()
    (folder / "private").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What differs from the pod: where the data lies, and the port.
    text = files["redis.conf"].replace("dir /data", f"dir {folder / 'data'}").replace("port 6379", f"port {port}")
    (folder / "redis.conf").write_text(text)
    (folder / "bin").mkdir()
    (folder / "bin" / "redis-server").symlink_to(find_binary())
    environment = {**os.environ, "REDISCLI_AUTH": ODD, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    command = ["/bin/sh", str(folder / "start-store.sh"), str(folder / "redis.conf"), str(folder / "private")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    found = Store(f"redis://127.0.0.1:{port}/0", folder, process)
    try:
        ends = time.monotonic() + 20
        while True:
            try:
                found.client().ping()
                break
            except redis.ConnectionError:
                assert time.monotonic() < ends and process.poll() is None, (folder / "log").read_text()
                time.sleep(0.05)
        yield found
    finally:
        process.terminate()
        process.wait(20)


def test_what_the_ledger_needs_is_so(store: Store) -> None:
    settings = store.client().config_get("*")
    wanted = {"appendonly": "yes", "appendfsync": "always", "save": "", "maxmemory-policy": "noeviction"}
    assert {name: settings[name] for name in wanted} == wanted
    assert int(settings["maxmemory"]) == 5 * 2**30
    assert settings["no-appendfsync-on-rewrite"] == "no"


def test_penstock_gets_in_with_the_password_and_not_without(store: Store) -> None:
    Connection(store.url, "test", deadline=5.0, password=ODD).require()
    with pytest.raises(StoreError, match="password"):
        Connection(store.url, "test", deadline=1.0, password=None).require()


def test_the_password_is_in_a_file_for_the_server_alone_and_not_among_its_arguments(store: Store) -> None:
    assert store.process.args[0] == "/bin/sh"
    words = Path(f"/proc/{store.process.pid}/cmdline").read_bytes().split(b"\0")
    assert b"redis-server" in words[0] and not any(b"quoted" in word for word in words)
    assert (store.folder / "private" / "redis.conf").stat().st_mode & 0o077 == 0


def test_without_a_password_it_does_not_start(store: Store) -> None:
    command = ["/bin/sh", str(store.folder / "start-store.sh"), "x", str(store.folder / "private")]
    clean = {name: value for name, value in os.environ.items() if name != "REDISCLI_AUTH"}
    done = subprocess.run(command, env=clean, capture_output=True, text=True)
    assert done.returncode != 0
    assert "key password of the Secret penstock-store is missing" in done.stderr
