"""Where a ledger under test lives: on a Redis server behind a bad network, or in memory. Both can be looked into
without the ledger's own words, and let time pass without waiting."""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from ledger_faults import Network
from ledger_model import ENDED, OUTSTANDING, REPLY_KEPT, Model

from penstock.services.replay import LedgerRules
from penstock.services.store.ledger import RedisStore
from penstock.services.store.memory import MemoryStore
from penstock.services.store.server import PrivateServer
from penstock.services.versions import Version

TICK = 60.0
"""The unit in which time passes. Leases last odd halves of it, so that the few seconds which the test itself takes
never decide whether one has ended."""
LARGE = 4 * 2**20
"""An append-only file of so many bytes is given up for a new one."""
_runs = itertools.count()


@dataclass(frozen=True)
class Group:
    """One living prompt, as it lies in the store. What has no meaning in its state is empty."""

    state: str
    fence: int
    leased: bool
    payload: bytes
    ends: int = 0
    """Ticks until the end of its lease, rounded up (state reserved)."""
    binding: str = ""
    step: int = -1


@dataclass(frozen=True)
class Aside:
    """What is no prompt."""

    rules: LedgerRules | None
    held: bool
    draining: bool
    last_commit: Version | None
    reconciled: str
    """The request of the last learner that came."""
    answered: dict[str, str]
    """Worker → its last reservation's request, while the answer is kept."""
    pinned: set[str]
    present: set[str]


@dataclass(frozen=True)
class Content:
    """All that is in a store, read without its own calls."""

    now: Version | None
    groups: dict[int, Group]
    committed: int
    dropped: dict[str, int]
    issued: int
    next_prompt: int
    forks: dict[int, Version]
    aside: Aside

    def indices(self, *states: str) -> set[int]:
        return {index for index, group in self.groups.items() if group.state in states}

    @property
    def outstanding(self) -> int:
        return len(self.indices(*OUTSTANDING))


def group(prompt: Any, state: str, leased: bool, remaining: float) -> Group:
    """From an entry of the memory store or a prompt of the model, which name their fields alike."""
    bound = state in ("stored", "taken", "applied")
    return Group(
        state,
        prompt.fence,
        leased,
        prompt.payload,
        math.ceil(remaining / TICK) if state == "reserved" else 0,
        str(prompt.binding) if bound else "",
        prompt.step if state in ("taken", "applied") else -1,
    )


def content_of(model: Model) -> Content:
    """What a store must have in it when the model is right."""
    return Content(
        model.now,
        {
            index: group(p, p.state, p.leased, p.ends - model.clock)
            for index, p in model.prompts.items()
            if p.state not in ENDED
        },
        len(model.indices("committed")),
        dict(model.dropped()),
        len(model.prompts),
        model.next_prompt(),
        dict(model.forks),
        Aside(
            model.rules,
            model.held,
            model.draining,
            model.last_commit,
            model.last_reconcile[0] if model.last_reconcile else "",
            {worker: said for worker, (said, at, _) in model.replies.items() if model.clock - at < REPLY_KEPT},
            {f"{version} {reader}" for (version, reader), ends in model.pins.items() if ends > model.clock},
            set(model.workers()),
        ),
    )


class MemoryPlace:
    """The store in memory, with a clock of its own. It knows no network, and dies with its process."""

    durable = False

    def begin(self) -> None:
        """A new run."""
        self.clock = 1000.0
        self.lose_disk()

    def connect(self) -> MemoryStore:
        return self.store

    def time_passes(self, ticks: int) -> None:
        self.clock += ticks * TICK

    def now(self) -> float:
        """By the store's clock."""
        return self.clock

    def content(self) -> Content:
        book = self.store
        index = book._cursor
        while index in book._ahead:
            index += 1
        return Content(
            book._now,
            {i: group(e, e.state, e.leased, e.expires - self.clock) for i, e in book._entries.items()},
            book._committed,
            {reason: count for reason, count in book._drops.items() if count},
            book._issued,
            index,
            dict(book._forks),
            Aside(
                book._rules,
                book._by_hand,
                book._draining,
                book._last_commit,
                book._reconciled[0] if book._reconciled else "",
                {worker: said for worker, (said, at, _) in book._replies.items() if self.clock - at < REPLY_KEPT},
                {f"{version} {reader}" for version, reader in book._pins.living()},
                set(book._workers.living()),
            ),
        )

    def lose_disk(self) -> None:
        """Everything is gone."""
        self.store = self.onlooker = MemoryStore(clock=lambda: self.clock)

    def end(self) -> None:
        pass


