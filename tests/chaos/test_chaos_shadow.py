"""The checker against a real server that is used as it should be, and against planted faults."""

from __future__ import annotations

import itertools

import pytest
import redis

from chaos.aof import AofReader
from chaos.shadow import Shadow
from chaos.versions_seen import At, led_to, way_to
from penstock.services.replay import LedgerRules
from penstock.services.store.server import PrivateServer
from penstock.services.versions import FIRST, Version

RUN = "chaos"
STEP = 4


class Books:
    """A ledger on a real server, driven step by step, and what the checker makes of its file."""

    def __init__(self, folder, server):
        self.store = server.address(RUN).connect()
        self.raw = redis.Redis.from_url(server.url, password=server.address("look").password, protocol=2)
        self.shadow = Shadow(RUN)
        self._reader = AofReader(folder)
        self._asked = itertools.count()
        self.version = FIRST
        self.store.attach(LedgerRules(max_lag=2, groups_per_step=STEP, prompts=None, max_bytes=2**20))
        self.begin(FIRST)

    def begin(self, version, memo=None):
        issued = memo.issued if memo is not None else 0
        self.version = self.store.reconcile(version, issued, f"start-{next(self._asked)}", memo)

    def play(self, count=STEP):
        """So many groups are played and stored; their prompts."""
        granted = self.store.reserve("w", self.version, count, 30.0, f"ask-{next(self._asked)}").tickets
        for ticket in granted:
            self.store.put(ticket, b"group", self.version)
        return [ticket.index for ticket in granted]

    def step(self):
        """One train step on whatever is stored; the prompts that it used."""
        taken = self.store.take(self.version, STEP)
        self.version = self.version.next()
        self.store.advance(self.version)
        return sorted(stored.index for stored in taken.groups)

    def checkpoint(self):
        memo = self.store.memo(self.version)
        self.store.commit(self.version)
        return self.version, memo

    def key(self, name):
        return f"penstock:{{{RUN}}}:{name}"

    @property
    def found(self):
        """Promises that the checker found broken so far."""
        for transaction in self._reader.new():
            self.shadow.feed(transaction)
        return [violation.promise for violation in self.shadow.violations]


@pytest.fixture
def books(tmp_path):
    with PrivateServer(tmp_path / "store", tmp_path / "redis.log") as server:
        yield Books(tmp_path / "store", server)


def test_an_ordinary_life_breaks_no_promise_and_is_followed_prompt_by_prompt(books):
    first, second = books.play(), books.play()
    assert (books.step(), books.step()) == (first, second)
    books.checkpoint()
    third = books.play(3)
    assert books.found == []
    shadow = books.shadow
    assert sorted(shadow.committed) == first + second
    assert shadow.steps == {At(0, 1): frozenset(first), At(0, 2): frozenset(second)}
    assert shadow.holds("stored") == set(third) and shadow.missing() == set()
    books.store.drain("over")
    assert books.found == [] and shadow.dropped == set(third) and shadow.places == {}


def test_a_crash_before_the_checkpoint_delivers_again_and_that_is_no_fault(books):
    books.play(), books.step()
    version, memo = books.checkpoint()
    later = books.play()
    books.step()
    books.begin(version, memo)
    assert books.found == []
    assert books.shadow.holds("stored") == set(later) and books.shadow.delivered_again == STEP
    assert books.step() == later
    assert books.found == []
    assert books.shadow.applied_at[later[0]] == [At(0, 2), At(1, 2)]


def test_a_fall_back_behind_the_last_commit_issues_prompts_anew_and_that_is_no_fault(books):
    books.play(), books.step()
    version, memo = books.checkpoint()
    books.play(), books.step(), books.checkpoint()
    books.begin(version, memo)
    again = books.play()
    assert books.step() == again == [4, 5, 6, 7]
    assert books.found == []
    assert sorted(books.shadow.committed) == [0, 1, 2, 3]


