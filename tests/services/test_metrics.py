"""Metrics: names, catalogues, the file and the table."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from penstock.services.metrics import (
    Metric,
    MetricError,
    MetricsLog,
    check_name,
    describe,
    merge,
    read_rows,
    read_table,
    to_prometheus,
)
from penstock.services.versions import Version


def _write(path: Path, *lines: tuple[int, int, dict[str, float]]) -> None:
    log = MetricsLog(path)
    for lineage, step, values in lines:
        log.write(Version(lineage, step), values, at=float(step))
    log.close()


@pytest.mark.parametrize("name", ["reward", "actor/", "/mean", "actor/pg loss", "kl", "actor/kl"])
def test_a_name_that_says_too_little_is_refused(name: str) -> None:
    with pytest.raises(MetricError, match=r"found|divergence"):
        check_name(name)


def test_names_of_the_design_are_accepted() -> None:
    for name in ("actor/pg_clipfrac", "off_policy/max", "kl/reference", "eval/sort-5/accuracy", "reward/part/{name}"):
        check_name(name)


def test_a_part_or_source_that_a_user_calls_kl_has_a_name() -> None:
    for name in ("reward/part/kl", "scorer/failed/kl", "eval/kl/sampled/accuracy"):
        check_name(name)


def test_prometheus_names_keep_to_letters_digits_and_underscores() -> None:
    assert to_prometheus("rollout_corr/is.Mean-low") == "penstock_rollout_corr_is_mean_low"


def test_two_owners_cannot_claim_one_name() -> None:
    with pytest.raises(MetricError, match="declared by learner and by rollout"):
        merge({"learner": {"a/b": Metric("x")}, "rollout": {"a/b": Metric("y")}})


def test_two_names_that_prometheus_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(MetricError, match="same Prometheus name penstock_a_b_c"):
        merge({"learner": {"a/b_c": Metric("x"), "a/b-c": Metric("y")}})


def test_a_name_with_places_to_fill_in_describes_what_fills_them() -> None:
    catalogue = merge({"reward": {"reward/part/{name}": Metric("Mean of one rule", good="up")}})
    found = describe("reward/part/exact", catalogue)
    assert found is not None
    assert found.good == "up"
    assert describe("reward/total", catalogue) is None


def test_what_was_written_is_read_back_as_a_table(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, (0, 1, {"a/x": 0.1}), (0, 2, {"a/x": 0.2, "a/y": 3}))
    table = read_table(path)
    assert list(table.columns) == ["lineage", "step", "time", "a/x", "a/y"]
    assert table["a/x"].tolist() == [0.1, 0.2]
    assert math.isnan(table["a/y"][0])
    assert table["a/y"][1] == 3


def test_infinities_and_not_a_number_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, (0, 1, {"a/x": math.inf, "a/y": math.nan, "a/z": -math.inf}))
    (row,) = read_rows(path)
    assert row["a/x"] == math.inf
    assert math.isnan(row["a/y"])
    assert row["a/z"] == -math.inf


def test_a_late_evaluation_joins_the_line_of_its_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, (0, 1, {"a/x": 1}), (0, 2, {"a/x": 2}), (0, 1, {"eval/acc": 0.5}))
    assert [(r["step"], r.get("a/x"), r.get("eval/acc")) for r in read_rows(path)] == [(1, 1, 0.5), (2, 2, None)]


def test_a_lost_future_is_left_out_and_its_fork_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, *[(0, s, {"a/x": s}) for s in (1, 2, 3, 4)])
    log = MetricsLog(path)
    log.begin(Version(1, 2), at=9.0)
    log.write(Version(1, 3), {"a/x": 30}, at=10.0)
    log.close()
    assert [(r["step"], r["a/x"]) for r in read_rows(path)] == [(1, 1), (2, 2), (3, 30)]
    assert [r["a/x"] for r in read_rows(path, lost_future=True) if "a/x" in r] == [1, 2, 3, 30, 4]


def test_a_lineage_that_forks_before_another_fork_removes_both_futures(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, *[(0, s, {"a/x": s}) for s in range(1, 6)], (1, 4, {}), (1, 5, {"a/x": 50}), (2, 1, {}))
    assert [(r["step"], r["a/x"]) for r in read_rows(path)] == [(1, 1)]


def test_a_line_cut_short_by_a_crash_is_not_read_and_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, (0, 1, {"a/x": 1}))
    with path.open("ab") as file:
        file.write(b'{"lineage": 0, "st')
    assert len(read_rows(path)) == 1
    _write(path, (0, 2, {"a/x": 2}))
    assert [r["step"] for r in read_rows(path)] == [1, 2]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"lineage": 0, "step": 1}\nnonsense\n')
    with pytest.raises(MetricError, match=r"metrics\.jsonl:2: not a line of metrics"):
        read_rows(path)


def test_a_table_of_a_run_without_steps_is_empty(tmp_path: Path) -> None:
    assert len(read_table(tmp_path / "metrics.jsonl")) == 0
