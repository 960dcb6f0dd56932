"""What a process says of itself, on its way to Ray's gauges."""

from __future__ import annotations

import os
import threading
import time

import psutil
import pytest

from penstock.deploy import exporter
from penstock.deploy.exporter import Export, Exporter, Gauges, OneOf, Process, export_actor

EXPORT = Export("carry-1", 0.02)


class Made:
    """Stands in for Ray's gauges: keeps what is set, as `NAME{labels} = value`."""

    def __init__(self) -> None:
        self.gauges: list[tuple[str, str, tuple[str, ...]]] = []
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def __call__(self, name, help, labels):
        self.gauges.append((name, help, labels))
        made = self

        class One:
            def set(self, value, tags) -> None:
                assert set(tags) == set(labels), "Ray refuses a value that lacks a label"
                made.values[name, tuple(sorted(tags.items()))] = value

        return One()


@pytest.fixture
def made(monkeypatch) -> Made:
    found = Made()
    monkeypatch.setattr(exporter, "Gauge", found)
    return found


def test_values_go_to_gauges_with_the_labels_of_process_and_name() -> None:
    made = Made()
    gauges = Gauges({"run": "carry-1", "worker": "w"}, made)
    gauges.set({"kl/reference": 0.5, "kl/offpolicy/lag_1/k3": 0.25, "kl/offpolicy/lag_2/k3": 0.125})
    mine = (("run", "carry-1"), ("worker", "w"))
    assert made.values == {
        ("penstock_kl_reference", mine): 0.5,
        ("penstock_kl_offpolicy_k3_by_bucket", (("bucket", "lag_1"), *mine)): 0.25,
        ("penstock_kl_offpolicy_k3_by_bucket", (("bucket", "lag_2"), *mine)): 0.125,
    }


def test_a_gauge_is_made_once_with_its_help() -> None:
    made = Made()
    gauges = Gauges({"run": "r"}, made)
    for value in (1.0, 2.0):
        gauges.set({"ledger/stored": value, "ledger/taken": value})
    (gauge,) = made.gauges
    assert gauge == ("penstock_ledger_by_state", "prompts in one state of the ledger; unit: groups", ("run", "state"))


def test_of_words_one_holds_and_those_before_it_do_not_any_more() -> None:
    doing = OneOf("process/doing", known=["ready"])
    assert doing("") == {"process/doing/ready": 0}
    assert doing("generating") == {"process/doing/ready": 0, "process/doing/generating": 1}
    assert doing("waiting: lag") == {
        "process/doing/ready": 0,
        "process/doing/generating": 0,
        "process/doing/waiting: lag": 1,
    }


def test_a_process_in_numbers() -> None:
    said = {
        "rollout/in_flight": 3.0,
        "process/pid": 7.0,
        "doing": "generating",
        "version": "1.12",
        "silent": 0.5,
        "closed": "",
        "largest_gap": 1.0,
    }
    values = Process()(said)
    me = psutil.Process(os.getpid())
    assert values["process/cpu_seconds"] == pytest.approx(sum(me.cpu_times()[:2]), abs=0.5)
    assert values["process/rss"] == pytest.approx(me.memory_info().rss, rel=0.2)
    rest = {name: value for name, value in values.items() if name not in ("process/cpu_seconds", "process/rss")}
    assert rest == {
        "rollout/in_flight": 3.0,
        "process/silent": 0.5,
        "process/step": 12.0,
        "process/lineage": 1.0,
        "process/doing/generating": 1.0,
    }


def test_a_process_that_has_no_version_yet_says_the_rest() -> None:
    assert "process/step" not in Process()({"doing": "ready", "version": ""})


def _wait(true) -> None:
    until = time.monotonic() + 5
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_an_actor_is_exported_until_its_process_ends(made) -> None:
    running = export_actor(EXPORT, "rollout", "rollout-0", lambda: {"rollout/in_flight": 2})
    assert running is not None
    labels = (("role", "rollout"), ("run", "carry-1"), ("worker", "rollout-0"))
    _wait(lambda: made.values.get(("penstock_rollout_in_flight", labels)) == 2.0)
    running.close()
    made.values.clear()
    time.sleep(0.1)
    assert made.values == {}


def test_a_run_that_exports_nothing_has_no_exporter() -> None:
    assert export_actor(None, "rollout", "rollout-0", dict) is None


def test_trouble_is_said_once_and_does_not_end_the_exports(made, capfd) -> None:
    calls = iter(range(1000))

    def source() -> dict[str, float]:
        if (call := next(calls)) % 2 == 0:
            raise RuntimeError("no stats")
        return {"run/step": call}

    running = Exporter(EXPORT, source)
    _wait(lambda: made.values and next(iter(made.values.values())) > 5)
    running.close()
    assert capfd.readouterr().err.count("metrics could not be exported: RuntimeError: no stats") == 1


def test_a_source_that_hangs_makes_nobody_wait(made, monkeypatch) -> None:
    release = threading.Event()
    running = Exporter(EXPORT, lambda: {"run/step": float(release.wait(20))})
    monkeypatch.setattr(exporter, "CLOSE_SECONDS", 0.1)
    began = time.monotonic()
    running.close()
    assert time.monotonic() - began < 2
    release.set()
