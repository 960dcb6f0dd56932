"""A run in numbers for Prometheus, and the file that tells where to look."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from views import counts, view

from penstock.deploy import exporter, watching
from penstock.deploy.catalogue import exported
from penstock.deploy.config import LimitsSection, RecordingSection
from penstock.deploy.exporter import Export
from penstock.deploy.journal import Journal
from penstock.deploy.view import Controls
from penstock.deploy.watching import COUNTED_FROM_ZERO, RunExporter, exporting, of_run
from penstock.services.metrics import find
from penstock.services.rundir import RunDir
from penstock.services.tracking.feeds import Feeds
from penstock.services.versions import Version

EXPORT = Export("carry-1", 0.02)


class Cluster:
    """Stands in for a Ray cluster with some nodes."""

    def __init__(self, *endpoints: str) -> None:
        self.endpoints = list(endpoints)
        self.no_endpoints = "there is none"


class Said:
    """Stands in for Ray's gauges: the newest value by name and labels."""

    def __init__(self) -> None:
        self.values: dict[tuple, float] = {}

    def __call__(self, name, help, labels):
        said = self

        class One:
            def set(self, value, tags) -> None:
                said.values[name, tuple(sorted(tags.items()))] = value

        return One()


@pytest.fixture
def said(monkeypatch) -> Said:
    found = Said()
    monkeypatch.setattr(exporter, "Gauge", found)
    return found


@pytest.fixture
def directory(tmp_path) -> RunDir:
    return RunDir.create(tmp_path, "watched", "name: watched\n")


@pytest.fixture
def journal(directory) -> Journal:
    return Journal(directory, "watched", RecordingSection(), LimitsSection(steps=100), None)


def _wait(true) -> None:
    until = time.monotonic() + 5
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_run_in_numbers() -> None:
    shown = view(metrics={"reward/mean": 0.6, "ledger/stored": 9.0}, ledger=counts(dropped=3, stored=8), version="2.12")
    refused = replace(shown.ledger, refused={"unscored": 2}, redelivered=1)
    values = of_run(replace(shown, ledger=refused), {"ledger/stored": 8.0}, {"died": 1, "checkpoint": 4}, 1050.0)
    assert values == {
        "reward/mean": 0.6,
        "ledger/stored": 8.0,
        "run/step": 12,
        "run/steps_limit": 100,
        "run/lineage": 2,
        "run/last_step_time": 1050.0,
        "run/started_time": 1000.0,
        "run/paused": 0,
        "event/died": 1,
        "event/checkpoint": 4,
        **{f"event/{kind}": 0 for kind in COUNTED_FROM_ZERO if kind not in ("died", "checkpoint")},
        "ledger/dropped/stale": 3,
        "ledger/refused/unscored": 2,
        "ledger/refused/prompt_too_long": 0,
        "ledger/refused/stale": 0,
        "ledger/redelivered": 1,
    }
    assert [name for name in values if find(name, exported()) is None] == []


def test_what_actors_export_themselves_is_left_out_lest_a_sum_counts_it_twice() -> None:
    shown = view(metrics={"rollout/tokens": 5.0, "scorer/groups": 2.0, "rollout/workers": 2.0, "rollout_corr/ess": 0.9})
    values = of_run(shown, {"rollout/in_flight": 3.0}, {}, 0.0)
    assert {"rollout/workers", "rollout_corr/ess"} <= set(values)
    assert not {"rollout/tokens", "scorer/groups", "rollout/in_flight"} & set(values)


def test_a_bucket_without_tokens_is_gone_with_the_next_step_and_what_was_not_measured_again_stays(journal) -> None:
    journal.step(
        Version(0, 1), {"off_policy/lag_0/tokens": 9.0, "off_policy/lag_2/tokens": 5.0, "off_policy/mean": 0.7}, [], 1
    )
    journal.step(Version(0, 2), {"kl/staleness/lag_2/k3": 0.1, "off_policy/lag_0/tokens": 8.0, "mine/own": 1.0}, [], 2)
    journal.step(Version(0, 3), {"off_policy/lag_0/tokens": 7.0}, [], 3)
    journal.evaluated(Version(0, 3), {"eval/sums/greedy/accuracy": 0.5})
    assert journal.latest == {
        "off_policy/lag_0/tokens": 7.0,
        "off_policy/mean": 0.7,
        "kl/staleness/lag_2/k3": 0.1,
        "mine/own": 1.0,
        "eval/sums/greedy/accuracy": 0.5,
    }


