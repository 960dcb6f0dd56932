"""`penstock status --watch`: the facts again and again, until the run is over."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from views import view

from penstock.cli import watch as watching
from penstock.deploy.status import Status
from penstock.deploy.view import RunView


def facts(one: RunView | None, alive: bool = True, age: float = 0.0) -> Status:
    return Status(Path("/runs/sort-1"), one, alive, age, None)


def looks(*all_of_them: Status):
    """One after the other, and the last again and again."""
    left = list(all_of_them)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


class Screen:
    def __init__(self) -> None:
        self.shown: list[Status] = []
        self.closed = False

    def show(self, facts: Status) -> None:
        self.shown.append(facts)

    def close(self) -> None:
        self.closed = True


def test_a_run_is_watched_until_two_looks_find_no_driver() -> None:
    screen = Screen()
    gone = facts(view(), alive=False)
    watching.watch(looks(facts(None, alive=False), facts(view()), facts(view(step=13)), gone), 0.0, screen)
    # A run that is about to begin is no run that is over.
    assert [look.alive for look in screen.shown] == [False, True, True, False, False]
    assert screen.closed


def test_the_terminal_is_given_back_when_a_look_fails() -> None:
    screen = Screen()

    def look() -> Status:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        watching.watch(look, 0.0, screen)
    assert screen.closed


def test_in_a_pipe_there_is_a_line_for_what_is_new(capsys: pytest.CaptureFixture[str]) -> None:
    screen = watching.make_screen(Console(file=io.StringIO()), json=False)
    died = facts(view(step=13), alive=False, age=42)
    watching.watch(looks(facts(view()), facts(view()), facts(view(step=13)), died), 0.0, screen)
    lines = [line.removeprefix("[penstock] ") for line in capsys.readouterr().out.splitlines()]
    assert [line.split("  ")[0] for line in lines] == [
        "run directory: /runs/sort-20250101-1",
        "training",
        "step 12/100",
        "step 13/100",
        "died while training, 42 s ago; go on with: penstock resume /runs/sort-1",
    ]


def test_a_driver_that_falls_silent_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    screen = watching.Lines()
    for age in (0.0, 20.0):
        screen.show(facts(view(), age=age))
    assert capsys.readouterr().out.count("but silent for 20 s") == 1


def test_for_scripts_every_look_is_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    screen = watching.make_screen(Console(), json=True)
    watching.watch(looks(facts(view()), facts(view(phase="finished"), alive=False)), 0.0, screen)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["verdict"] for one in said] == ["training", "finished", "finished"]
    assert said[0]["facts"]["view"]["step"] == 12


def test_on_a_terminal_the_panel_is_drawn_in_place() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120)
    screen = watching.make_screen(console, json=False)
    watching.watch(looks(facts(view()), facts(view(phase="finished"), alive=False)), 0.0, screen)
    text = file.getvalue()
    assert text.count("· training") == 1
    assert "· finished" in text
    assert "\x1b[1A" in text, "the cursor goes up, so that the panel stands where it stood"


def test_of_a_run_that_has_ended_the_head_has_the_memory_it_took() -> None:
    peaks = {f"rollout-{number}": (number + 1) * 10**9 for number in range(10)}
    ended = Status(Path("/runs/sort-1"), view(), False, 0.0, {"peak_memory_bytes": peaks})
    line = watching.head(ended).plain.splitlines()[-1]
    assert line.startswith("peak memory, GB: 55.0 in all: rollout-9 10.00, rollout-8 9.00")
    assert line.endswith("rollout-2 3.00 and 2 more")
    assert "memory" not in watching.head(facts(view())).plain
