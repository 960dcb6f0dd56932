"""A drill under a real Prometheus: what is exported, every panel and rule, and alerts when the run misbehaves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from live_prometheus import SHORT, LivePrometheus

from penstock.deploy.catalogue import exported
from penstock.reward.metrics import METRICS as REWARD
from penstock.services.control import Gate
from penstock.services.mailbox import MailboxControl
from penstock.services.metrics import places, read_rows, to_prometheus
from penstock.services.rundir import RunDir

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
BOARDS = ROOT / "deploy" / "grafana" / "dashboards"
RULE = """
from functools import partial
from pathlib import Path

def sometimes(completions, **columns):
    if Path("away").exists():
        raise ConnectionError("the judge is away")
    return [len(text) % 2 for text in completions]
"""


@pytest.fixture
def drill(tmp_path):
    """A drill that is evaluated and audited and has a reference; it is told to end after the test."""
    sys.path.insert(0, str(ROOT / "recipes" / "drill"))
    from prepare import prepare

    inputs = tmp_path / "inputs"
    prepare(inputs)
    (inputs / "judge.py").write_text(RULE)
    sums = inputs / "sums.jsonl"
    overrides = [
        f"model.path={inputs / 'model'}",
        f"data.sources.sums.path={sums}",
        f"evaluation.data.sources.sums.path={sums}",
        "evaluation.every=2",
        "evaluation.max_prompts=2",
        "audit.every=2",
        "audit.sequences=2",
        "algorithm.kl.coefficient=0.01",
        "algorithm.reject.kind=second_moment",
        f"reward.folder={inputs}",
        "reward.rules.judge.rule=judge:sometimes",
        "reward.accuracy=contains",
        "checkpoints.every=2",
        "guards=watch",
        "limits.steps=10000",
        "limits.minutes=4",
        "tracking.prometheus_seconds=1",
        f"runs_dir={tmp_path / 'runs'}",
    ]
    command = [
        sys.executable,
        "-c",
        "from penstock.cli.main import run; run()",
        "train",
        str(ROOT / "recipes/drill/drill.yaml"),
        *overrides,
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    yield inputs, process
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    assert process.wait(60) in (0, 1, 130), (tmp_path / "log").read_text()


def shown(expr: str) -> str:
    """A panel's query as Grafana would ask it, over a short time."""
    return expr.replace("$run", ".*").replace("$__rate_interval", SHORT).replace("$__range", SHORT)


