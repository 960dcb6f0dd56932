"""What a run writes down: lines, samples, the status, the estimate of what is left."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from penstock.deploy.config import LimitsSection, RecordingSection
from penstock.deploy.fleet import Member
from penstock.deploy.journal import Journal
from penstock.deploy.status import status
from penstock.services.lanes import Span
from penstock.services.metrics import read_rows
from penstock.services.rundir import RunDir
from penstock.services.versions import Version


class Screen:
    def __init__(self) -> None:
        self.views = []

    def update(self, view) -> None:
        self.views.append(view)


@pytest.fixture
def directory(tmp_path):
    return RunDir.create(tmp_path, "journal", "name: journal\n")


def journal_of(directory, screen=None, **limits) -> Journal:
    return Journal(directory, "journal", RecordingSection(samples=1, samples_every=2), LimitsSection(**limits), screen)


def test_every_step_is_a_line_and_a_late_evaluation_joins_its_own_step(directory):
    journal = journal_of(directory)
    journal.begin(Version(0, 0))
    journal.step(Version(0, 1), {"reward/mean": 0.5}, [], 10.0)
    journal.step(Version(0, 2), {"reward/mean": 0.6}, [], 11.0)
    journal.evaluated(Version(0, 1), {"eval/accuracy": 0.7})
    journal.close()
    rows = read_rows(directory.metrics)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[1]["reward/mean"] == 0.5 and rows[1]["eval/accuracy"] == 0.7
    assert "eval/accuracy" not in rows[2]


def test_samples_are_written_of_every_so_many_steps_and_no_more_than_asked_for(directory):
    journal = journal_of(directory)
    for step in (1, 2):
        journal.step(Version(0, step), {}, [{"answer": "a"}, {"answer": "b"}], 10.0)
    assert directory.read_samples(2) == [{"answer": "a"}]
    assert [p.name for p in directory.samples.iterdir()] == ["step-000002-lineage-0.jsonl"]


def test_the_status_on_disk_is_what_the_display_was_shown(directory):
    screen = Screen()
    journal = journal_of(directory, screen, steps=10)
    journal.enter("training", "all is well")
    journal.step(Version(0, 3), {"reward/mean": 0.5}, [], 10.0)
    journal.show((), None)
    (view,) = screen.views
    read = status(directory.path).view
    assert (read.phase, read.step, read.steps_total, read.message) == ("training", 3, 10, "all is well")
    assert read == view
    assert [event.kind for event in directory.read_events()] == ["training"]


def test_what_is_left_follows_the_pace_and_the_nearer_limit(directory, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    journal = journal_of(directory, steps=10)
    journal.begin(Version(0, 0))
    assert journal.time_left() is None
    for step in range(1, 5):
        now[0] += 2.0
        journal.step(Version(0, step), {}, [], 10.0)
    assert journal.time_left() == pytest.approx(6 * 2.0)
    hurried = journal_of(directory, steps=10, minutes=0.1)
    assert hurried.time_left() == pytest.approx(6.0, abs=0.5)


def test_the_address_of_the_page_is_shown_at_once_and_stays(directory):
    screen = Screen()
    journal = journal_of(directory, screen)
    journal.serve(None)
    assert screen.views == []
    page = Served("http://127.0.0.1:8400/")
    journal.serve(page)
    assert screen.views[0].message == "watch the run at http://127.0.0.1:8400/"
    journal.enter("training")
    journal.show((), None)
    assert screen.views[1].page == "http://127.0.0.1:8400/"
    assert [event.facts["address"] for event in directory.read_events() if event.kind == "dashboard"] == [
        "http://127.0.0.1:8400/"
    ]
    page.address, page.says = "", "the page is given up\nand this is why"
    journal.show((), None)
    assert (screen.views[2].page, screen.views[2].message) == ("", "the page is given up")
    assert [event.facts for event in directory.read_events() if event.kind == "warning"] == [{"name": "dashboard"}]


@dataclass
class Served:
    """A page that says something of itself once."""

    address: str
    says: str = ""

    def look(self) -> str:
        said, self.says = self.says, ""
        return said


def test_what_the_members_did_is_written_once(directory):
    journal = journal_of(directory)
    member = Member("rollout-0", "rollout", directory.log("rollout-0"), lambda _: None)
    member.spans = [Span("generating", 1.0, 2.0)]
    journal.show([member], None)
    journal.show([member], None)
    journal.close()
    assert directory.activity.read_text() == '{"lanes":{"rollout-0":[["generating",1.0,2.0]]}}\n'
