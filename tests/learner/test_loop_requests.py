"""The loop on the real engine while somebody steers it: it pauses, turns its coefficients, and goes back."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from learner_parts import MemorySender, Worker, on_two_ranks, same, tiny_model
from loop_parts import loop_of, many_small_tokens, run_with_worker

from penstock.learner import checkpoints
from penstock.learner.coefficients import Coefficients
from penstock.learner.requests import Requests
from penstock.services.replay import LedgerMemo, LedgerRules
from penstock.services.store.memory import MemoryStore
from penstock.services.versions import Version

pytestmark = pytest.mark.engine


class Reports(list):
    """Reports; `act` is called once, when `step` is reported, in the loop's own thread."""

    def __init__(self, step: int, act) -> None:
        super().__init__()
        self.step, self.act = step, act

    def append(self, report):
        super().append(report)
        if report["kind"] == "step" and report["step"] == self.step and self.act is not None:
            act, self.act = self.act, None
            act()


@contextmanager
def working(store, sender):
    worker = Worker(store, sender, many_small_tokens)
    worker.start()
    try:
        yield
    finally:
        worker.stop.set()
        worker.join(10)
        assert worker.failure is None


def steps_of(reports) -> list[dict]:
    return [report for report in reports if report["kind"] == "step"]


def test_a_paused_loop_makes_no_step_writes_checkpoints_all_the_same_and_goes_on(team, tmp_path):
    store, sender = MemoryStore(), MemorySender()
    reports = Reports(2, lambda: loop.requests.pause(True, 1))
    # Shorter than the pause: what is stood out is not the workers' delay.
    loop = loop_of(team, store, sender, tmp_path, steps=4, reports=reports, staleness={"take_deadline": 2.0})
    ended: list[str] = []
    thread = threading.Thread(target=lambda: ended.append(loop.run()))
    with working(store, sender):
        thread.start()
        until(lambda: len(steps_of(reports)) == 2)
        time.sleep(1.0)
        loop.requests.checkpoint = True
        until(lambda: checkpoints.latest(tmp_path / "checkpoints") is not None)
        time.sleep(2.5)
        assert len(steps_of(reports)) == 2
        assert checkpoints.latest(tmp_path / "checkpoints").version == Version(0, 2)
        loop.requests.pause(False, 2)
        thread.join(60)
    assert ended == ["steps"]
    assert store.counts().balanced


def until(true, deadline: float = 60.0) -> None:
    ends = time.monotonic() + deadline
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_a_loop_that_begins_paused_makes_no_step_and_lets_nobody_begin_a_group_until_it_goes_on(team, tmp_path):
    store, sender, reports = MemoryStore(), MemorySender(), []
    loop = loop_of(team, store, sender, tmp_path, steps=2, reports=reports)
    loop.requests.pause(True, 0)
    thread = threading.Thread(target=loop.run)
    with working(store, sender):
        thread.start()
        until(lambda: [report["kind"] for report in reports] == ["started"])
        time.sleep(0.5)
        assert (store.gate(), store.counts().issued, steps_of(reports)) == ("held", 0, [])
        loop.requests.pause(False, 1)
        store.hold(False)
        thread.join(60)
    assert len(steps_of(reports)) == 2


def test_a_paused_loop_that_is_to_end_makes_no_further_step(team, tmp_path):
    store, sender = MemoryStore(), MemorySender()
    reports = Reports(2, lambda: loop.requests.pause(True, 1))
    loop = loop_of(team, store, sender, tmp_path, steps=9, reports=reports)
    loop._should_stop = lambda step, tokens: "asked" if loop.requests.paused and stop.is_set() else ""
    stop = threading.Event()
    threading.Timer(2.0, stop.set).start()
    assert run_with_worker(loop, store, sender) == "asked"
    assert len(steps_of(reports)) == 2
    assert checkpoints.latest(tmp_path / "checkpoints").version == Version(0, 2)


