"""What guards do: commands with their name on them, events with the numbers, bounds that outlive a start of the run."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from penstock.deploy.config import LimitsSection, RecordingSection
from penstock.deploy.guards.config import GuardSection
from penstock.deploy.guards.guardian import Guardian
from penstock.deploy.journal import Journal
from penstock.services.control import (
    Answer,
    Checkpoint,
    Gate,
    Pause,
    RollBack,
    ScaleCoefficient,
    SetCoefficient,
    SetMaxLag,
    Stop,
)
from penstock.services.rundir import RunDir, RunDirError
from penstock.services.versions import Version


class Ear:
    """Says yes to everything but what it is told to refuse."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, object]] = []
        self.coefficients = {"kl.coefficient": 0.1, "max_lag": 3.0}
        self.paused = False
        self.refuses: tuple[type, ...] = ()

    def carry_out(self, asked) -> Answer:
        self.asked.append((asked.by, asked.command))
        if isinstance(asked.command, self.refuses):
            return Answer(False, "it cannot be done now")
        return Answer(True, f"did {type(asked.command).__name__}")

    @property
    def commands(self) -> list:
        return [command for _, command in self.asked]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Scene:
    def __init__(self, directory: RunDir, *guards: dict) -> None:
        self.directory, self.ear, self.clock = directory, Ear(), Clock()
        self.journal = Journal(directory, "guarded", RecordingSection(), LimitsSection(), None)
        made = [GuardSection.model_validate({"when": "a/b > 1", "cooldown": 0, **guard}) for guard in guards]
        self.guardian = Guardian(made, directory, self.journal, self.ear, self.clock)

    def step(self, number: int, value: float = 2.0) -> None:
        self.journal.version = Version(0, number)
        self.guardian.seen({"a/b": value}, number)
        self.guardian.act()

    def events(self) -> list:
        return [event for event in self.directory.read_events() if event.kind == "guard"]


@pytest.fixture
def directory(tmp_path) -> RunDir:
    return RunDir.create(tmp_path, "guarded", "name: guarded\n")


def test_every_action_becomes_its_command_in_the_order_of_the_file(directory):
    actions = [
        {"scale": "kl.coef", "by": 1.5, "at_most": 1.0},
        {"set": "lr", "to": 0.001},
        {"max_lag": "tighten"},
        {"gate": "close", "minutes": 2},
        "checkpoint",
        "pause",
    ]
    scene = Scene(directory, {"name": "g", "do": actions})
    scene.step(0, value=0.0)
    scene.step(7)
    assert scene.ear.commands == [
        ScaleCoefficient("kl.coef", 1.5, None, 1.0),
        SetCoefficient("lr", 0.001),
        SetMaxLag(2),
        Gate(open=False),
        Checkpoint(),
        Pause(),
    ]
    assert {by for by, _ in scene.ear.asked} == {"guard g"}


def test_a_roll_back_goes_to_before_the_condition_held(directory):
    scene = Scene(directory, {"do": "roll_back", "for": 2})
    for number, value in ((4, 0.0), (5, 2.0), (6, 2.0)):
        scene.step(number, value)
    assert scene.ear.commands == [RollBack(until=4)]


def test_a_firing_is_an_event_with_the_numbers_and_what_was_done_and_a_metric(directory):
    scene = Scene(directory, {"name": "g", "do": "checkpoint", "for": 2})
    assert scene.guardian.counts == {"guard/g": 0.0}
    scene.step(1)
    scene.step(2, 2.5)
    (event,) = scene.events()
    assert event.message == "guard g: a/b > 1 2 times in a row, found 2.5: did Checkpoint"
    assert event.facts == {
        "name": "g",
        "when": "a/b > 1",
        "value": 2.5,
        "step": 2,
        "what": "fired",
        "did": ["did Checkpoint"],
    }
    assert scene.guardian.counts == {"guard/g": 1.0}


def test_what_is_refused_is_said_and_the_next_action_is_done_all_the_same(directory):
    scene = Scene(directory, {"do": [{"scale": "kl.coef", "by": 2}, "checkpoint"]})
    scene.ear.refuses = (ScaleCoefficient,)
    scene.step(1)
    assert scene.ear.commands[-1] == Checkpoint()
    assert scene.events()[0].facts["did"][0] == "scale kl.coef, by 2.0 was refused: it cannot be done now"


