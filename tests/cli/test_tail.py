"""`penstock tail`: which events, what a line says, following until the run is over."""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path

import pytest

from penstock.cli import tail as tailing
from penstock.cli.tail import TailError, Wanted, line_of, moment
from penstock.services.rundir import RunDir, RunEvent

NOON = datetime(2026, 11, 26, 12, 0).astimezone().timestamp()


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Thirty events, every tenth a warning."""
    run = RunDir.create(tmp_path / "runs", "sums", "name: sums\n")
    for number in range(30):
        run.add_event("warning" if number % 10 == 9 else "swapped", f"event {number}", number=number)
    return run


def shown(run: RunDir, wanted: Wanted, follow: bool = False) -> tuple[list[str], list[str]]:
    """The messages, and what was noted besides."""
    messages: list[str] = []
    notes: list[str] = []
    tailing.tail(run, wanted, follow, lambda event, _: messages.append(event.message), notes.append)
    return messages, notes


# --- which events -------------------------------------------------------------------------------------


def test_the_last_twenty_are_shown_unless_another_number_is_asked_for(run: RunDir) -> None:
    assert shown(run, Wanted())[0] == [f"event {number}" for number in range(10, 30)]
    assert shown(run, Wanted(lines=2))[0] == ["event 28", "event 29"]
    assert shown(run, Wanted(lines=0))[0] == []


def test_a_kind_is_picked_out_of_all_that_happened(run: RunDir) -> None:
    assert shown(run, Wanted(frozenset(["warning"])))[0] == ["event 9", "event 19", "event 29"]


def test_a_kind_that_did_not_happen_is_refused_with_those_that_did(run: RunDir) -> None:
    with pytest.raises(TailError, match="of the kind warnin so far; there are: swapped, warning; nearest: warning"):
        shown(run, Wanted(frozenset(["warnin", "swapped"])))


def test_a_damaged_line_is_noted_and_hides_no_other(run: RunDir) -> None:
    with run.events.open("ab") as file:
        file.write(b'{"time": 1, "kind": "\xff", "message": ""}\n{"time": 1}\n')
    run.add_event("warning", "the last")
    messages, notes = shown(run, Wanted(lines=2))
    assert messages == ["event 29", "the last"]
    assert [note.startswith("passed over: not a line of events") for note in notes] == [True, True]


def test_since_a_moment_all_are_shown(run: RunDir) -> None:
    assert len(shown(run, Wanted(since=time.time() - 60))[0]) == 30
    assert shown(run, Wanted(since=time.time() + 60))[0] == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", NOON - 90),
        ("10m", NOON - 600),
        ("1.5h", NOON - 5400),
        ("2d", NOON - 172_800),
        ("11:30", NOON - 1800),
        ("11:59:30", NOON - 30),
        ("13:00", NOON - 82_800),  # of yesterday: there is none of today yet
        ("2026-11-26T11:00", NOON - 3600),
        ("2026-11-26", NOON - 43_200),
    ],
)
def test_a_moment_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert moment(text, NOON) == seconds


@pytest.mark.parametrize("text", ["5x", "", "yesterday", "25:00", "-3m"])
def test_what_is_no_moment_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(TailError, match=r"is no moment; allowed: .*10m.*14:03.*2026-11-26T14:03"):
        moment(text, NOON)


# --- one line -----------------------------------------------------------------------------------------


def test_a_line_says_when_what_and_the_facts_that_the_message_does_not() -> None:
    facts = {"name": "rollout-0", "seconds": 1.23456, "groups": [1, 2], "folder": "/runs/x", "cause": "a\nb"}
    line = line_of(RunEvent(NOON, "checkpoint", "rollout-0 wrote it", facts))
    assert line.plain == "2026-11-26 12:00:00  checkpoint  rollout-0 wrote it  (seconds=1.235, folder=/runs/x)"


def test_of_a_long_message_the_first_line_is_shown_and_the_rest_is_said_to_be_there() -> None:
    line = line_of(RunEvent(NOON, "died", "rollout-0 died\nlast words\nmore", {}))
    assert line.plain == "2026-11-26 12:00:00  died        rollout-0 died  (2 more lines: --json)"


def test_what_went_wrong_is_red_and_nothing_is_markup() -> None:
    line = line_of(RunEvent(NOON, "died", "[bold]rollout-0[/] died", {}))
    assert any("red" in str(span.style) for span in line.spans)
    assert "[bold]rollout-0[/] died" in line.plain


def test_an_event_without_a_message_is_a_line_too() -> None:
    assert line_of(RunEvent(NOON, "training", "", {})).plain.rstrip().endswith("training")


# --- following ----------------------------------------------------------------------------------------


def test_what_comes_is_shown_until_nobody_drives_the_run(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    coming = [["event 30"], [], ["event 31", "event 32"]]

    def sleep(_: float) -> None:
        for message in coming.pop(0) if coming else []:
            run.add_event("swapped", message)
        if not coming:
            run.unlock()

    monkeypatch.setattr(tailing.time, "sleep", sleep)
    run.lock()
    messages, notes = shown(run, Wanted(lines=1), follow=True)
    assert messages == ["event 29", "event 30", "event 31", "event 32"]
    assert notes == []


def test_a_kind_that_may_still_come_is_waited_for_and_it_is_said(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tailing.time, "sleep", lambda _: None)
    messages, notes = shown(run, Wanted(frozenset(["guard"])), follow=True)
    assert messages == []
    assert notes == ["no event of the kind guard so far; there are: swapped, warning"]


def test_a_line_that_is_being_written_is_shown_when_it_is_whole(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = os.open(run.events, os.O_WRONLY | os.O_APPEND)
    os.write(handle, b'{"time": 1.0, "kind": "swapped",')
    rest = iter([b' "message": "event 30"}\n'])
    monkeypatch.setattr(tailing.time, "sleep", lambda _: os.write(handle, next(rest, b"")))
    assert shown(run, Wanted(lines=1), follow=True)[0] == ["event 29", "event 30"]
    os.close(handle)


def test_a_run_without_events_yet_has_nothing_to_show(tmp_path: Path) -> None:
    assert shown(RunDir.create(tmp_path, "new", "name: new\n"), Wanted()) == ([], [])