def test_what_is_turned_is_trained_with_from_the_next_step_on_and_comes_back_at_a_resume(team, tmp_path):
    store, sender = MemoryStore(), MemorySender()
    changes = {"learning_rate": 0.0025, "kl.coefficient": 0.5, "objective.clip_low": 0.1, "max_lag": 3.0}
    reports = Reports(2, lambda: loop.requests.turn(changes, 1))
    cells = {"kl": {"coefficient": 0.001}}
    loop = loop_of(team, store, sender, tmp_path, steps=4, reports=reports, **cells)
    run_with_worker(loop, store, sender)
    rows = [report["metrics"] for report in steps_of(reports)]
    assert [row["actor/lr"] for row in rows] == pytest.approx([0.01, 0.01, 0.0025, 0.0025])
    assert [row.get("actor/kl_coefficient") for row in rows] == [None, None, 0.5, 0.5]
    assert [row.get("coefficient/objective.clip_low") for row in rows] == [None, None, 0.1, 0.1]
    assert [row["off_policy/bound"] for row in rows] == [1, 1, 3, 3]
    saved = checkpoints.latest(tmp_path / "checkpoints")
    assert saved.coefficients == changes

    loop = loop_of(team, store, sender, tmp_path, steps=5, reports=(reports := []), resume=saved, **cells)
    run_with_worker(loop, store, sender)
    (row,) = [report["metrics"] for report in steps_of(reports)]
    assert row["actor/lr"] == 0.0025 and row["off_policy/bound"] == 3
    assert next(r for r in reports if r["kind"] == "started")["coefficients"]["max_lag"] == 3.0

    saved = checkpoints.latest(tmp_path / "checkpoints")
    assert saved.began["learning_rate"] == 0.01
    resumed = Coefficients({}, saved.coefficients, {**saved.began, "learning_rate": 0.004}, saved.began)
    assert "learning_rate" not in resumed.values, "whoever resumed the run with another one has said what he wants"
    assert resumed.values["kl.coefficient"] == 0.5


def test_a_learning_rate_that_was_turned_takes_the_steps_of_one_that_was_always_so(team, tmp_path):
    """Bit for bit, on the same groups."""
    after = []
    for number, (rate, turned) in enumerate([(0.002, None), (0.01, 0.002)]):
        store, sender = MemoryStore(), MemorySender()
        folder = tmp_path / str(number)
        folder.mkdir()
        loop = loop_with_rate(team, store, sender, folder, rate)
        if turned is not None:
            loop.requests.turn({"learning_rate": turned}, 1)
        run_with_worker(loop, store, sender)
        after.append(loop._crew.snapshot())
    assert same(*after)


def loop_with_rate(team, store, sender, folder: Path, rate: float):
    loop = loop_of(team, store, sender, folder, steps=2, staleness={"max_lag": 0})
    loop._crew._section = loop._crew._section.model_copy(update={"learning_rate": rate})
    return loop


def test_a_loop_goes_back_to_a_checkpoint_and_on_from_its_very_weights_in_a_new_lineage(team, tmp_path):
    store, sender = MemoryStore(), MemorySender()
    reports = Reports(5, lambda: loop.requests.roll_back(4, 0))
    loop = loop_of(team, store, sender, tmp_path, steps=7, reports=reports)
    loop.requests.turn({"learning_rate": 0.005}, 1)
    run_with_worker(loop, store, sender)
    back = next(report for report in reports if report["kind"] == "rolled_back")
    assert (back["version"], back["left"]) == ("1.3", "0.5")
    assert back["coefficients"]["learning_rate"] == 0.005, "what was turned stays turned"
    published = sender.published
    at = published.index(Version(1, 3))
    assert published[:at] == [Version(0, step) for step in range(6)]
    assert published[at:] == [Version(1, step) for step in range(3, 8)]
    assert checkpoints.latest(tmp_path / "checkpoints").version == Version(1, 7)
    assert [r["step"] for r in steps_of(reports)] == [1, 2, 3, 4, 5, 4, 5, 6, 7]
    counts = store.counts()
    assert counts.balanced
    assert counts.by_state["committed"] == 7 * 4
    tokens = [r["metrics"]["learner/tokens"] for r in steps_of(reports)]
    assert tokens[5] - tokens[2] == steps_of(reports)[5]["metrics"]["batch/tokens"]


def test_after_a_roll_back_the_newest_checkpoint_is_not_of_the_future_that_was_given_up(team, tmp_path):
    store, sender = MemoryStore(), MemorySender()
    reports = Reports(7, lambda: loop.requests.roll_back(4, 0))
    loop = loop_of(team, store, sender, tmp_path, steps=99, reports=reports)
    loop._should_stop = lambda step, tokens: "back" if loop.version.lineage == 1 else ""
    run_with_worker(loop, store, sender)
    assert checkpoints.latest(tmp_path / "checkpoints").version == Version(1, 3)
    given_up = [found.version for found in checkpoints.find(tmp_path / "checkpoints")]
    assert given_up[-1] == Version(1, 3)
    found = checkpoints.last_until(tmp_path / "checkpoints", Version(1, 5), store.forks(), 99)
    assert found.version == Version(1, 3), "also where another roll back looks for one"