def test_max_lag_moves_by_steps_to_its_ends_and_is_not_thrown_back(directory):
    opening = {"max_lag": "open", "by": 4, "at_most": 5}
    scene = Scene(directory, {"do": opening})
    scene.step(1)
    scene.ear.coefficients["max_lag"] = 9.0
    scene.step(2)
    assert scene.ear.commands == [SetMaxLag(5)]
    assert scene.events()[1].facts["did"] == ["max_lag stays at 9, its end"]


def test_a_gate_that_a_guard_has_closed_is_opened_when_its_time_is_over(directory):
    scene = Scene(directory, {"name": "g", "do": {"gate": "close", "minutes": 2}})
    scene.step(1)
    scene.clock.now += 119
    scene.guardian.look({}, 1)
    assert scene.ear.commands == [Gate(open=False)]
    scene.clock.now += 1
    scene.guardian.look({}, 1)
    scene.guardian.look({}, 1)
    assert scene.ear.asked[1:] == [("guard g", Gate(open=True))]


def test_a_gate_that_a_guard_has_closed_is_opened_before_its_time_when_the_condition_holds_no_more(directory):
    scene = Scene(directory, {"name": "g", "for": 2, "cooldown": 9, "do": {"gate": "close", "minutes": 60}})
    for number, value in enumerate((2.0, 2.0, 0.5, 2.0, 0.5), 1):
        scene.step(number, value)
        scene.guardian.look({}, number)
    assert scene.ear.commands == [Gate(open=False)]
    scene.step(6, 0.5)
    scene.guardian.look({}, 6)
    scene.guardian.look({}, 6)
    assert scene.ear.asked[1:] == [("guard g", Gate(open=True))]
    told = [event.message for event in scene.directory.read_events() if event.kind == "reopened"]
    assert told == ["guard g: a/b > 1 holds no more: did Gate"]


def test_once_it_has_fired_so_often_as_it_may_it_asks_a_person_or_ends_the_run(directory):
    scene = Scene(
        directory,
        {"name": "g", "do": "roll_back", "times": 1},
        {"name": "h", "do": "warn", "times": 1, "exhausted": "stop"},
    )
    scene.step(1)
    scene.step(2)
    assert scene.ear.commands[1] == Pause()
    assert isinstance(scene.ear.commands[2], Stop) and "it has fired once" in scene.ear.commands[2].why
    assert [event.facts["what"] for event in scene.events()] == ["fired", "fired", "exhausted", "exhausted"]


def test_how_often_a_guard_may_fire_holds_over_all_starts_of_a_run(directory):
    guard = {"name": "g", "do": "roll_back", "times": 2}
    Scene(directory, guard).step(1)
    again = Scene(directory, guard)
    again.step(2)
    again.step(3)
    assert [type(command) for command in again.ear.commands] == [RollBack, Pause]
    directory.guards.write_text("[")
    with pytest.raises(RunDirError, match=r"guards\.json is damaged"):
        Scene(directory, guard)


def test_what_is_measured_all_the_time_is_looked_at_between_steps_and_not_while_the_run_is_paused(directory):
    scene = Scene(directory, {"when": "run/since_step > 10", "do": "checkpoint", "for": 2})
    for seconds in (11, 12):
        scene.guardian.seen({"run/since_step": seconds}, 1)
    scene.guardian.act()
    assert scene.ear.commands == []
    scene.ear.paused = True
    for seconds in (11, 12, 13):
        scene.guardian.look({"run/since_step": seconds}, 1)
    scene.ear.paused = False
    scene.guardian.look({"run/since_step": 14}, 1)
    scene.guardian.act()
    assert scene.ear.commands == []
    scene.guardian.look({"run/since_step": 15}, 1)
    scene.guardian.act()
    assert scene.ear.commands == [Checkpoint()]


# --- webhooks -------------------------------------------------------------------------------------


