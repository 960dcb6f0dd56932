"""Plots that are drawn while a run is ended."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.deploy.drawing import Drawing
from penstock.services import plots


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "write_plots", drawn.append)
    return drawn


def test_plots_are_drawn_once_whether_begun_early_or_not(drawn: list[Any]):
    early, late = Drawing("one", 60), Drawing("two", 60)  # type: ignore[arg-type]
    early.begin()
    early.begin()
    assert (early.finish(), late.finish()) == ("", "")
    assert drawn == ["one", "two"]


def test_a_plot_that_fails_is_told_and_hides_nothing(monkeypatch: pytest.MonkeyPatch):
    def fail(_: Any) -> None:
        raise ValueError("no such column")

    monkeypatch.setattr(plots, "write_plots", fail)
    assert Drawing("one", 60).finish() == "the plots could not be drawn: ValueError: no such column"  # type: ignore[arg-type]


def test_a_plot_that_hangs_is_not_waited_for_beyond_the_deadline(monkeypatch: pytest.MonkeyPatch):
    over = threading.Event()
    monkeypatch.setattr(plots, "write_plots", lambda _: over.wait(60))
    directory: Any = SimpleNamespace(path="runs/one")
    said = Drawing(directory, 0.05).finish()
    over.set()
    assert said.startswith("the plots were not drawn within 0.05 s (deadlines.drain)")
    assert said.endswith("penstock plot runs/one")
