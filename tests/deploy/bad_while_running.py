"""The tables of docs/bad-input.md that are about a run that goes on: real rule processes, a real Redis server."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from disks import fill, small_disk

from penstock.reward import wire
from penstock.reward.config import RewardSection, RuleSection
from penstock.reward.sandbox import RewardError, Sandbox
from penstock.services.contracts import StoreError
from penstock.services.replay import LedgerRules, ReplayStore
from penstock.services.store.connection import StoreAddress
from penstock.services.store.server import PrivateServer
from penstock.services.versions import FIRST

# --- rewards --------------------------------------------------------------------------------------

FUNCTIONS = """\
import os, time
def raises(completions, **kwargs): return [1 / 0 for _ in completions]
def one_too_few(completions, **kwargs): return [1.0]
def nothing(completions, **kwargs): return None
def text(completions, **kwargs): return ["good", "bad"]
def not_a_number(completions, **kwargs): return [float("nan"), 1.0]
def infinite(completions, **kwargs): return [1.0, float("inf")]
def hangs(completions, **kwargs): time.sleep(60)
def leaves(completions, **kwargs): os._exit(3)
def is_killed(completions, **kwargs): os.kill(os.getpid(), 9)
"""
REWARDS = {
    "raises": "it raises",
    "one_too_few": "it returns the wrong length",
    "nothing": "it returns nothing",
    "text": "it returns text",
    "not_a_number": "it returns NaN",
    "infinite": "it returns infinity",
    "hangs": "it hangs",
    "leaves": "it ends its process",
    "is_killed": "it is killed",
}
IMPORTS = {
    "quits": ("raise OSError('no licence')\n", "its module fails while it is imported"),
    "stays": ("import time; time.sleep(60)\n", "its module hangs while it is imported"),
}


def causes(folder: Path) -> Iterator[tuple[str, str]]:
    """(what a rule does, why its answers are unscored), of two answers to one prompt."""
    (folder / "unruly.py").write_text(FUNCTIONS)
    rules = {name: RuleSection(rule=f"unruly:{name}", timeout=0.3 if name == "hangs" else 20) for name in REWARDS}
    box = Sandbox(RewardSection(rules=rules, folder=str(folder)))
    try:
        for name, what in REWARDS.items():
            told = box.call(wire.Call(name, "2+2=", ["4", "5"], [[1], [1]], {}, {}))
            yield what, "; ".join(str(each) for each in dict.fromkeys(told))
    finally:
        box.close()


def refusals(folder: Path) -> Iterator[tuple[str, str]]:
    """(what is wrong with a module, why no scorer can start)."""
    for name, (text, what) in IMPORTS.items():
        (folder / f"{name}.py").write_text(text + "def score(completions): ...\n")
        section = RewardSection(rules={name: RuleSection(rule=f"{name}:score")}, folder=str(folder), start_timeout=0.5)
        if name == "quits":
            section = section.model_copy(update={"start_timeout": 20.0})
        try:
            Sandbox(section).close()
        except RewardError as error:
            yield what, str(error)


# --- the store ------------------------------------------------------------------------------------


def store_on(server: PrivateServer, deadline: float, run: str = "run") -> ReplayStore:
    store = server.address(run, deadline).connect()
    with contextlib.suppress(StoreError):
        store.attach(LedgerRules(max_lag=100, groups_per_step=100, prompts=None, max_bytes=10**9))
        store.reconcile(FIRST, 0, "start")
    return store


def put(store: ReplayStore, request: str, size: int = 64 * 1024) -> int:
    """Reserve one prompt and put a group of `size` bytes for it; returns its index once both are acknowledged."""
    (ticket,) = store.reserve("worker", FIRST, 1, 60.0, request).tickets
    store.put(ticket, os.urandom(size), FIRST)
    return ticket.index


def troubles(folder: Path) -> Iterator[tuple[str, str]]:
    """(what is the matter with the server, what a call says once store.deadline has passed)."""
    with PrivateServer(folder / "store", folder / "store.log", host="127.0.0.1") as server:
        quick = store_on(server, deadline=1.0)
        os.kill(server.pid or 0, signal.SIGSTOP)
        threading.Timer(2.0, os.kill, (server.pid, signal.SIGCONT)).start()
        yield "it is frozen", _told(quick.counts)
        store_on(server, 5.0).counts()  # it is back
        url = server.url
        yield "the password is wrong", _told(StoreAddress(url, "run", "wrong", 1.0).connect().counts)
        yield "there is no password", _told(StoreAddress(url, "run", None, 1.0).connect().counts)
    yield "it is away", _told(StoreAddress(url, "run", None, 0.3).connect().counts)


def full_memory(folder: Path) -> str:
    import redis

    with PrivateServer(folder / "store", folder / "store.log") as server:
        store = store_on(server, deadline=1.0)
        with redis.Redis.from_url(server.url, password=server.address("run").password) as client:
            client.config_set("maxmemory", 1)
        return _told(lambda: put(store, "one"))


def full_disk(disk: Path) -> str:
    with PrivateServer(disk / "store", disk / "store.log") as server:
        store = store_on(server, deadline=1.0)
        fill(disk)
        return _told(lambda: [put(store, str(number)) for number in range(100)])


def _told(call: Callable[[], object]) -> str:
    try:
        call()
    except StoreError as error:
        text = re.sub(r"redis://127\.0\.0\.1:\d+", "redis://127.0.0.1:6379", str(error))
        text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:6379", re.sub(r"unix://\S+", "unix:///run/redis.sock", text))
        return re.sub(r"for \d+\.\d s \(store\.deadline is [\d.]+ s\)", "for 30.0 s (store.deadline is 30 s)", text)
    return ""


def rewards(folder: Path) -> list[str]:
    """Rows of the page: what a rule does, and the cause that its answers get."""
    return [_row(what, said) for each in (causes, refusals) for what, said in each(folder)]


def stores(folder: Path) -> list[str]:
    """Rows of the page: the matter with the server, and what is said in the end."""
    rows = [_row(what, said) for what, said in troubles(folder / "one")]
    rows.append(_row("its memory is full", full_memory(folder / "two")))
    with small_disk(folder / "disk") as disk:
        rows.append(_row("its disk is full", full_disk(disk)))
    return rows


def _row(what: str, said: str) -> str:
    return f"| {what} | `` {said} `` |"
