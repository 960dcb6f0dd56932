"""What the page is told, and what becomes of what it asks."""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from page_parts import JSON, Control, a_run, client
from starlette.testclient import TestClient

from penstock.services.control import Gate, Scale, SetCoefficient
from penstock.services.dashboard.chronicle import Chronicle
from penstock.services.metrics import MetricsLog
from penstock.services.rundir import RunDir
from penstock.services.versions import Version


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return a_run(tmp_path)


@pytest.fixture
def control() -> Control:
    return Control()


@pytest.fixture
def page(run: RunDir, control: Control) -> Iterator[TestClient]:
    with client(run, control) as opened:
        until(lambda: opened.get("/api/live").json()["steps"] == [0, 20])
        yield opened


def until(true: Callable[[], bool], deadline: float = 5.0) -> None:
    ends = time.monotonic() + deadline
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_one_answer_has_everything_that_is_new(page: TestClient) -> None:
    told = page.get("/api/live", params={"select": "reward/*", "lanes_span": 60}).json()
    assert told["metrics"]["last"] == list(range(21))
    assert told["metrics"]["values"] == {"reward/mean": [[None, *[step / 20 for step in range(1, 21)]]]}
    assert [event["kind"] for event in told["events"]] == ["training", "guard", "joined"]
    assert told["events"][1]["step"] == 7
    assert told["lanes"] == {"rollout-0": [["generating", 1000.0, 1010.0], ["swapping weights", 1010.0, 1011.0]]}
    assert told["shares"] == {"rollout-0": {"generating": 10.0, "swapping weights": 1.0}}
    assert told["lanes_end"] == 1011.0
    assert told["status"]["verdict"] == "training"
    assert "metrics" not in told["status"]["facts"]["view"]


def test_who_has_it_already_is_told_only_what_came_since(page: TestClient, run: RunDir) -> None:
    first = page.get("/api/live", params={"select": "reward/*"}).json()
    have = {
        "select": "reward/*",
        "revision": first["metrics"]["revision"],
        "width": first["metrics"]["width"],
        "events": first["events"][-1]["number"],
        "lanes_from": 1011.0,
    }
    again = page.get("/api/live", params=have).json()
    assert again["metrics"]["begin"] is None
    assert again["events"] == []
    assert again["lanes"] == {}
    log = MetricsLog(run.metrics)
    log.write(Version(0, 21), {"reward/mean": 0.5}, 1021.0)
    run.add_event("steered", "page: a checkpoint", by="page")
    until(lambda: page.get("/api/live", params=have).json()["events"] != [])
    until(lambda: page.get("/api/live", params=have).json()["metrics"]["begin"] is not None)
    news = page.get("/api/live", params=have).json()
    assert news["metrics"]["begin"] == 21
    assert news["metrics"]["values"] == {"reward/mean": [[0.5]]}
    assert [event["kind"] for event in news["events"]] == ["steered"]
    assert news["events"][0]["facts"]["by"] == "page"


def test_steps_can_be_looked_at_alone(page: TestClient) -> None:
    told = page.get("/api/live", params={"select": "kl/reference", "first": 5, "last": 7}).json()
    assert told["metrics"]["last"] == [5, 6, 7]
    assert told["steps"] == [0, 20]


def test_a_damaged_file_is_said_and_the_rest_goes_on(tmp_path: Path, control: Control) -> None:
    run = a_run(tmp_path)
    with run.metrics.open("a") as file:
        file.write("nonsense\n")
    with client(run, control) as opened:
        until(lambda: "not a line of metrics" in opened.get("/api/live").json()["damage"])
        assert len(opened.get("/api/live").json()["events"]) == 3
        MetricsLog(run.metrics).write(Version(0, 21), {"reward/mean": 0.5}, 1021.0)
        until(lambda: opened.get("/api/live").json()["steps"] == [0, 21])