class Listener:
    """A server that keeps what it is sent and answers with one code after the other."""

    def __init__(self, *codes: int) -> None:
        self.bodies: list[dict] = []
        answers = iter(codes)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(next(answers, 200))
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}/secret-path"


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr("penstock.deploy.guards.webhook.time.sleep", lambda seconds: None)


def test_a_webhook_is_told_what_happened_and_is_told_again_when_it_failed(directory, quick):
    listener = Listener(500)
    scene = Scene(directory, {"name": "g", "do": [{"webhook": listener.address}, "pause"]})
    scene.step(4)
    scene.guardian.close()
    assert len(listener.bodies) == 2
    body = listener.bodies[1]
    assert (body["run"], body["guard"], body["step"], body["value"]) == (directory.path.name, "g", 4, 2.0)
    assert body["did"] == ["a webhook is told", "did Pause"]
    scene.guardian.look({}, 4)
    assert not [event for event in directory.read_events() if event.kind == "warning"]


def test_a_webhook_that_cannot_be_told_is_a_warning_that_keeps_its_secret(directory, quick, monkeypatch):
    listener = Listener(500, 500, 500)
    monkeypatch.setenv("HOOK", listener.address)
    scene = Scene(directory, {"do": [{"webhook": "$HOOK"}, {"webhook": "$NOT_SET"}]})
    scene.step(4)
    scene.guardian.close()
    scene.guardian.look({}, 4)
    warnings = [event.message for event in directory.read_events() if event.kind == "warning"]
    assert len(warnings) == 2
    assert any("http://127.0.0.1/… could not be told, in 3 attempts: HTTP 500" in text for text in warnings)
    assert any("$NOT_SET: it holds no address" in text for text in warnings)
    assert "secret-path" not in directory.events.read_text()


def test_an_answer_that_is_no_http_does_not_silence_the_webhooks_after_it(directory, quick):
    noise = socket.create_server(("127.0.0.1", 0))

    def babble() -> None:
        for _ in range(3):
            connection, _ = noise.accept()
            connection.recv(65536)
            connection.sendall(b"no http\r\n\r\n")
            connection.close()

    threading.Thread(target=babble, daemon=True).start()
    listener = Listener()
    hooks = [{"webhook": f"http://127.0.0.1:{noise.getsockname()[1]}/"}, {"webhook": listener.address}]
    scene = Scene(directory, {"do": hooks})
    scene.step(1, float("inf"))
    scene.guardian.close()
    assert [body["value"] for body in listener.bodies] == ["inf"]
    assert any("could not be told" in event.message for event in directory.read_events() if event.kind == "warning")


def test_a_gate_that_could_not_be_opened_is_tried_again_and_stays_closed_for_the_longest_of_its_reasons(directory):
    close = {"gate": "close", "minutes": 60}
    scene = Scene(directory, {"name": "g", "do": [close, {**close, "minutes": 1}]})
    scene.step(1)
    scene.clock.now += 3599
    scene.guardian.look({}, 1)
    assert Gate(open=True) not in scene.ear.commands
    scene.ear.refuses = (Gate,)
    scene.clock.now += 1
    scene.guardian.look({}, 1)
    scene.ear.refuses = ()
    scene.guardian.look({}, 1)
    scene.clock.now += 11
    scene.guardian.look({}, 1)
    scene.guardian.look({}, 1)
    assert scene.ear.commands.count(Gate(open=True)) == 2


def test_what_is_due_when_the_run_goes_back_is_told_and_not_done(directory):
    scene = Scene(directory, {"name": "g", "do": "checkpoint"})
    scene.guardian.seen({"a/b": 2.0}, 5)
    scene.guardian.begin_again(3)
    scene.guardian.act()
    assert scene.ear.commands == []
    assert [event.facts["did"] for event in scene.events()] == [["nothing: the run went back meanwhile"]]


def test_a_guard_of_another_condition_under_an_old_name_begins_anew(directory):
    Scene(directory, {"name": "g", "do": "roll_back", "times": 1}).step(1)
    other = Scene(directory, {"name": "g", "when": "a/b > 1.5", "do": "roll_back", "times": 1})
    other.step(2)
    assert [type(command) for command in other.ear.commands] == [RollBack]