def test_going_back_beyond_every_checkpoint_is_said_and_the_run_goes_on(team, tmp_path):
    store, sender = MemoryStore(), MemorySender()
    reports = Reports(4, lambda: loop.requests.roll_back(1, 0))
    loop = loop_of(team, store, sender, tmp_path, steps=6, reports=reports)
    run_with_worker(loop, store, sender)
    (warning,) = [report["why"] for report in reports if report["kind"] == "warning"]
    assert warning == "there is no checkpoint of step 1 or before to go back to; the run goes on at 0.4"
    assert loop.version == Version(0, 6)


def test_the_weights_after_a_roll_back_are_those_of_the_checkpoint_bit_for_bit(team, tmp_path):
    store, sender = MemoryStore(), MemorySender()
    taken = {}

    def keep(report):
        if report["kind"] == "checkpoint" and report["version"] == "0.3":
            taken["then"] = loop._crew.snapshot()
        if report["kind"] == "step" and report["step"] == 5 and loop.version.lineage == 0:
            loop.requests.roll_back(3, 0)
        if report["kind"] == "rolled_back":
            taken["now"] = loop._crew.snapshot()

    loop = loop_of(team, store, sender, tmp_path, steps=4)
    loop._report = keep
    loop._should_stop = lambda step, tokens: "back" if loop.version.lineage == 1 else ""
    run_with_worker(loop, store, sender)
    assert same(taken["then"], taken["now"])
    assert loop._crew.engine.updates == 3


def two_ranks_go_back(rank: int, address: str, folder: str) -> None:
    from penstock.learner.algorithms.bound import bind
    from penstock.learner.config import AlgorithmSection, LearnerSection
    from penstock.learner.crew import Crew
    from penstock.learner.engine import Engine
    from penstock.learner.engines import Engines
    from penstock.learner.ranks import join

    team = join(rank, 2, address, 60.0)
    section = LearnerSection(ranks=2, zero_stage=2, learning_rate=1e-2)
    engine = Engine(tiny_model(), section, 2)
    crew = Crew(team, Engines(engine), bind(AlgorithmSection()), section)
    if rank == 1:
        crew.follow()
        torch.save({"done": torch.ones(1)}, f"{folder}/rank-1.pt")
        return
    before = crew.snapshot()
    root, version = Path(folder) / "checkpoints", Version(0, 1)
    crew.save(checkpoints.begin(root, version))
    facts = {"ranks": 2, "zero_stage": 2, "dtype": "float32", "config_hash": "", "updates": 0, "tokens": 0}
    saved = checkpoints.seal(root, version, LedgerMemo(0, 0, {}, (), {}), {}, facts)
    with torch.no_grad():
        for parameter in engine.module.parameters():
            parameter.add_(1.0)
    changed = crew.snapshot()
    crew.load(saved.folder)
    after = crew.snapshot()
    crew.end()
    torch.save(
        {"back": torch.tensor(same(before, after)), "moved": torch.tensor(not same(before, changed))},
        f"{folder}/rank-0.pt",
    )


def test_all_ranks_go_back_together(tmp_path):
    leader, follower = on_two_ranks(two_ranks_go_back, tmp_path)
    assert bool(leader["moved"]) and bool(leader["back"])
    assert bool(follower["done"])


def test_a_bound_that_is_opened_admits_more_groups(team, tmp_path):
    store, sender, kept = MemoryStore(), MemorySender(), []
    loop = loop_of(team, store, sender, tmp_path, steps=3, reports=kept, staleness={"max_lag": 0})
    store.amend(LedgerRules(2, 4, None, 10**8))
    loop.requests.turn({"max_lag": 2.0}, 1)
    run_with_worker(loop, store, sender)
    assert [r["metrics"]["off_policy/bound"] for r in steps_of(kept)] == [2, 2, 2]
    assert store.counts().balanced