def test_a_paused_run_says_so() -> None:
    assert of_run(view(controls=Controls(paused_by="ada")), {}, {}, 0.0)["run/paused"] == 1


def test_what_alerts_and_dashboards_count_is_counted_from_zero() -> None:
    """Otherwise the first of its kind is seen by nobody."""
    root = Path(__file__).parents[2] / "deploy"
    asked = [*(root / "prometheus").glob("rules.yml"), *(root / "grafana" / "dashboards").glob("*.json")]
    text = "".join(path.read_text() for path in asked).replace('\\"', '"')
    kinds = {kind for found in re.findall(r'\bkind=~?"([a-z_|]+)"', text) for kind in found.split("|")}
    assert kinds >= {"died", "guard"}
    assert kinds <= set(COUNTED_FROM_ZERO)


def test_a_run_without_a_ledger_or_a_limit_has_numbers_too() -> None:
    values = of_run(view(ledger=None, steps_total=None, metrics={}), {}, {}, 0.0)
    assert "run/steps_limit" not in values
    assert values["run/step"] == 12


def test_while_a_run_goes_on_a_file_names_its_nodes_and_the_driver_exports(said, tmp_path, journal, directory) -> None:
    targets, cluster = tmp_path / "targets" / "carry-1.json", Cluster("10.0.0.1:4000", "10.0.0.2:4000")
    journal.begin(Version(0, 3))
    with exporting(journal, EXPORT, targets, cluster):
        assert json.loads(targets.read_text()) == [{"targets": ["10.0.0.1:4000", "10.0.0.2:4000"]}]
        journal.enter("training")
        journal.step(Version(0, 4), {"kl/reference": 0.25}, [], 77.0)
        journal.standing = {"gate/closed/held": 1.0}
        journal.show((), None)
        run = ("run", "carry-1")
        _wait(lambda: ("penstock_run_phase_by_phase", (("phase", "training"), run)) in said.values)  # the last of them
        assert said.values["penstock_kl_reference", (run,)] == 0.25
        assert said.values["penstock_run_step", (run,)] == 4
        assert said.values["penstock_run_last_step_time", (run,)] == 77.0
        assert said.values["penstock_gate_closed_by_reason", (("reason", "held"), run)] == 1
        assert said.values["penstock_run_phase_by_phase", (("phase", "training"), run)] == 1
        driver = (("role", "driver"), run, ("worker", "driver"))
        _wait(lambda: ("penstock_process_cpu_seconds", driver) in said.values)
    assert not targets.exists()
    assert journal.exporter is None
    (event,) = [e for e in directory.read_events() if e.kind == "exporting"]
    assert "http://10.0.0.1:4000/metrics, http://10.0.0.2:4000/metrics" in event.message


def test_the_status_says_where_to_scrape(said, tmp_path, journal, directory) -> None:
    with exporting(journal, EXPORT, tmp_path / "targets" / "x.json", Cluster("h:1")):
        journal.show((), None)
        status = directory.read_status()
        assert status is not None
        assert status["scrape"] == ["h:1"]


