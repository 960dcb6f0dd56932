"""Where the loop of an actor stands that does not move."""

from __future__ import annotations

import threading
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from deploy_parts import rollout_actor

from penstock.deploy import assemble, stacks


def test_the_line_of_the_loop_is_named_and_all_stacks_are_printed(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    hangs, begun = threading.Event(), threading.Event()

    def run() -> None:
        begun.set()
        hangs.wait(60)

    worker = SimpleNamespace(run=run, stats=lambda: {"phase": "ended"}, spans=list)
    monkeypatch.setattr(assemble, "build_worker", lambda *_: worker)
    actor, _ = rollout_actor(monkeypatch)
    thread = threading.Thread(target=actor.run, name="the loop", daemon=True)
    thread.start()
    assert begun.wait(10)
    said = stacks._told(None)
    hangs.set()
    thread.join(10)
    assert said.startswith("it stands in run, penstock/deploy/rollouts.py:")
    assert ", within wait, " in said and "threading.py:" in said
    printed = capsys.readouterr().out
    assert "--- thread the loop stands at" in printed and "hangs.wait(60)" in printed
    assert "--- thread MainThread" not in printed, "whoever asks is not asked"
    assert stacks._told(None) == "its loop is in no thread"


def test_a_stack_that_ends_in_our_own_line_names_only_that() -> None:
    folder = Path(stacks.__file__).parents[1]
    ours = traceback.FrameSummary(f"{folder}/rollout/paced.py", 61, "step")
    theirs = traceback.FrameSummary(f"{folder.parent}/.venv/lib/penstock/vllm/v1/engine/core.py", 5, "step_fn")
    alone = stacks.in_words(traceback.StackSummary.from_list([ours]))
    assert alone == "it stands in step, penstock/rollout/paced.py:61"
    deep = traceback.FrameSummary(f"{folder}/services/store/connection.py", 197, "_run")
    assert "penstock/services/store/connection.py:197" in stacks.in_words(traceback.StackSummary.from_list([deep]))
    both = stacks.in_words(traceback.StackSummary.from_list([ours, theirs]))
    assert both == f"{alone}, within step_fn, v1/engine/core.py:5"


def test_all_are_asked_at_once_and_who_does_not_answer_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = ray.exceptions.RayTaskError("_told", "Traceback …", ValueError("no"))

    def wait(answers: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        assert num_returns == 4 and timeout == stacks.PATIENCE
        return answers[:3], answers[3:]

    def get(answer: str) -> str:
        if answer == "fails":
            raise failed
        if answer == "gone":
            raise ray.exceptions.ActorDiedError
        return answer

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)

    def actor(answer: str) -> SimpleNamespace:
        return SimpleNamespace(__ray_call__=SimpleNamespace(remote=lambda ask: answer))

    said = stacks.where_they_stand({name: actor(name) for name in ("it stands", "fails", "gone", "hangs")})
    assert said == {"it stands": "it stands", "fails": "it cannot say where it stands"}
    assert stacks.where_they_stand({}) == {}