class RedisPlace:
    """A private server of its own, which may be killed, behind a network that may be told to fail."""

    durable = True

    def __init__(self, folder: Path, fsync: str = "never") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._data = folder / "store"
        self.server = PrivateServer(self._data, folder / "store.log", fsync=fsync)
        self._wipe()
        self.network = Network(self.server, Path(self.server.url.removeprefix("unix://")).parent)
        self.raw = redis.Redis.from_url(self.server.url, password=self.server.address("look").password, protocol=2)

    def begin(self) -> None:
        self.run_id = f"machine-{next(_runs)}"
        self._prefix = f"penstock:{{{self.run_id}}}:"
        self._stores: list[RedisStore] = []
        self.onlooker = self.server.address(self.run_id).connect()
        """Its connection never fails."""

    def connect(self) -> RedisStore:
        """A client of its own, through the network."""
        self._stores.append(RedisStore(self.network.url, self.run_id, deadline=60.0))
        return self._stores[-1]

    def end(self) -> None:
        """Leave nothing of the run."""
        self.network.plan()
        self.network.late.clear()
        keys = self._keys("*")
        assert self.connect().erase() == len(keys)
        assert not self._keys("*")
        for store in (*self._stores, self.onlooker):
            store.close()
        if self.written() > LARGE:
            self.lose_disk()

    def stop(self) -> None:
        self.raw.close()
        self.network.close()
        self.server.stop()

    # --- accidents ----------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL, and a new start on the same file."""
        self.network.kill()
        self._start()

    def written(self) -> int:
        """Bytes of the append-only file."""
        return self._file().stat().st_size

    def lose_power(self, bytes_kept: int) -> None:
        """The host stops and has not written all of the file; then it comes back."""
        self.network.kill()
        os.truncate(self._file(), bytes_kept)
        self._start()

    def lose_disk(self) -> None:
        """The server and its file are gone; a new one starts empty."""
        self.network.kill()
        self._wipe()

    def _wipe(self) -> None:
        for path in (*self._data.glob("appendonly.aof"), *self._data.glob("appendonlydir/*")):
            path.unlink()
        self._start()

    def _start(self) -> None:
        self.server.start()
        with redis.Redis.from_url(self.server.url, password=self.server.address("look").password, protocol=2) as client:
            client.config_set("auto-aof-rewrite-percentage", 0)  # offsets in the file shall stay what they are

    def _file(self) -> Path:
        """The append-only file; Redis 7 keeps it in parts, of which the last grows."""
        one = self._data / "appendonly.aof"
        return one if one.is_file() else max((self._data / "appendonlydir").glob("*.incr.aof"))

    # --- time ---------------------------------------------------------------------------------------

    def time_passes(self, ticks: int) -> None:
        """Move everything that has a time towards the past, which is the same."""
        seconds = ticks * TICK
        for name in ("reserved", "since", "pins", "workers"):
            for member in self.raw.zrange(self._prefix + name, 0, -1):
                self.raw.zincrby(self._prefix + name, -seconds, member)
        for key in self._keys("reply:*"):
            self.raw.pexpire(key, int(self.raw.pttl(key) - 1000 * seconds))

    def now(self) -> float:
        seconds, micros = self.raw.time()
        return seconds + micros / 1e6

    # --- looking into it ----------------------------------------------------------------------------

    def content(self) -> Content:
        """Also looks whether what is written twice is written alike."""
        read = self._read()
        meta, queues = read["meta"], read["queues"]
        states = [state for queue in queues.values() for state in queue]
        assert len(states) == len(set(states)), f"a prompt lies in two queues: {queues}"
        assert set(states) == set(read["entries"]), f"entries and queues do not agree: {queues}, {read['entries']}"
        groups = {}
        for state, queue in queues.items():
            for index, score in queue.items():
                entry = read["entries"][index]
                assert entry[b"state"].decode() == state, f"{index} lies in {state} and says {entry}"
                assert state != "returned" or score == index
                groups[index] = self._group(state, score, entry, read["time"])
        assert len(read["unmade"]) == 0, f"keys that nobody knows: {read['unmade']}"
        assert int(meta.get(b"bytes", 0)) == sum(len(group.payload) for group in groups.values())
        stored = {index for index, group in groups.items() if group.state == "stored"}
        assert read["since"] == stored
        assert read["bindings"] == Counter(groups[index].binding for index in stored)
        issued, ahead = int(meta.get(b"issued", 0)), read["ahead"]
        nexts = issued - len(ahead)
        while nexts in ahead:
            nexts += 1
        lineage = meta.get(b"lineage")
        return Content(
            None if lineage is None else Version(int(lineage), int(meta[b"step"])),
            groups,
            int(meta.get(b"committed", 0)),
            {reason.decode(): int(count) for reason, count in read["drops"].items()},
            issued,
            nexts,
            {int(lineage): Version.parse(version.decode()) for lineage, version in read["forks"].items()},
            self._aside(meta, read),
        )

    @staticmethod
    def _aside(meta: dict[bytes, bytes], read: dict[str, Any]) -> Aside:
        rules = None
        if b"max_lag" in meta:
            lag, groups, prompts, size = (
                int(meta[k]) for k in (b"max_lag", b"groups_per_step", b"prompts", b"max_bytes")
            )
            rules = LedgerRules(lag, groups, None if prompts == -1 else prompts, size)
        commit = [int(meta[key]) for key in (b"commit_lineage", b"commit_step") if key in meta]
        return Aside(
            rules,
            b"held" in meta,
            b"draining" in meta,
            Version(*commit) if commit else None,
            meta.get(b"reconcile", b"").decode(),
            read["answered"],
            {pin.decode() for pin, ends in read["pins"] if ends > read["time"]},
            {worker.decode() for worker, ends in read["workers"] if ends > read["time"]},
        )

    @staticmethod
    def _group(state: str, score: float, entry: dict[bytes, bytes], now: float) -> Group:
        return Group(
            state,
            int(entry[b"fence"]),
            state == "reserved" or (state == "returned" and entry.get(b"lapsed") == b"1"),
            entry.get(b"payload", b""),
            math.ceil((score - now) / TICK) if state == "reserved" else 0,
            entry[b"binding"].decode() if state in ("stored", "taken", "applied") else "",
            int(score) if state in ("taken", "applied") else -1,
        )

    def _read(self) -> dict[str, Any]:
        """The run's keys, in two trips."""
        keys = {key.decode().removeprefix(self._prefix) for key in self._keys("*")}
        names = ("returned", "reserved", "stored", "taken", "applied")
        entries = sorted(int(key.removeprefix("entry:")) for key in keys if key.startswith("entry:"))
        pipe = self.raw.pipeline(transaction=False)
        pipe.time()
        for name in ("meta", "drops", "forks", "bindings"):
            pipe.hgetall(self._prefix + name)
        pipe.smembers(self._prefix + "ahead")
        pipe.zrange(self._prefix + "since", 0, -1)
        for name in ("pins", "workers"):
            pipe.zrange(self._prefix + name, 0, -1, withscores=True)
        for name in names:
            pipe.zrange(self._prefix + name, 0, -1, withscores=True)
        for index in entries:
            pipe.hgetall(f"{self._prefix}entry:{index}")
        workers = [key.removeprefix("reply:") for key in keys if key.startswith("reply:")]
        for worker in workers:
            pipe.hget(f"{self._prefix}reply:{worker}", "request")
        (seconds, micros), meta, drops, forks, bindings, ahead, since, pins, present, *rest = pipe.execute()
        known = {
            *names,
            *["meta", "drops", "forks", "bindings", "ahead", "since", "refused", "causes", "workers", "facts", "pins"],
            *["arrived", "waiting"],
        }
        return {
            "time": seconds + micros / 1e6,
            "meta": meta,
            "drops": drops,
            "forks": forks,
            "bindings": {binding.decode(): int(count) for binding, count in bindings.items()},
            "ahead": set(map(int, ahead)),
            "since": set(map(int, since)),
            "queues": {name: {int(i): score for i, score in found} for name, found in zip(names, rest, strict=False)},
            "entries": dict(zip(entries, rest[len(names) :], strict=False)),
            "answered": dict(zip(workers, (said.decode() for said in rest[len(names) + len(entries) :]), strict=True)),
            "pins": pins,
            "workers": present,
            "unmade": {key for key in keys - known if key.split(":")[0] not in ("entry", "reply", "opened")},
        }

    def _keys(self, pattern: str) -> list[bytes]:
        return self.raw.keys(self._prefix + pattern)