def test_a_bound_that_is_tightened_during_a_pause_holds_for_what_was_taken_before(team, tmp_path):
    """The step is full when the pause begins: its groups were taken by a bound of 2, and are of version 0.0."""
    store, sender, kept = MemoryStore(), MemorySender(), []
    loop = loop_of(team, store, sender, tmp_path, steps=3, reports=kept, staleness={"max_lag": 2})
    fill = loop._feed.next

    def pause_once_full(version, waiting, begun=None):
        fed = fill(version, waiting, begun)
        if version == Version(0, 1) and begun is None and not fed.ended:
            held.extend(group.spans[0].version for group in fed.groups)
            loop.requests.pause(True, 1)
            threading.Timer(0.5, tighten).start()
        return fed

    def tighten() -> None:
        store.amend(LedgerRules(0, 4, None, 10**8))
        loop.requests.turn({"max_lag": 0.0}, 2)
        loop.requests.pause(False, 3)

    held: list[Version] = []
    loop._feed.next = pause_once_full
    run_with_worker(loop, store, sender)
    assert Version(0, 0) in held, "something was held that the new bound does not allow"
    rows = [report["metrics"] for report in steps_of(kept)]
    assert [row["off_policy/bound"] for row in rows] == [2, 0, 0]
    assert all(row["off_policy/max"] <= row["off_policy/bound"] for row in rows)
    counts = store.counts()
    assert counts.balanced and counts.dropped["stale"] >= sum(version.step == 0 for version in held)


def test_a_report_has_what_was_turned_meanwhile_and_says_up_to_which_request(team, tmp_path):
    store, sender = MemoryStore(), MemorySender()
    loop = loop_of(team, store, sender, tmp_path, steps=3, staleness={"max_lag": 0})
    train, reports = loop._trainer.train, []

    def turned_while_it_trains(work):
        if loop.version.step == 1:
            loop.requests.turn({"learning_rate": 0.001}, 7)
        return train(work)

    loop._trainer.train, loop._report = turned_while_it_trains, reports.append
    run_with_worker(loop, store, sender)
    seen = [(r["coefficients"]["learning_rate"], r["heard"], r["metrics"]["actor/lr"]) for r in steps_of(reports)]
    assert seen == [(0.01, 0, 0.01), (0.001, 7, 0.01), (0.001, 7, 0.001)]


def test_what_is_turned_after_the_last_step_is_in_the_last_checkpoint(team, tmp_path):
    store, sender = MemoryStore(), MemorySender()
    reports = Reports(3, lambda: loop.requests.turn({"learning_rate": 0.001}, 1))
    loop = loop_of(team, store, sender, tmp_path, steps=3, reports=reports)
    run_with_worker(loop, store, sender)
    saved = checkpoints.latest(tmp_path / "checkpoints")
    assert (saved.version, saved.coefficients["learning_rate"]) == (Version(0, 3), 0.001)
    assert store.counts().balanced


def test_a_roll_back_that_is_asked_for_with_the_last_step_is_made_and_the_run_goes_on(team, tmp_path):
    store, sender = MemoryStore(), MemorySender()
    reports = Reports(4, lambda: loop.requests.roll_back(3, 0))
    loop = loop_of(team, store, sender, tmp_path, steps=4, reports=reports)
    run_with_worker(loop, store, sender)
    assert loop.version == Version(1, 4)
    assert [report["step"] for report in steps_of(reports)] == [1, 2, 3, 4, 4]


def test_a_roll_back_of_a_future_that_was_given_up_means_nothing(team, tmp_path):
    store, sender = MemoryStore(), MemorySender()
    reports = Reports(4, lambda: loop.requests.roll_back(3, 0))
    loop = loop_of(team, store, sender, tmp_path, steps=5, reports=reports)

    def late(report):
        reports.append(report)
        if report["kind"] == "rolled_back":
            loop.requests.roll_back(3, 0)

    loop._report = late
    run_with_worker(loop, store, sender)
    assert loop.version == Version(1, 5)


def test_of_requests_about_the_same_thing_the_younger_one_counts_whichever_comes_first():
    requests = Requests()
    requests.pause(False, 4)
    requests.pause(True, 3)
    assert not requests.paused
    requests.turn({"a": 2.0}, 6)
    requests.turn({"a": 1.0, "b": 1.0}, 5)
    assert requests.turned() == {"a": 2.0, "b": 1.0}
    assert (requests.turned(), requests.heard) == ({}, 6)


def test_while_somebody_keeps_the_gate_closed_the_workers_are_not_late(team, tmp_path):
    """The gate stays closed for longer than the learner would wait for its groups."""
    store, sender = MemoryStore(), MemorySender()
    reports = Reports(2, lambda: store.hold(True))
    loop = loop_of(team, store, sender, tmp_path, steps=4, reports=reports, staleness={"take_deadline": 2.5})

    def open_it() -> None:
        until(lambda: len(steps_of(reports)) >= 2)
        time.sleep(6)
        store.hold(False)

    opener = threading.Thread(target=open_it)
    opener.start()
    assert run_with_worker(loop, store, sender) == "steps"
    opener.join()