def test_files_that_cannot_be_read_for_a_while_are_read_later(
    run: RunDir, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = OSError(errno.EIO, "away", str(run.events))
    with client(run, control) as opened, monkeypatch.context() as broken:
        broken.setattr(Chronicle, "follow", Mock(side_effect=away))
        until(lambda: "cannot be read" in opened.get("/api/live").json()["damage"])
        broken.undo()
        run.add_event("steered", "page: a checkpoint")
        until(lambda: opened.get("/api/live").json()["damage"] == "")
        until(lambda: opened.get("/api/live").json()["events"][-1]["kind"] == "steered")


def test_a_page_that_reads_no_more_says_so(run: RunDir, control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chronicle, "follow", Mock(side_effect=ZeroDivisionError("a fault of the page")))
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with client(run, control) as opened:
        said = "ZeroDivisionError: a fault of the page; start it again"
        until(lambda: said in opened.get("/api/live").json()["damage"])


def test_metrics_are_told_with_what_they_mean(page: TestClient) -> None:
    told = page.get("/api/metrics").json()
    assert told["reward/mean"] == {"value": 1.0, "help": "mean reward", "unit": "", "good": "up", "estimator": ""}
    assert told["kl/reference"]["unit"] == "nat"


def test_the_run_file_is_told_as_it_was_written_down(page: TestClient, run: RunDir) -> None:
    told = page.get("/api/run").json()
    assert told["name"] == "sort"
    assert told["run_dir"] == str(run.path)
    assert told["config"]["store"]["url"] == "redis://:***@host"


def test_samples_of_a_step_that_has_none_name_the_nearest(page: TestClient, run: RunDir) -> None:
    run.write_samples(Version(0, 3), [{"answer": "4"}])
    assert page.get("/api/samples/3").json() == [{"answer": "4"}]
    missing = page.get("/api/samples/9")
    assert missing.status_code == 404
    assert "the nearest is 3" in missing.json()["detail"]


def test_a_command_goes_to_the_run_with_who_asked(page: TestClient, control: Control) -> None:
    for body in (
        '{"type": "scale", "role": "rollout", "count": 3}',
        '{"type": "gate", "open": false}',
        '{"type": "set", "name": "kl.coefficient", "value": 0.02}',
    ):
        assert page.post("/api/commands", content=body, headers=JSON).status_code == 200
    commands = [command for command, _ in control.asked]
    assert commands == [Scale("rollout", 3), Gate(open=False), SetCoefficient("kl.coefficient", 0.02)]
    assert {by for _, by in control.asked} == {"page from testclient, served by ada@lab"}


def test_what_the_run_refuses_is_told_with_its_reason(page: TestClient) -> None:
    answer = page.post("/api/commands", content='{"type": "scale", "role": "rollout", "count": 9}', headers=JSON)
    assert (answer.status_code, answer.json()["detail"]) == (409, "9 workers are more than 4")


def test_a_run_that_has_ended_answers_nothing_and_that_is_told(page: TestClient, control: Control) -> None:
    control.gone = True
    answer = page.post("/api/commands", content='{"type": "pause"}', headers=JSON)
    assert answer.status_code == 503
    assert "is not running" in answer.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{}",
        "[]",
        '{"type": "explode"}',
        '{"type": "scale", "role": "learner", "count": 2}',
        '{"type": "scale", "role": "rollout", "count": 2, "now": true}',
        '{"type": "set", "name": "kl.coefficient", "value": "much"}',
        '{"type": "scale", "role": "rollout", "count": ' + 5000 * "9" + "}",
        b'{"type": "stop", "why": "\xff"}',
        '{"type": "stop", "why": "' + 2000 * "x" + '"}',
        '{"type": "remove", "name": "' + 2000 * "x" + '"}',
    ],
)
def test_what_is_no_command_is_told_and_never_reaches_the_run(
    page: TestClient, control: Control, body: str | bytes
) -> None:
    answer = page.post("/api/commands", content=body, headers=JSON)
    assert answer.status_code == 422
    assert "no command" in answer.json()["detail"]
    assert control.asked == []


def test_what_cannot_be_asked_for_is_told_in_a_sentence(page: TestClient) -> None:
    answer = page.get("/api/live", params={"buckets": "many"})
    assert answer.status_code == 422
    assert re.fullmatch(r"query\.buckets: .* valid integer.*; found 'many'", answer.json()["detail"])


def test_the_schema_names_every_route_and_every_command(page: TestClient) -> None:
    schema = page.get("/api/openapi.json").json()
    assert {"/api/live", "/api/status", "/api/run", "/api/metrics", "/api/samples/{step}", "/api/commands"} <= set(
        schema["paths"]
    )
    body = schema["paths"]["/api/commands"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    kinds = {kind for one in body["oneOf"] for kind in one["properties"]["type"]["enum"]}
    assert {"scale", "remove", "pause", "resume", "checkpoint", "gate", "set", "stop"} <= kinds
    assert "Live" in schema["components"]["schemas"]
