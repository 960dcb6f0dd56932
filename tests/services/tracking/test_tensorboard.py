"""TensorBoard's files, read by TensorBoard itself and compared with metrics.jsonl."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from penstock.services.metrics import MetricsLog, read_rows
from penstock.services.tracking.tensorboard import TensorBoard
from penstock.services.versions import Version


class Run:
    """One process after the other that writes the same run, as the driver does."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.metrics = folder / "tensorboard", folder / "metrics.jsonl"

    def start(self, begins: Version, steps: range, value: float) -> None:
        board, log = TensorBoard(self.folder, "name: run\ndata: <b>"), MetricsLog(self.metrics)
        board.open()
        board.begin(begins)
        log.begin(begins, 0.0)
        for step in steps:
            version, values = Version(begins.lineage, step), {"reward/mean": value + step, "kl/reference": step / 7}
            board.step(version, values, 1000.0 + step)
            log.write(version, values, 1000.0 + step)
        board.event(Version(begins.lineage, steps[-1]), "warning", "look <here>", 2000.0)
        board.close("finished")
        log.close()

    def read(self):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        return EventAccumulator(str(self.folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


def test_tensorboard_shows_what_metrics_jsonl_holds(run) -> None:
    run.start(Version(0, 0), range(1, 5), value=0.5)
    shown = run.read()
    assert set(shown.Tags()["scalars"]) == {"reward/mean", "kl/reference", "lineage"}
    rows = [row for row in read_rows(run.metrics) if "reward/mean" in row]
    for name in ("reward/mean", "kl/reference"):
        found = [(event.step, event.wall_time, event.value) for event in shown.Scalars(name)]
        assert found == [(row["step"], row["time"], pytest.approx(row[name], rel=1e-6)) for row in rows]


def test_a_lost_future_is_taken_out_as_in_the_table(run) -> None:
    run.start(Version(0, 0), range(1, 7), value=0.0)
    run.start(Version(1, 3), range(4, 6), value=100.0)
    shown = [(event.step, event.value) for event in run.read().Scalars("reward/mean")]
    assert shown == [(1, 1), (2, 2), (3, 3), (4, 104), (5, 105)]
    assert shown == [(r["step"], r["reward/mean"]) for r in read_rows(run.metrics) if "reward/mean" in r]
    assert [event.value for event in run.read().Scalars("lineage")] == [0, 0, 0, 1, 1]


def test_the_run_file_and_events_are_text(run) -> None:
    run.start(Version(0, 0), range(1, 3), value=0.0)
    shown = run.read()

    def text(tag: str) -> tuple[int, str]:
        (event,) = shown.Tensors(f"{tag}/text_summary")
        return event.step, event.tensor_proto.string_val[0].decode()

    assert text("config") == (0, "<pre>name: run\ndata: &lt;b&gt;</pre>")
    assert text("events/warning") == (2, "<pre>look &lt;here&gt;</pre>")


def test_infinities_and_not_a_number_are_shown_as_they_are(tmp_path) -> None:
    run = Run(tmp_path)
    board = TensorBoard(run.folder, "")
    board.open()
    board.step(Version(0, 1), {"a/x": math.inf, "a/y": math.nan}, 0.0)
    board.close("failed")
    shown = run.read()
    assert shown.Scalars("a/x")[0].value == math.inf
    assert math.isnan(shown.Scalars("a/y")[0].value)
