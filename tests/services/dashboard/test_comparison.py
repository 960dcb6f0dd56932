"""Two runs side by side, by hand, and the API that the page asks."""

from __future__ import annotations

from pathlib import Path

import compared
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from penstock.services.dashboard.answers import NotRecorded
from penstock.services.dashboard.compare import compare_router
from penstock.services.dashboard.comparison import Comparison, Difference, Side, compare, curves, differing
from penstock.services.metrics import MetricsLog
from penstock.services.rundir import RunDir
from penstock.services.versions import Version


@pytest.fixture
def runs(tmp_path: Path) -> tuple[RunDir, RunDir]:
    """80 steps with lag and 60 without, which learned faster."""
    first = compared.end(compared.run_of(tmp_path, "carry", 80))
    return first, compared.run_of(tmp_path, "carry", 60, rate=3e-4, max_lag=0, reward=0.02)


def figures(found: Comparison) -> dict[str, tuple[float | str | None, float | str | None]]:
    return {figure.name: (figure.a, figure.b) for figure in found.figures}


def test_keys_that_differ_and_keys_that_only_one_has() -> None:
    a = {"seed": 0, "learner": {"lr": 1, "betas": [0.9, 0.99]}, "goals": [], "only": {"here": None}}
    b = {"seed": 0, "learner": {"lr": 2, "betas": [0.9, 0.95]}, "goals": [{"metric": "x"}]}
    assert differing(a, b) == [
        Difference("learner.lr", 1, 2),
        Difference("learner.betas.1", 0.99, 0.95),
        Difference("goals", [], None, "a"),
        Difference("only.here", None, None, "a"),
        Difference("goals.0.metric", None, "x", "b"),
    ]
    assert differing(a, a) == []


def test_by_hand_what_came_of_both(runs: tuple[RunDir, RunDir]) -> None:
    found = figures(compare(*(Side.read(run) for run in runs)))
    assert found["state"] == ("finished", "never started")
    assert found["steps"] == (80, 60)
    assert found["tokens trained on"] == (800, 600)
    assert found["training"] == (40, 30)
    assert found["one step"] == (0.5, 0.5)
    assert found["of that, waiting for groups"] == (0.125, 0.125)
    assert found["mean"] == (0.5, 0.5)
    assert found["largest"] == (1, 1)
    assert found["groups dropped, stale"] == (80, 60)
    # The last twenty steps are 61 to 80 at 0.01 each: 0.705; and 41 to 60 at 0.02: 1.01.
    assert found["reward/mean, last 20 steps"] == pytest.approx((0.705, 1.01))
    assert found["eval/sampled/accuracy, first"] == (0.01, 0.01)
    assert found["eval/sampled/accuracy, last"] == (0.8, 0.6)
    # Neither has recorded what the rollout workers do.
    assert "rollout" not in found


def test_deaths_are_counted_once_whatever_is_told_of_them(runs: tuple[RunDir, RunDir]) -> None:
    one, other = runs
    for kind in ("died", "restarted", "restarted", "died", "restarted", "restarted"):
        one.add_event(kind, kind, name="rollout-1")
    one.add_event("restarted", "the private store died and was started again", name="store")
    for _ in range(3):
        other.add_event("published", "the learner begins")
    other.add_event("warning", "look")
    other.add_event("guard", "kl/reference > 0.2", what="fired")
    other.add_event("guard", "kl/reference > 0.2, as often as it may", what="exhausted")
    other.add_event("rolled_back", "to 0.4")
    found = figures(compare(Side.read(one), Side.read(other)))
    assert found["deaths"] == (3, 0)
    assert found["deaths of rollout-1"] == (2, None)
    assert found["deaths of store"] == (1, None)
    assert found["resumed"] == (0, 2)
    assert found["rolled back"] == found["guards fired"] == found["warnings"] == (0, 1)


def test_a_run_whose_driver_is_gone_is_said_to_have_died(runs: tuple[RunDir, RunDir]) -> None:
    runs[1].write_status({"phase": "training", "step": 60})
    assert figures(compare(*map(Side.read, runs)))["state"] == ("finished", "died while training")
    runs[1].lock()
    assert figures(compare(*map(Side.read, runs)))["state"] == ("finished", "training")
    runs[1].unlock()


@pytest.mark.parametrize(("over", "last"), [("steps", (80, 60)), ("tokens", (800, 600)), ("seconds", (40, 30))])
def test_a_metric_of_both_along_steps_tokens_and_seconds(
    runs: tuple[RunDir, RunDir], over: str, last: tuple[float, float]
) -> None:
    found = curves([Side.read(run) for run in runs], "reward/mean", over)  # type: ignore[arg-type]  # parametrised
    assert [curve.label for curve in found.series] == [run.path.name for run in runs]
    assert tuple(curve.x[-1] for curve in found.series) == last
    assert [curve.y[-1] for curve in found.series] == pytest.approx([0.8, 1.2])


