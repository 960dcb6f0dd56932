"""The metrics in memory: the same rows as `services/metrics.py` reads, whatever a run does, and pieces that fit."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.services.dashboard import watch
from penstock.services.dashboard.history import History, Look, sampled
from penstock.services.metrics import MetricError, MetricsLog, read_rows
from penstock.services.rundir import RunDir
from penstock.services.versions import Version

NAMES = ("reward/mean", "kl/reference", "off_policy/lag_0/tokens", "eval/greedy/accuracy")


def write_a_run_that_falls_back(path: Path, seed: int) -> None:
    """Steps, evaluations that end later, falls to older steps in new lineages; the same for a seed."""
    random = np.random.default_rng(seed)
    log, version, begun = MetricsLog(path), Version(0, 0), 0
    log.begin(version, 0.0)
    for turn in range(int(random.integers(20, 120))):
        if random.random() < 0.05:
            version = Version(version.lineage + 1, int(random.integers(0, version.step + 1)))
            begun = version.step
            log.begin(version, float(turn))
            continue
        version = version.next()
        chosen = [name for name in NAMES[:3] if random.random() < 0.8]
        values = {name: float(random.normal()) for name in chosen}
        if random.random() < 0.1:
            values["kl/reference"] = random.choice([math.inf, math.nan])
        log.write(version, values, turn + 0.5)
        if random.random() < 0.15 and version.step >= begun + 2:
            log.write(Version(version.lineage, version.step - 2), {NAMES[3]: float(random.random())}, turn + 0.7)
    log.close()


def rows_of(look: Look) -> list[dict[str, Any]]:
    """Rows as `read_rows` has them, of a look at width 1; what is not finite counts as not recorded."""
    assert look.width == 1
    rows = []
    for at, step in enumerate(look.last):
        row = {"step": step, "lineage": look.lineage[at]}
        row |= {name: kinds[0][at] for name, kinds in look.values.items() if kinds[0][at] is not None}
        rows.append(row)
    return rows


def expected(path: Path) -> list[dict[str, Any]]:
    rows = []
    for row in read_rows(path):
        values = {name: float(f"{np.float32(value):.5g}") for name, value in row.items() if "/" in name}
        known = {name: value for name, value in values.items() if math.isfinite(value)}
        rows.append({"step": row["step"], "lineage": row["lineage"]} | known)
    return rows


@pytest.mark.parametrize("seed", range(25))
def test_the_rows_are_those_that_led_to_the_end(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "metrics.jsonl"
    write_a_run_that_falls_back(path, seed)
    history = History(path)
    while history.follow():
        pass
    assert rows_of(history.look(["*"], 1000)) == expected(path)


class Client:
    """Mends what it has with each answer, as the page does."""

    def __init__(self) -> None:
        self.revision: int | None = None
        self.width = 0
        self.rows: dict[int, tuple[int, dict[str, tuple[float | None, ...]]]] = {}

    def ask(self, history: History, most: int) -> None:
        since = None if self.revision is None else (self.revision, self.width)
        look = history.look(["*"], most, since)
        self.revision = look.revision
        if look.begin is None:
            return
        if look.width != self.width:
            self.rows, self.width = {}, look.width
        self.rows = {first: row for first, row in self.rows.items() if first < look.begin}
        for at, first in enumerate(look.first):
            values = {name: tuple(kind[at] for kind in kinds) for name, kinds in look.values.items()}
            self.rows[first] = (look.last[at], {n: v for n, v in values.items() if any(x is not None for x in v)})


@pytest.mark.parametrize("most", [8, 1000])
@pytest.mark.parametrize("seed", range(12))
def test_pieces_put_together_are_the_whole(tmp_path: Path, seed: int, most: int) -> None:
    whole, path = tmp_path / "whole.jsonl", tmp_path / "metrics.jsonl"
    write_a_run_that_falls_back(whole, seed)
    random = np.random.default_rng(seed)
    lines = whole.read_bytes().splitlines(keepends=True)
    history, patient = History(path), Client()
    path.touch()
    while lines:
        count = int(random.integers(1, 9))
        with path.open("ab") as file:
            file.writelines(lines[:count])
        del lines[:count]
        history.follow()
        if random.random() < 0.6:
            patient.ask(history, most)
    patient.ask(history, most)
    fresh = Client()
    fresh.ask(history, most)
    assert patient.rows == fresh.rows


def test_nothing_new_is_nothing_sent(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_a_run_that_falls_back(path, 0)
    history = History(path)
    history.follow()
    first = history.look(["*"], 100)
    assert history.look(["*"], 100, (first.revision, first.width)) == Look(first.revision, first.width)


def test_only_what_is_asked_for_is_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, 40):
        log.write(Version(0, step), {"reward/mean": step, "reward/part/a": 1.0, "kl/reference": 2.0}, step)
    history = History(path)
    history.follow()
    look = history.look(["reward/part/*", "kl/reference"], 100, between=(10, 12))
    assert look.last == [10, 11, 12]
    assert look.values == {"kl/reference": [[2.0] * 3], "reward/part/a": [[1.0] * 3]}


def test_an_event_belongs_to_the_step_that_was_under_way(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, 5):
        log.write(Version(0, step), {}, 100.0 + step)
    history = History(path)
    assert history.step_at(99.0) == 0
    history.follow()
    assert [history.step_at(time) for time in (0.0, 102.0, 102.5, 200.0)] == [1, 2, 3, 4]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"lineage": 0, "step": 1, "time": 1}\nnonsense\n')
    with pytest.raises(MetricError, match=r"metrics\.jsonl: not a line of metrics"):
        History(path).follow()


@pytest.mark.parametrize(
    "line",
    [
        b'{"lineage": 0, "step": 2, "ti',
        b'{"lineage": 0, "step": 2, "time": 1, "a": "\xff"}',
        b"\0\0\0",
        b"[1]",
        b"7",
        b"{}",
        b'{"lineage": 0, "step": "x", "time": 1}',
        b'{"lineage": 0, "step": null, "time": 1}',
        b'{"lineage": 0, "step": "inf", "time": 1}',
        b'{"lineage": 0, "step": 1e30, "time": 1}',
        b'{"lineage": 0, "step": -1, "time": 1}',
        b'{"lineage": 0, "step": 2, "time": 1, "a": {"b": 1}}',
    ],
)
def test_whatever_a_damaged_line_is_the_others_are_kept_and_it_is_told(tmp_path: Path, line: bytes) -> None:
    path, told = tmp_path / "metrics.jsonl", list[MetricError]()
    whole = b'{"lineage": 0, "step": %d, "time": 1, "reward/mean": "nan"}\n'
    path.write_bytes(whole % 1 + line + b"\n" + whole % 3)
    history = History(path, told.append)
    history.follow()
    assert history.span == (1, 3)
    assert [str(error).startswith(f"{path}: not a line of metrics") for error in told] == [True]


def test_a_sample_of_a_large_file_is_a_history_of_some_of_its_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, 2001):
        log.write(Version(0, step), {"reward/mean": step / 10}, step)
    steps = sampled(path, 50).look(["reward/mean"], 4000)
    assert 45 <= len(steps.last) <= 50
    assert steps.last[-1] > 1900
    assert steps.values["reward/mean"][0] == [step / 10 for step in steps.last]


def test_whoever_asked_an_earlier_process_is_sent_everything(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write(Version(0, 1), {"reward/mean": 1.0}, 1)
    earlier, later = History(path), History(path)
    earlier.follow()
    seen = earlier.look(["*"], 100)
    later.revision = later._began = earlier._began + 1  # a millisecond later
    log.write(Version(0, 2), {"reward/mean": 1.0}, 2)
    later.follow()
    assert later.look(["*"], 100, (seen.revision, seen.width)).last == [1, 2]


def test_whoever_saw_the_sample_is_sent_everything_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, 101):
        log.write(Version(0, step), {"reward/mean": 1.0}, step)
    rough, whole = sampled(path, 10), History(path)
    seen = rough.look(["*"], 1000)
    whole.follow()
    whole.replace(rough)
    assert len(whole.look(["*"], 1000, (seen.revision, seen.width)).last) == 100


def test_a_large_file_is_shown_in_part_at_once_and_whole_a_little_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_LARGE", 1000)
    monkeypatch.setattr(watch, "_SAMPLED", 10)
    run = RunDir.create(tmp_path, "sort", "name: sort\n")
    log = MetricsLog(run.metrics)
    for step in range(1, 201):
        log.write(Version(0, step), {"reward/mean": 1.0}, step)
    with watch.Watch(run) as watched:
        assert 5 <= len(watched.history.look(["*"], 1000).last) <= 10
        assert watched.read_share < 1
        watched.looked()
        ends = time.monotonic() + 5
        while watched.read_share < 1:
            assert time.monotonic() < ends
            time.sleep(0.01)
        assert len(watched.history.look(["*"], 1000).last) == 200