def test_leases_that_end_are_counted_when_somebody_else_is_given_the_group(books):
    ticket = books.store.reserve("w", books.version, 1, 0.0, "short").tickets[0]
    other = books.store.reserve("v", books.version, 1, 30.0, "next").tickets[0]
    assert ticket.index == other.index
    assert books.found == [] and books.shadow.leased_again == 1


def test_a_group_that_is_applied_twice_is_found(books):
    played = books.play()
    books.step()
    books.play(STEP - 1)
    pipe = books.raw.pipeline()  # one that was used already is slipped under the next step's
    pipe.zrem(books.key("applied"), played[0]).zadd(books.key("taken"), {played[0]: 1})
    pipe.hset(books.key(f"entry:{played[0]}"), "state", "taken").execute()
    books.step()
    assert "twice" in books.found
    assert any("used by step 0.1 and again by step 0.2" in v.found for v in books.shadow.violations)


def test_a_committed_group_that_comes_back_after_a_new_start_is_found(books):
    played = books.play()
    books.step()
    version, _ = books.checkpoint()
    books.found  # noqa: B018
    pipe = books.raw.pipeline()
    pipe.hset(books.key("meta"), mapping={"reconcile": "x", "lineage": 1, "step": version.step})
    pipe.hset(books.key("forks"), "1", str(version)).zadd(books.key("returned"), {played[0]: played[0]})
    pipe.hset(books.key(f"entry:{played[0]}"), "state", "returned").execute()
    assert "twice" in books.found


def test_a_prompt_that_is_lost_is_found(books):
    played = books.play()
    pipe = books.raw.pipeline()
    pipe.zrem(books.key("stored"), played[1]).unlink(books.key(f"entry:{played[1]}")).execute()
    assert books.found == ["balance"]


def test_a_prompt_that_is_lost_and_counted_as_dropped_is_found_after_a_fall_back(books):
    books.play(), books.step()
    version, _ = books.checkpoint()
    lost = books.play()[0]
    books.found  # noqa: B018
    pipe = books.raw.pipeline()
    pipe.zrem(books.key("stored"), lost).unlink(books.key(f"entry:{lost}")).delete(books.key("drops"))
    pipe.hset(books.key("drops"), "invented", 1)
    pipe.hset(books.key("meta"), mapping={"reconcile": "x", "lineage": 1, "step": version.step})
    pipe.hset(books.key("forks"), "1", str(version)).execute()
    assert books.found == ["lost"]


def test_a_version_that_goes_back_or_jumps_is_found(books):
    books.play(), books.step()
    books.raw.hset(books.key("meta"), "step", 0)
    assert books.found == ["backwards"]
    books.raw.hset(books.key("meta"), "step", 2)
    assert books.found == ["backwards", "backwards"]


def test_a_prompt_in_two_states_and_a_wrong_count_are_found(books):
    played = books.play()
    books.raw.zadd(books.key("returned"), {played[0]: played[0]})
    assert books.found == ["balance"]
    books.raw.hincrby(books.key("meta"), "committed", 1)
    assert books.found[1:] and set(books.found) == {"balance"}


@pytest.mark.parametrize("version", [Version(0, 3), Version(1, 4), Version(2, 4), Version(3, 6)])
def test_the_way_to_a_version_is_that_of_the_product(version):
    """Forks: 1 from 0.3, 2 from 0.5, 3 from 1.4. The product counts by the last common step."""
    from penstock.services.staleness import common_step

    forks = {1: Version(0, 3), 2: Version(0, 5), 3: Version(1, 4)}
    mine = {lineage: At(fork.lineage, fork.step) for lineage, fork in forks.items()}
    way = way_to(At(version.lineage, version.step), mine)
    for lineage, last in way.items():
        assert last == min(common_step(version, lineage, forks), last)
    begins = {0: 0, 1: 3, 2: 5, 3: 4}
    for lineage, step in itertools.product(range(4), range(8)):
        on_way = led_to(At(lineage, step), way, mine)
        if on_way:
            assert begins[lineage] < step <= common_step(version, lineage, forks)
