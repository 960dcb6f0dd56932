"""A run is found by its directory or by its name, here or on a cluster; and seen and steered from elsewhere as from
beside it. The cluster is a fake whose desks are the real class, called without Ray."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import ray
from views import view

from penstock.deploy import mirror, reach
from penstock.deploy.desk import Card, RunDesk, files_of
from penstock.deploy.listing import listing
from penstock.deploy.mirror import Mirror
from penstock.deploy.reach import PAGE, STORY
from penstock.deploy.status import status_of
from penstock.deploy.view import Controls
from penstock.services.control import Answer, NoAnswer, Pause, Refused
from penstock.services.mailbox import Mailbox
from penstock.services.metrics import MetricsLog, read_rows
from penstock.services.rundir import RunDir, RunDirError
from penstock.services.versions import Version

Ended = ray.exceptions.RayActorError


class Handle:
    """A desk whose calls are made when they are waited for; once `gone`, they fail as calls to a dead actor do."""

    def __init__(self, directory: RunDir, run_id: str) -> None:
        self.desk = RunDesk(msgspec.json.encode(Card(run_id, str(directory.path), "lab-3", 4711)))
        self.gone = False
        for name in ("card", "news", "send"):
            setattr(self, name, SimpleNamespace(remote=lambda *given, name=name: (self, name, given)))


def answered(call, timeout: float):
    handle, name, given = call
    if handle.gone:
        raise Ended
    return getattr(handle.desk, name)(*given)


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror.ray, "get", answered)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def a_run(folder: Path, name: str, **changes: object) -> RunDir:
    run = RunDir.create(folder, name, f"name: {name}\n")
    run.write_status(view(run_dir=str(run.path), **changes))
    return run


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Handle]:
    """Runs that go on elsewhere; the cluster is asked only where an address is given."""
    desks = {}
    for name in ("carry", "carry", "sort"):
        run = a_run(tmp_path / "far", name)
        run_id = f"{run.path.name}-0a1b2c3d"
        desks[run_id] = Handle(run, run_id)

    @contextlib.contextmanager
    def joined(address: str) -> Iterator[dict[str, Handle]]:
        assert address == "head:6379"
        yield desks

    monkeypatch.setattr(reach, "joined", joined)
    monkeypatch.setattr("penstock.deploy.listing.joined", joined)
    return desks


def found(run, runs_dir: Path, address: str | None = None) -> str:
    with reach.reach(run, runs_dir, address) as there:
        return str(there.place)


def test_a_directory_a_name_and_a_run_files_name_lead_to_a_run_here(tmp_path: Path):
    older, newer = a_run(tmp_path, "carry"), a_run(tmp_path, "carry")
    other = a_run(tmp_path, "sort")
    assert found(str(older.path), tmp_path) == str(older.path)
    assert found(older.path.name, tmp_path) == str(older.path)
    assert found("carry", tmp_path) == str(newer.path), "the newest of the runs of that file"
    assert found(None, tmp_path) == str(other.path), "the newest of all"


def test_what_is_nowhere_is_told_with_what_there_is_and_the_nearest(tmp_path: Path, far):
    local = a_run(tmp_path / "near", "sums")
    with pytest.raises(RunDirError) as error:
        found("cary", tmp_path / "near", "head:6379")
    said = str(error.value)
    assert said.startswith("there is no run 'cary'; nearest: carry; ")
    assert f"under {tmp_path / 'near'}: {local.path.name}" in said
    assert "running on the Ray cluster at head:6379: carry-" in said
    with pytest.raises(RunDirError, match="no Ray cluster was asked: name one with --address, or in RAY_ADDRESS"):
        found("cary", tmp_path / "near")


def test_a_folder_that_is_no_run_says_what_it_lacks(tmp_path: Path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(RunDirError, match=r"is no run directory: it lacks config\.yaml"):
        found(tmp_path / "notes", tmp_path)


def test_a_path_that_leads_nowhere_names_the_run_nearest_to_it(tmp_path: Path):
    run = a_run(tmp_path / "elsewhere", "carry")
    with pytest.raises(RunDirError, match=f"does not exist; nearest: {run.path}"):
        found(run.path.with_name("cary"), tmp_path)


def test_names_on_the_cluster_are_those_of_directories_run_files_and_ids_and_must_mean_one_run(tmp_path: Path, far):
    first, second, third = far
    for name, meant in ((first, first), (second[:-9], second), ("sort", third)):
        assert found(name, tmp_path, "head:6379") == f"{tmp_path / 'far' / meant[:-9]} on lab-3"
    with pytest.raises(RunDirError, match=f"carry may be one of several runs on the cluster: {first}, {second}"):
        found("carry", tmp_path, "head:6379")
    with pytest.raises(RunDirError, match="there are several runs on the cluster"):
        found(None, tmp_path, "head:6379")


def test_a_run_here_goes_before_one_of_the_same_name_elsewhere(tmp_path: Path, far):
    here = a_run(tmp_path, "sort")
    assert found("sort", tmp_path, "head:6379") == str(here.path)


def test_a_run_elsewhere_is_seen_as_from_beside_it(tmp_path: Path, far):
    run = RunDir.open(tmp_path / "far" / list(far)[2][:-9])
    run.lock()
    with reach.reach("sort", tmp_path, "head:6379") as there:
        facts, beside = status_of(there.directory, there.place), status_of(run)
        assert (facts.verdict, facts.view, facts.alive) == (beside.verdict, beside.view, True)
        run.write_status(view(step=77))
        there.refresh()
        assert status_of(there.directory).view.step == 77
        run.unlock()
        there.refresh()
        assert not there.directory.locked
        assert f"penstock resume {run.path}" in status_of(there.directory, there.place).verdict
        copy = there.directory.path
    assert not copy.exists(), "nothing is left of the copy"


def test_what_grows_is_fetched_from_where_it_was_and_what_is_replaced_as_a_whole(tmp_path: Path, far, monkeypatch):
    handle = far[list(far)[2]]
    run = RunDir.open(tmp_path / "far" / list(far)[2][:-9])
    (tmp_path / "copy").mkdir()
    copied = Mirror(handle, Card("id", str(run.path), "lab-3", 1), tmp_path / "copy")
    log = MetricsLog(run.metrics)
    log.begin(Version(0, 0), 1.0)
    for step in range(1, 4):
        log.write(Version(0, step), {"reward/mean": step / 10}, float(step))
        run.add_event("checkpoint", f"step {step}")
        monkeypatch.setattr("penstock.deploy.desk.MOST_BYTES", 40)  # so that it takes several answers
        copied.refresh(STORY)
        assert copied.directory.metrics.read_bytes() == run.metrics.read_bytes()
    log.close()
    assert [row["step"] for row in read_rows(copied.directory.metrics)] == [0, 1, 2, 3]
    assert copied.directory.read_events() == run.read_events()
    run.metrics.write_bytes(run.metrics.read_bytes()[:60])  # as a resume cuts off what a crash left half written
    copied.refresh(STORY)
    assert copied.directory.metrics.read_bytes() == run.metrics.read_bytes()
    copied.close()


def test_of_many_files_the_newest_are_passed_on_and_what_is_gone_there_is_gone_here(tmp_path: Path, far, monkeypatch):
    monkeypatch.setattr("penstock.deploy.desk.MOST_FILES", 3)
    run = RunDir.open(tmp_path / "far" / list(far)[2][:-9])
    with reach.reach("sort", tmp_path, "head:6379", PAGE) as there:
        for step in range(1, 6):
            run.write_samples(Version(0, step), [{"step": step}])
            there.refresh()
        assert there.directory.sampled() == run.sampled()[-3:]
        run.samples_of(Version(0, 5)).unlink()
        there.refresh()
        assert [version.step for version in there.directory.sampled()] == [2, 3, 4]


def test_when_the_driver_is_gone_the_copy_stays_and_is_no_longer_locked(tmp_path: Path, far):
    with reach.reach("sort", tmp_path, "head:6379") as there:
        far[list(far)[2]].gone = True
        there.refresh()
        assert not there.directory.locked and status_of(there.directory).view.step == 12
        with pytest.raises(NoAnswer, match="its driver is gone"):
            there.control.send(Pause(), "me", 1)


def test_commands_go_through_the_desk_into_the_runs_own_mailbox(tmp_path: Path, far):
    run = RunDir.open(tmp_path / "far" / list(far)[2][:-9])
    with reach.reach("sort", tmp_path, "head:6379") as there:
        with pytest.raises(NoAnswer, match="is not running: no driver holds it"):
            there.control.send(Pause(), "ada@lab-1", 1)
        run.lock()
        asked = []

        def driver() -> None:
            mailbox = Mailbox(run)
            answers = [Answer(True, "paused"), Answer(False, "the run is paused already")]
            ends = time.monotonic() + 20
            while answers and time.monotonic() < ends:
                mailbox.serve(lambda wish: (asked.append(wish), answers.pop(0))[1])
                time.sleep(0.02)

        driving = threading.Thread(target=driver)
        driving.start()
        assert there.control.send(Pause(), "ada@lab-1", 10) == "paused"
        with pytest.raises(Refused, match="the run is paused already"):
            there.control.send(Pause(), "ada@lab-1", 10)
        driving.join()
        assert [(wish.by, wish.command) for wish in asked] == [("ada@lab-1", Pause())] * 2
        run.unlock()


def test_what_is_no_command_of_this_version_is_refused(tmp_path: Path, far):
    outcome, said = next(iter(far.values())).desk.send(b'{"type": "fly"}', "me", 1.0)
    assert outcome == "refused" and "fly" in said


@pytest.mark.parametrize("pattern", ["../*", "/etc/*", "samples/../../*"])
def test_a_desk_shows_nothing_outside_of_the_run_directory(tmp_path: Path, pattern: str):
    with pytest.raises(ValueError, match="leads out of the run directory"):
        list(files_of(tmp_path, [pattern]))


def test_runs_here_and_elsewhere_are_listed_the_freshest_first(tmp_path: Path, far):
    ended = a_run(tmp_path / "near", "sums", phase="finished", step=100)
    RunDir.create(tmp_path / "near", "new", "name: new\n")
    rows = listing(tmp_path / "near", "head:6379")
    states = {row.name: (row.state, row.step, row.place) for row in rows}
    assert states[ended.path.name] == ("finished", 100, str(ended.path))
    sort = list(far)[2][:-9]
    assert states[sort] == ("died while training", 12, f"{tmp_path / 'far' / sort} on lab-3")
    assert states[next(name for name in states if name.startswith("new"))][:2] == ("never started", None)
    assert len(rows) == 5 and [row.age for row in rows] == sorted(row.age for row in rows)
    assert len(listing(tmp_path / "near", None)) == 2


def test_a_run_that_somebody_has_paused_is_listed_as_paused(tmp_path: Path):
    run = a_run(tmp_path, "sums", controls=Controls(paused_by="ada"))
    run.lock()
    assert [row.state for row in listing(tmp_path, None)] == ["paused"]
    run.unlock()


def test_a_run_that_is_found_here_and_on_the_cluster_is_listed_once(tmp_path: Path, far):
    first = next(iter(far))
    (tmp_path / "far" / first[:-9] / ".run-id").write_text(first)
    rows = listing(tmp_path / "far", "head:6379")
    assert len([row for row in rows if row.name == first[:-9]]) == 1


def test_a_desk_that_is_started_again_and_again_is_not_waited_for_without_end(monkeypatch, tmp_path: Path, far):
    def away(*_, **__):
        raise ray.exceptions.ActorUnavailableError("starting again", None)

    handle = next(iter(far.values()))
    card = Card("carry", "/far/carry", "lab-3", 4711)
    copy = Mirror(handle, card, tmp_path)
    monkeypatch.setattr(mirror.ray, "get", away)
    monkeypatch.setattr(mirror, "_ANSWER", 0.1)
    with pytest.raises(NoAnswer, match=r"waited 0\.1 s for the desk of carry on lab-3"):
        copy.refresh(STORY)
    copy.close()
