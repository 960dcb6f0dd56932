"""Commands through the run directory: carried out once, in order, answered, taken back, refused."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from penstock.services.control import Answer, Asked, Checkpoint, NoAnswer, Pause, Refused, Scale
from penstock.services.mailbox import LONGEST, Mailbox, MailboxControl
from penstock.services.rundir import RunDir


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[RunDir]:
    directory = RunDir.create(tmp_path, "mail", "name: mail\n")
    directory.lock()
    yield directory
    directory.unlock()


@contextmanager
def driver(directory: RunDir, answer: Answer | None = None) -> Iterator[list[Asked]]:
    """A driver that looks at its mailbox often and keeps what it was asked."""
    box, seen, over = Mailbox(directory), list[Asked](), threading.Event()

    def execute(asked: Asked) -> Answer:
        seen.append(asked)
        return answer or Answer(True, f"number {len(seen)}")

    def serve() -> None:
        while not over.wait(0.01):
            box.serve(execute)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_a_command_is_carried_out_once_and_its_answer_comes_back(run_dir: RunDir) -> None:
    control = MailboxControl(run_dir)
    with driver(run_dir) as seen:
        assert control.send(Scale("rollout", 3), "ada") == "number 1"
        assert control.send(Pause(), "bob") == "number 2"
    assert [(asked.by, asked.command) for asked in seen] == [("ada", Scale("rollout", 3)), ("bob", Pause())]
    assert list(run_dir.control.iterdir()) == []


def test_commands_of_many_senders_are_all_answered_each_with_its_own_answer(run_dir: RunDir) -> None:
    answers: dict[int, str] = {}

    def send(number: int) -> None:
        answers[number] = MailboxControl(run_dir).send(Scale("rollout", number), f"sender {number}")

    with driver(run_dir) as seen:
        threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for place, asked in enumerate(seen, start=1):
        assert isinstance(asked.command, Scale)
        assert answers[asked.command.count] == f"number {place}"
    assert sorted(answers) == list(range(8))


def test_a_refusal_reaches_the_sender_as_an_error_with_the_reason(run_dir: RunDir) -> None:
    with driver(run_dir, Answer(False, "there are 2 CPUs")), pytest.raises(Refused, match="there are 2 CPUs"):
        MailboxControl(run_dir).send(Scale("rollout", 300), "ada")


def test_a_command_that_nobody_takes_up_is_taken_back_and_never_carried_out(run_dir: RunDir) -> None:
    with pytest.raises(NoAnswer, match=r"waited 0\.1 s for the driver .*did not look at it"):
        MailboxControl(run_dir).send(Checkpoint(), "ada", deadline=0.1)
    served: list[Asked] = []
    assert Mailbox(run_dir).serve(lambda asked: served.append(asked) or Answer(True, "")) == 0  # type: ignore[func-returns-value]
    assert served == []


def test_a_run_that_has_ended_is_named_at_once(run_dir: RunDir) -> None:
    run_dir.unlock()
    began = time.monotonic()
    with pytest.raises(NoAnswer, match="is not running"):
        MailboxControl(run_dir).send(Pause(), "ada")
    assert time.monotonic() - began < 5
    assert not run_dir.control.exists()


def test_what_was_left_for_an_earlier_start_is_refused_and_not_carried_out(run_dir: RunDir) -> None:
    box = Mailbox(run_dir)
    refused: list[str] = []

    def send() -> None:
        try:
            MailboxControl(run_dir).send(Scale("rollout", 9), "ada")
        except Refused as error:
            refused.append(str(error))

    sender = threading.Thread(target=send)
    sender.start()
    while not box.refuse_left("the run was started anew"):
        time.sleep(0.01)
    sender.join()
    assert refused == ["the run was started anew"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not a command of this version"),
        (b'{"id": "1", "by": "x", "at": 1, "command": {"type": "explode"}}', "explode"),
        (b'{"id": "1", "by": "x", "at": 1, "command": {"type": "scale", "role": "learner", "count": 2}}', "learner"),
        (b'{"id": "1", "by": "x", "at": 1, "command": {"type": "pause", "why": 1}}', "why"),
        (b'{"id": "1", "by": "x", "at": 1, "command": {"type": "stop", "why": "\xff"}}', "utf-8"),
        (b" " * (LONGEST + 1), f"at most {LONGEST}"),
    ],
)
def test_a_file_that_is_no_command_is_answered_and_harms_nothing(run_dir: RunDir, content: bytes, said: str) -> None:
    box = Mailbox(run_dir)
    (run_dir.control / "1.json").write_bytes(content)
    assert box.serve(lambda _: pytest.fail("carried out")) == 1
    answer = (run_dir.control / "1.answer").read_text()
    assert '"done":false' in answer
    assert said in answer


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_plain_file_is_answered_without_being_read(run_dir: RunDir, make) -> None:
    box = Mailbox(run_dir)
    make(run_dir.control / "1.json")
    assert box.serve(lambda _: pytest.fail("carried out")) == 1
    assert "no plain file" in (run_dir.control / "1.answer").read_text()
    assert [path.name for path in run_dir.control.iterdir()] == ["1.answer"]


def test_answers_that_nobody_reads_are_forgotten(run_dir: RunDir) -> None:
    box = Mailbox(run_dir)
    old = run_dir.control / "0.answer"
    old.write_text("{}")
    os.utime(old, (1, 1))
    (run_dir.control / "1.json").write_bytes(b"{}")
    box.serve(lambda _: Answer(True, ""))
    assert not old.exists()
    assert (run_dir.control / "1.answer").exists()


def test_only_the_owner_may_look_into_the_mailbox(run_dir: RunDir) -> None:
    Mailbox(run_dir)
    assert run_dir.control.stat().st_mode & 0o077 == 0