def test_a_long_curve_is_the_mean_of_stretches_of_steps(runs: tuple[RunDir, RunDir]) -> None:
    curve = curves([Side.read(runs[0])], "reward/mean", "steps", points=12).series[0]
    # Buckets of eight steps: 1 to 7, 8 to 15, …, 80.
    assert len(curve.x) == 11
    assert curve.x[:2] == [4.0, 11.5]
    assert curve.y[:2] == pytest.approx([0.04, 0.115])


def test_a_metric_that_is_measured_now_and_then_has_so_many_points(runs: tuple[RunDir, RunDir]) -> None:
    curve = curves([Side.read(runs[0])], "eval/sampled/accuracy", "tokens").series[0]
    assert (curve.x, curve.y) == ([10.0, 800.0], pytest.approx([0.01, 0.8]))


def test_what_a_resume_gave_up_is_not_compared(tmp_path: Path) -> None:
    run = compared.run_of(tmp_path, "carry", 10)
    log = MetricsLog(run.metrics)
    log.begin(Version(1, 6), 500.0)
    log.write(Version(1, 7), {"reward/mean": 0.9, "time/step": 2.0, "learner/tokens": 70.0}, 502.0)
    log.close()
    curve = curves([Side.read(run)], "reward/mean", "seconds").series[0]
    # Six steps of half a second and one of two; the time between is nobody's.
    assert curve.x == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0]
    assert curve.y[-1] == pytest.approx(0.9)


def test_a_metric_that_neither_has_is_refused_with_the_nearest(runs: tuple[RunDir, RunDir]) -> None:
    with pytest.raises(NotRecorded, match=r"no metric 'reward/men' in .*; nearest: reward/mean"):
        curves([Side.read(run) for run in runs], "reward/men")


# --- over HTTP ----------------------------------------------------------------------------------------


@pytest.fixture
def client(runs: tuple[RunDir, RunDir]) -> TestClient:
    app = FastAPI()
    app.include_router(compare_router(runs[0]), prefix="/api")
    return TestClient(app)


def test_the_runs_beside_this_one_are_offered(client: TestClient, runs: tuple[RunDir, RunDir]) -> None:
    runs[1].write_status({"phase": "training", "step": 60})
    assert client.get("/api/compare/runs").json() == [
        {"name": runs[1].path.name, "state": "died while training", "step": 60}
    ]


def test_a_damaged_run_hides_no_other(client: TestClient, runs: tuple[RunDir, RunDir]) -> None:
    RunDir.create(runs[0].path.parent, "torn", "name: torn\n").status.write_text('{"phase"')
    told = {other["name"]: other["state"] for other in client.get("/api/compare/runs").json()}
    assert len(told) == 2
    assert told.pop(next(name for name in told if name.startswith("torn"))) == "damaged"
    assert client.get("/api/compare/with", params={"run": next(iter(told))}).status_code == 200


def test_a_comparison_keeps_up_with_a_run_that_goes_on(client: TestClient, runs: tuple[RunDir, RunDir]) -> None:
    name = runs[1].path.name
    ask = {"run": name, "metric": "reward/mean", "over": "steps"}
    assert client.get("/api/compare/curves", params=ask).json()["series"][1]["x"][-1] == 60
    log = MetricsLog(runs[1].metrics)
    log.write(Version(0, 61), {"reward/mean": 0.5}, 170.0)
    log.close()
    assert client.get("/api/compare/curves", params=ask).json()["series"][1]["x"][-1] == 61
    found = client.get("/api/compare/with", params={"run": name}).json()
    assert [difference["key"] for difference in found["differences"]] == ["learner.learning_rate", "staleness.max_lag"]
    assert "reward/mean" in found["metrics"]


@pytest.mark.parametrize("run", ["../carry", "/etc", "carry", "..", ""])
def test_only_a_run_of_this_folder_is_read(client: TestClient, runs: tuple[RunDir, RunDir], run: str) -> None:
    answer = client.get("/api/compare/with", params={"run": run})
    assert answer.status_code == 404
    assert f"nearest: {runs[1].path.name}" in answer.json()["detail"]


def test_an_unknown_metric_is_a_404(client: TestClient, runs: tuple[RunDir, RunDir]) -> None:
    answer = client.get("/api/compare/curves", params={"run": runs[1].path.name, "metric": "nonsense"})
    assert answer.status_code == 404
