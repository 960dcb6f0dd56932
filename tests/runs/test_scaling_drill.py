"""Workers and scorers that come and go, in a drill: answers are paced and long, so that the pace of a run follows the
number of workers, and whoever leaves does so in the middle of answers. Every token is accounted for."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from driven import begun, driven
from ray_clusters import until

import penstock
from benchmarks.drills import RECIPE, Onlooker, inputs_in, played
from penstock.services.control import Pause, Refused, Remove, Resume, Scale, Stop
from penstock.services.mailbox import MailboxControl

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.story]

OVERRIDES = [
    "name=drill-scaled",
    "rollout.max_workers=3",
    "rollout.max_groups=2",
    "rollout.sampling.max_tokens=100",
    "engine.max_model_len=112",
    "engine.paced.tokens_per_second=400",
    "engine.paced.mean_length=60",
    "reward.max_scorers=3",
    "learner.groups_per_step=4",
    "staleness.max_lag=8",
    "limits.steps=100000",
    "checkpoints.every=50",
]
WINDOW = 15.0


def put(onlooker: Onlooker) -> int:
    """Groups that have reached the store."""
    assert onlooker.view is not None and onlooker.view.ledger is not None
    return sum(onlooker.view.ledger.by_state[state] for state in ("stored", "taken", "applied", "committed"))


def pace(onlooker: Onlooker) -> float:
    """Groups per second, over a while."""
    assert onlooker.view is not None
    began, before = onlooker.view.at, put(onlooker)
    time.sleep(WINDOW)
    return (put(onlooker) - before) / (onlooker.view.at - began)


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> tuple:
    """(run, paces by number of workers in their order): 1, 3, 1, 0, 2 workers, and 1, 3, 1 scorers meanwhile."""
    paces: list[tuple[int, float]] = []

    def play(onlooker: Onlooker) -> None:
        send = onlooker.control.send
        paces.append((1, pace(onlooker)))
        send(Scale("scorer", 3), "story")
        send(Scale("rollout", 3), "story")
        onlooker.joined("scorer-1", "scorer-2")
        onlooker.delivered("rollout-1", "rollout-2")
        paces.append((3, pace(onlooker)))
        send(Remove("scorer-0"), "story")
        send(Scale("rollout", 1), "story")
        onlooker.left("rollout-1", "rollout-2", "scorer-0")
        paces.append((1, pace(onlooker)))
        send(Scale("rollout", 0), "story")
        onlooker.left("rollout-0")
        onlooker.wait("nothing comes any more", lambda: pace(onlooker) == 0)
        send(Scale("scorer", 1), "story")
        send(Scale("rollout", 2), "story")
        onlooker.delivered("rollout-3", "rollout-4")
        onlooker.left("scorer-2")
        paces.append((2, pace(onlooker)))
        with pytest.raises(Refused, match="without a scorer no answer reaches the learner"):
            send(Scale("scorer", 0), "story")
        send(Stop("the story is over"), "story")

    folder: Path = tmp_path_factory.mktemp("drill")
    return played(RECIPE / "drill.yaml", [*inputs_in(folder), *OVERRIDES], play), paces


def test_the_pace_of_the_run_follows_the_number_of_workers(story):
    _, paces = story
    assert [workers for workers, _ in paces] == [1, 3, 1, 2]
    alone = (paces[0][1] + paces[2][1]) / 2
    for workers, measured in paces:
        assert measured == pytest.approx(workers * alone, rel=0.25)


def test_no_token_is_sampled_twice_and_none_is_thrown_away(story):
    """What the engines have sampled is what came to the store and what was unfinished at the end, and nothing else."""
    run, _ = story
    whole = run.summary["tokens"]["at_workers"]
    assert whole["sampled"] + whole["resumed"] == whole["put"] + whole["handed_back"] + whole["dropped"]
    assert whole["dropped"] == 0
    left = [event.facts["tokens"] for event in run.events if event.kind == "left" and "rollout" in event.facts["name"]]
    assert len(left) == 3
    assert sum(tokens["handed_back"] for tokens in left) == whole["resumed"] > 0
    unfinished_at_the_end = whole["handed_back"] - whole["resumed"]
    assert whole["sampled"] == whole["put"] + unfinished_at_the_end


def test_the_ledger_is_balanced_and_nothing_was_dropped_or_started_again(story):
    run, _ = story
    ledger = run.summary["ledger"]
    assert ledger["balanced"] and set(ledger["dropped"]) <= {"run_ended"} and ledger["refused"] == {}
    assert ledger["by_state"]["committed"] == 4 * run.summary["steps"]
    assert run.summary["restarts"] == {}
    scored = {event.facts["name"]: event.facts.get("groups") for event in run.events if event.kind == "left"}
    assert scored["scorer-0"] > 0 and scored["scorer-2"] > 0


def test_everything_that_was_asked_for_is_an_event(story):
    run, _ = story
    assert [event.facts["by"] for event in run.events if event.kind == "steered"] == ["story"] * 8
    assert [event.facts["by"] for event in run.events if event.kind == "refused"] == ["story"]


def bounds(run) -> list[float]:
    """The bound on the lag under which the steps were made, each as often as it changed."""
    seen = run.metrics["off_policy/bound"].dropna().tolist()
    return [bound for number, bound in enumerate(seen) if number == 0 or bound != seen[number - 1]]


def followed(folder: Path, *overrides: str):
    """A drill whose bound follows, with a learner that waits for its one worker."""
    given = ["name=drill-lag", "staleness.max_lag.every=3", "checkpoints.every=5", "rollout.max_groups=2", *overrides]
    return penstock.train(RECIPE / "drill.yaml", [*inputs_in(folder), *given])


def test_the_bound_follows_the_worth_of_old_groups_and_comes_back_with_a_resume(tmp_path):
    """Nothing is learned in a drill, so old groups are worth as much as new ones: the bound goes up to its end. Asked
    for more than the groups of a drill are worth, which no model has sampled, it goes down to it."""
    up = followed(tmp_path, "staleness.max_lag={min: 1, max: 3, target_ess: 0.5, every: 3}", "limits.steps=24")
    assert bounds(up) == [1, 2, 3]
    steered = [event.facts for event in up.events if event.kind == "steered"]
    assert [(facts["by"], facts["asked"]["bound"]) for facts in steered] == [
        ("max_lag control", 2),
        ("max_lag control", 3),
    ]
    said = [event.message for event in up.events if event.kind == "max_lag"]
    assert said[0].startswith("over 3 steps at max_lag 1 the effective sample size was 0.9")
    assert up.summary["lag"]["max"] <= 3
    again = penstock.resume(up.dir, ["limits.steps=28"])
    assert bounds(again) == [1, 2, 3], "it goes on with the bound that it had"
    wish = "staleness.max_lag={min: 1, max: 3, start: 3, target_ess: 0.9998, margin: 0.0001, every: 3}"
    down = followed(tmp_path, wish, "limits.steps=24")
    assert bounds(down) == [3, 2, 1]
    assert down.summary["ledger"]["balanced"]


def test_a_run_whose_driver_is_killed_while_it_is_paused_and_scaled_is_paused_still_when_it_is_resumed(tmp_path):
    def steps() -> int:
        return len(penstock.open_run(directory.path).metrics["step"])

    given = ("name=drill-paused", "checkpoints.every=2", "limits.steps=100000")
    with begun(tmp_path, *given) as (driver, directory):
        until("it makes steps", lambda: steps() > 4, 90)
        control = MailboxControl(directory)
        control.send(Pause(), "story")
        control.send(Scale("rollout", 3), "story")
        driver.kill()
        driver.wait(30)
    with driven("resume", str(directory.path)) as driver:
        until("it trains again", lambda: (directory.read_status() or {}).get("pid") == driver.pid, 60)
        told = "the run is paused still, by story; `penstock go` lets it go on"
        until("it says so", lambda: told in [event.message for event in directory.read_events()], 90)
        before = steps()
        time.sleep(5)
        assert steps() == before
        control.send(Resume(), "story")
        until("it goes on", lambda: steps() > before + 3, 60)
        control.send(Stop("enough"), "story")
        assert driver.wait(90) == 0
    summary = directory.read_summary()
    assert summary is not None and summary["outcome"] == "finished"
    assert summary["ledger"]["balanced"] and summary["version"].startswith("1.")