def without_data(prometheus: LivePrometheus) -> list[str]:
    """Queries of panels that have nothing to show."""
    return [
        f"{path.stem}: {panel['title']}: {target['expr']}"
        for path in sorted(BOARDS.glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", ())
        if not prometheus.ask(shown(target["expr"]))
    ]


def test_a_run_is_watched_and_alerts_say_when_it_misbehaves(drill, tmp_path) -> None:
    inputs, process = drill
    runs = tmp_path / "runs"
    with LivePrometheus(tmp_path / "prometheus", runs) as prometheus:
        steps = "max(ray_penstock_run_step)"
        prometheus.wait(
            "a step is scraped", lambda: process.poll() is not None or (prometheus.value(steps) or 0) >= 3, 90
        )
        assert process.poll() is None, (tmp_path / "log").read_text()
        directory = RunDir.newest(runs)

        rays = tmp_path / "prometheus" / "prom_metrics_service_discovery.json"
        nodes_are_scraped_once(prometheus, rays)
        what_is_exported_is_declared_and_named(prometheus, directory.path.name)
        a_scrape_is_a_line_of_metrics(prometheus, directory)
        every_query_has_data(prometheus)
        alerts_fire_where_it_misbehaves(prometheus, directory, inputs)

        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert list((runs / "targets").iterdir()) == []
        rays.unlink()
        prometheus.wait("the run is scraped no more", lambda: prometheus.targets() == [], 20)


def nodes_are_scraped_once(prometheus: LivePrometheus, rays: Path) -> None:
    """A node that Ray's file names too is scraped once; one that is not there is told of."""
    (target,) = prometheus.api("targets")["activeTargets"]
    here, nowhere = target["labels"]["instance"], "127.0.0.1:9"
    rays.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": [here, nowhere]}]))
    both = [("penstock", here), ("penstock", nowhere)]
    prometheus.wait("Ray's file is read", lambda: sorted(prometheus.targets()) == sorted(both), 15)


def what_is_exported_is_declared_and_named(prometheus: LivePrometheus, run: str) -> None:
    """Every series bears the name of the run, and those of a process its role."""
    names = {s["__name__"] for s in prometheus.api("series", **{"match[]": '{__name__=~"ray_penstock_.+"}'})}
    assert {name.removeprefix("ray_") for name in names} <= {to_prometheus(name) for name in exported()}
    wholes = {"ray_" + to_prometheus(name) for name in REWARD if not places(name) and "reference" not in name}
    prometheus.wait("all of the scorer's metrics are scraped", lambda: all(prometheus.ask(name) for name in wholes), 15)
    assert {labels["run"] for labels, _ in prometheus.ask('{__name__=~"ray_penstock_.+"}')} == {run}
    roles = {(m["role"], m["worker"]) for m, _ in prometheus.ask("ray_penstock_process_rss")}
    assert roles == {
        ("driver", "driver"),
        ("learner", "learner-0"),
        ("rollout", "rollout-0"),
        ("scorer", "scorer-0"),
    }


def a_scrape_is_a_line_of_metrics(prometheus: LivePrometheus, directory: RunDir) -> None:
    """The numbers of one scrape are those of one line of metrics.jsonl."""
    compared = {f"ray_{to_prometheus(n)}": n for n in ("learner/updates", "kl/reference", "reward/mean", "time/step")}

    def same() -> bool:
        scraped = {m["__name__"]: value for m, value in prometheus.ask(f'{{__name__=~"{"|".join(compared)}"}}')}
        rows = {row.get("learner/updates"): row for row in read_rows(directory.metrics)}
        row = rows.get(scraped["ray_penstock_learner_updates"], {})
        return all(row.get(name) == pytest.approx(scraped[known], rel=1e-9) for known, name in compared.items())

    prometheus.wait("a line of metrics.jsonl is scraped as it is", same, 15)


def every_query_has_data(prometheus: LivePrometheus) -> None:
    """Of every panel and every rule."""
    lacking = partial(without_data, prometheus)
    prometheus.wait("every panel has data", lambda: not lacking(), 30, say=lacking)
    for rule in prometheus.rules:
        for name in re.findall(r"(?:ray_penstock_\w+|\bup)(?:\{[^}]*\})?", rule["expr"]):
            assert prometheus.ask(name), f"{rule['alert']}: {name} has no data"
    states = {r["health"] for group in prometheus.api("rules")["groups"] for r in group["rules"]}
    assert states == {"ok"}


def alerts_fire_where_it_misbehaves(prometheus: LivePrometheus, directory: RunDir, inputs: Path) -> None:
    """Rewards fail; the gate is held, and the learner has nothing to do; a worker dies, and its series vanish."""
    assert not {"PenstockRewardFailures", "PenstockGateClosed", "PenstockWorkerDead"} & prometheus.firing()
    (inputs / "away").touch()
    prometheus.wait("the alert on rewards fires", lambda: "PenstockRewardFailures" in prometheus.firing(), 30)
    (inputs / "away").unlink()
    MailboxControl(directory).send(Gate(open=False), by="a test")
    ((labels, _),) = prometheus.ask('ray_penstock_process_rss{worker="rollout-0"}')
    killed = f'ray_penstock_process_rss{{WorkerId="{labels["WorkerId"]}"}}'
    os.kill(_pid(prometheus, directory), signal.SIGKILL)
    wanted = {"PenstockGateClosed", "PenstockLearnerStarving", "PenstockWorkerDead", "PenstockTargetDown"}
    prometheus.wait(f"{wanted} fire", lambda: wanted <= prometheus.firing(), 40)
    prometheus.wait("the killed worker's series vanish", lambda: not prometheus.ask(killed), 15)


def _pid(prometheus: LivePrometheus, directory: RunDir) -> int:
    status = directory.read_status()
    assert status is not None
    (worker,) = [w for w in status["workers"] if w["role"] == "rollout"]
    return int(worker["pid"])