def test_nodes_that_join_are_written_down(said, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(watching, "_NODES_SECONDS", 0.0)
    cluster, targets = Cluster("a:1"), tmp_path / "targets" / "x.json"
    running = RunExporter(EXPORT, targets, lambda: cluster.endpoints)
    cluster.endpoints = ["a:1", "b:1"]
    _wait(lambda: json.loads(targets.read_text()) == [{"targets": ["a:1", "b:1"]}])
    running.close()


def test_a_file_that_could_not_be_written_for_a_time_is_written_later(said, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(watching, "_NODES_SECONDS", 0.0)
    cluster, targets = Cluster("a:1"), tmp_path / "targets" / "x.json"
    running = RunExporter(EXPORT, targets, lambda: cluster.endpoints)
    write, full = watching.write_atomically, []

    def on_a_full_disk(*args: Any, **options: Any) -> None:
        full.append(args)
        raise OSError("no space left on device")

    monkeypatch.setattr(watching, "write_atomically", on_a_full_disk)
    cluster.endpoints = ["a:1", "b:1"]
    _wait(lambda: full)
    monkeypatch.setattr(watching, "write_atomically", write)
    _wait(lambda: json.loads(targets.read_text()) == [{"targets": ["a:1", "b:1"]}])
    running.close()


def test_a_cluster_that_cannot_be_scraped_is_warned_of_and_the_run_goes_on(said, tmp_path, journal, directory) -> None:
    targets = tmp_path / "targets" / "x.json"
    with exporting(journal, EXPORT, targets, Cluster()):
        assert journal.exporter is None
    assert not targets.exists()
    (warning,) = [e for e in directory.read_events() if e.kind == "warning"]
    assert warning.message == "nothing is exported to Prometheus: there is none"


def test_a_file_that_cannot_be_written_is_warned_of_and_the_run_goes_on(said, tmp_path, journal, directory) -> None:
    (tmp_path / "targets").write_text("a file where the folder should be")
    with exporting(journal, EXPORT, tmp_path / "targets" / "x.json", Cluster("h:1")):
        assert journal.exporter is None
    (warning,) = [e for e in directory.read_events() if e.kind == "warning"]
    assert "x.json cannot be written" in warning.message


def test_a_run_that_exports_nothing_says_nothing(tmp_path, journal, directory) -> None:
    with exporting(journal, None, tmp_path / "x.json", Cluster("h:1")):
        assert journal.exporter is None
    assert directory.read_events() == []


# --- trackers --------------------------------------------------------------------------------------


class Tracker:
    name = "T"

    def __init__(self) -> None:
        self.told: list[tuple] = []

    def open(self) -> None: ...

    def begin(self, version) -> None:
        self.told.append(("begin", str(version)))

    def step(self, version, metrics, at) -> None:
        self.told.append(("step", str(version), dict(metrics), at))
        if "bad" in "".join(metrics):
            raise OSError("cannot reach http://ada:secret@host/x")

    def event(self, version, kind, message, at) -> None:
        self.told.append(("event", str(version), kind))

    def close(self, outcome) -> None:
        self.told.append(("close", outcome))

    def abandon(self) -> None: ...


def _tracked(tmp_path) -> tuple[Journal, Tracker, RunDir]:
    directory, tracker = RunDir.create(tmp_path, "tracked", "name: tracked\n"), Tracker()
    feeds = Feeds([tracker])
    return Journal(directory, "t", RecordingSection(), LimitsSection(), None, feeds), tracker, directory


def test_a_tracker_is_told_of_steps_late_evaluations_events_and_the_end(tmp_path) -> None:
    journal, tracker, _ = _tracked(tmp_path)
    journal.begin(Version(0, 0))
    journal.step(Version(0, 1), {"a/x": 1.0}, [], 5.0)
    journal.step(Version(0, 2), {"a/x": 2.0}, [], 6.0)
    journal.evaluated(Version(0, 1), {"eval/y": 0.5})
    journal.enter("finished", "done")
    journal.close()
    *first, late, event, close = tracker.told
    assert first == [("begin", "0.0"), ("step", "0.1", {"a/x": 1.0}, 5.0), ("step", "0.2", {"a/x": 2.0}, 6.0)]
    assert late[:3] == ("step", "0.1", {"eval/y": 0.5})
    assert event == ("event", "0.2", "finished")
    assert close == ("close", "finished")


def test_a_tracker_in_trouble_is_one_warning_without_passwords_and_the_run_goes_on(tmp_path) -> None:
    journal, tracker, directory = _tracked(tmp_path)
    for step in (1, 2):
        journal.step(Version(0, step), {"bad/x": 1.0}, [], 5.0)
    _wait(lambda: len(tracker.told) == 2)
    for _ in range(3):
        time.sleep(0.02)
        journal.show((), None)
    journal.close()
    warnings = [event.message for event in directory.read_events() if event.kind == "warning"]
    assert warnings == ["T: OSError: cannot reach http://ada:***@host/x"]
    assert Counter(kind for kind, *_ in tracker.told)["step"] == 2
