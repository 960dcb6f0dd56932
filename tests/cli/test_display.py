"""A run on the terminal: the live panel and plain lines."""

from __future__ import annotations

import dataclasses
import io

from rich.console import Console
from views import counts, view

from penstock.cli.display import LivePanel, PlainLines, make_display, panel
from penstock.deploy.view import Controls, RunView, WorkerView


def _lines(*views: RunView) -> list[str]:
    stream = io.StringIO()
    display = PlainLines(stream)
    for one in views:
        display.update(one)
    display.close()
    return [line.removeprefix("[penstock] ") for line in stream.getvalue().splitlines()]


def _drawn(one: RunView, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(panel(one))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_output_to_a_pipe_gets_plain_lines() -> None:
    assert isinstance(make_display(), PlainLines)


def test_plain_lines_say_each_step_once() -> None:
    twelve = view()
    thirteen = dataclasses.replace(twelve, step=13, version="0.13")
    lines = _lines(twelve, twelve, thirteen)
    assert lines == [
        "run directory: /runs/sort-20250101-1",
        "training",
        "step 12/100  version 0.12  reward 0.625  accuracy 0.500  lag 0.75  max lag 2  kl/reference 1.23e-03 nat  "
        "rollout 4.1k tok/s  learner 987 tok/s  left 3 min 20 s",
        lines[2].replace("step 12", "step 13").replace("0.12 ", "0.13 "),
    ]


def test_plain_lines_say_phases_messages_and_deaths() -> None:
    starting = view(phase="starting", metrics={}, step=0, message="engines compile")
    dead = WorkerView("rollout-1", "rollout", "dead: out of memory")
    ill = view(step=0, metrics={}, workers=(dead,))
    assert _lines(starting, starting, ill, ill)[1:] == [
        "starting: engines compile",
        "training",
        "rollout-1 dead: out of memory",
    ]


def test_the_panel_shows_what_is_held_and_by_whom_also_when_something_was_said_since() -> None:
    held = view(message="a checkpoint was written", controls=Controls(paused_by="pause by ada@lab", gate_open=False))
    text = _drawn(held)
    assert "paused by pause by ada@lab; `penstock go` lets it go on; the gate is held closed" in " ".join(text.split())
    assert "held closed" not in _drawn(view())
    assert "held closed" not in _drawn(dataclasses.replace(held, phase="draining")), "nothing can be asked for any more"


def test_the_panel_shows_progress_numbers_ledger_and_workers() -> None:
    text = _drawn(view())
    for part in (
        "sort · training",
        "12 / 100",
        "version 0.12",
        "3 min 20 s left",
        "0.625",
        "4.1k tok/s",
        "committed",
        "300",
        "stale 3",
        "rollout-0",
        "waiting [lag]",
        "4711",
        "/runs/sort-20250101-1",
    ):
        assert part in text, f"{part!r} is missing in\n{text}"


def test_what_workers_refused_is_shown_with_the_last_cause() -> None:
    ledger = dataclasses.replace(
        counts(), refused={"unscored": 7, "stale": 2}, causes={"unscored": "KeyError: [answer]", "stale": ""}
    )
    troubled = view(ledger=ledger)
    assert "refused by workers: stale 2, unscored 7" in _lines(troubled)[2]
    text = _drawn(troubled)
    assert "by workers: 7 unscored, the last since KeyError: [answer]" in text
    assert "by workers: 2 stale, the last since no cause was given" in text


def test_the_panel_says_where_prometheus_finds_a_run_that_goes_on() -> None:
    line = "metrics for Prometheus: http://10.0.0.1:4000/metrics"
    assert line in _drawn(view(scrape=("10.0.0.1:4000",)))
    assert line not in _drawn(view(scrape=("10.0.0.1:4000",), phase="finished"))
    assert "Prometheus" not in _drawn(view())


def test_the_panel_of_a_run_that_just_began_has_nothing_to_show_yet() -> None:
    text = _drawn(RunView(phase="starting", step=0, steps_total=None, version="0.0"))
    assert "starting" in text
    assert "issued" not in text


def test_the_panel_says_where_the_page_is() -> None:
    assert "page: http://127.0.0.1:8400/" in _drawn(view(page="http://127.0.0.1:8400/"))


def test_the_panel_fits_a_narrow_terminal() -> None:
    assert max(map(len, _drawn(view(), width=80).splitlines())) <= 80


def test_the_last_live_panel_stays_on_the_screen() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    live = LivePanel(console)
    live.update(view())
    live.update(view(phase="finished", step=100))
    live.close()
    assert "finished" in console.file.getvalue()  # type: ignore[attr-defined]
