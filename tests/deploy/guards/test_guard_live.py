"""What is measured between steps."""

from __future__ import annotations

from penstock.deploy.guards.live import Live
from penstock.services.replay import STATES, LedgerCounts
from penstock.services.versions import FIRST


def counts(refused: int = 0, **states: int) -> LedgerCounts:
    by_state = dict.fromkeys(STATES, 0) | states
    by_state["dropped"] += refused
    return LedgerCounts(
        sum(by_state.values()), by_state, {}, 0, FIRST, refused={"unscored": refused} if refused else {}
    )


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_share_of_refused_groups_is_of_those_that_ended_within_a_minute():
    clock = Clock()
    live = Live(clock)
    assert "ledger/refused_share" not in live.read(counts(stored=3))
    clock.now = 30
    assert live.read(counts(stored=5, refused=6))["ledger/refused_share"] == 6 / 8
    clock.now = 91
    # Since the look at 30 s only: eight came in, all of them refused; those the learner dropped had come in.
    assert live.read(counts(committed=4, dropped=1, refused=14))["ledger/refused_share"] == 8 / 8
    clock.now = 200
    assert "ledger/refused_share" not in live.read(counts(committed=4, dropped=1, refused=16)), "too few to say"


def test_the_time_since_the_last_step_grows_until_there_is_one():
    clock = Clock()
    live = Live(clock)
    clock.now = 12.5
    assert live.read(None) == {"run/since_step": 12.5, "run/nonfinite": 0.0}
    live.stepped()
    live.skipped()
    assert live.read(None) == {"run/since_step": 0.0, "run/nonfinite": 1.0}
