"""Plots that are drawn while a run is ended."""

from __future__ import annotations

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
    early, late = Drawing("one"), Drawing("two")  # type: ignore[arg-type]
    early.begin()
    early.begin()
    assert (early.finish(), late.finish()) == ("", "")
    assert drawn == ["one", "two"]


def test_a_plot_that_fails_is_told_and_hides_nothing(monkeypatch: pytest.MonkeyPatch):
    def fail(_: Any) -> None:
        raise ValueError("no such column")

    monkeypatch.setattr(plots, "write_plots", fail)
    assert Drawing("one").finish() == "the plots could not be drawn: ValueError: no such column"  # type: ignore[arg-type]
