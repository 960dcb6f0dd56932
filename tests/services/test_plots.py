"""Plots are files that hold something, whatever was recorded."""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path
from typing import Literal

import pytest

from penstock.services.metrics import MetricsLog
from penstock.services.plots import PLOTS, learning_curve, write_plots
from penstock.services.rundir import RunDir
from penstock.services.versions import Version


def _run(tmp_path: Path, seed: int = 0, steps: int = 40) -> RunDir:
    run = RunDir.create(tmp_path / "runs", "sort", "name: sort\n")
    log = MetricsLog(run.metrics)
    names = [line.metric for plot in PLOTS for panel in plot.panels for line in panel.lines]
    for step in range(steps):
        skill = 1 - math.exp(-(step + seed) / 12)
        values = {name: skill for name in names if not name.startswith("eval/")}
        if step % 8 == 0:
            values |= {name: skill for name in names if name.startswith("eval/")}
        log.write(Version(0, step), values, at=100.0 + step)
    log.close()
    return run


def _size(png: bytes) -> tuple[int, int]:
    head = png[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def _ink(png: bytes) -> float:
    """Share of the picture that is not white, by every second pixel of every second line."""
    from matplotlib.image import imread

    picture = imread(io.BytesIO(png))[::2, ::2, :3]
    return float((picture < 0.9).any(axis=-1).mean())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, dict[str, bytes]]:
    """A run and its plots, drawn once."""
    run = _run(tmp_path_factory.mktemp("plots"))
    return run, {path.name: path.read_bytes() for path in write_plots(run)}


def test_every_plot_is_drawn_and_holds_something(drawn: tuple[RunDir, dict[str, bytes]]) -> None:
    _, written = drawn
    assert list(written) == [
        "reward.png",
        "lag.png",
        "staleness.png",
        "kl.png",
        "throughput.png",
        "lengths.png",
    ]
    for png in written.values():
        width, height = _size(png)
        assert width > 600
        assert height > 400
        assert 0.01 < _ink(png) < 0.5


def test_what_was_not_recorded_is_left_out(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "runs", "sort", "name: sort\n")
    assert write_plots(run) == []
    log = MetricsLog(run.metrics)
    log.write(Version(0, 1), {"off_policy/mean": 0.5, "off_policy/max": math.nan}, at=1.0)
    log.close()
    assert [p.name for p in write_plots(run)] == ["lag.png"]


def test_the_same_numbers_give_the_same_file(drawn: tuple[RunDir, dict[str, bytes]]) -> None:
    run, written = drawn
    (again,) = write_plots(run, [plot for plot in PLOTS if plot.name == "lag"])
    assert again.read_bytes() == written["lag.png"]


@pytest.mark.parametrize(("seeds", "over"), [(1, "step"), (3, "step"), (3, "minutes")])
def test_a_learning_curve_over_seeds_of_different_length(
    tmp_path: Path, seeds: int, over: Literal["step", "minutes"]
) -> None:
    runs = [_run(tmp_path, seed, 40 - seed * 4) for seed in range(seeds)]
    assert _ink(learning_curve(runs, tmp_path / "curve.png", over=over).read_bytes()) > 0.01


def test_where_a_guard_fired_there_is_a_mark_across_every_plot(tmp_path: Path) -> None:
    run = _run(tmp_path)
    before = {path.name: _ink(path.read_bytes()) for path in write_plots(run)}
    run.add_event("guard", "guard kl: it has fired as often as it may", name="kl", step=15, what="exhausted")
    assert {path.name: _ink(path.read_bytes()) for path in write_plots(run)} == before
    for step in (10, 20, 20):
        run.add_event("guard", "guard kl: kl/reference > 1", name="kl", step=step)
    after = {path.name: _ink(path.read_bytes()) for path in write_plots(run)}
    assert all(after[name] > before[name] for name in before)
