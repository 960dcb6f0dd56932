"""What a rollout worker's actor says, and to whom. Engine, scorers and worker are fakes."""

from __future__ import annotations

from types import SimpleNamespace

from penstock.deploy import assemble, rollouts
from penstock.services import models


def test_what_is_told_once_is_told_to_the_supervisor_and_not_to_the_exporter(monkeypatch, tmp_path):
    exported = []
    monkeypatch.setattr(rollouts, "begin_life", lambda log: None)
    monkeypatch.setattr(rollouts, "export_actor", lambda export, role, name, stats: exported.append(stats))
    monkeypatch.setattr(models, "load_tokenizer", lambda model: None)
    monkeypatch.setattr(assemble, "build_generator", lambda *arguments: None)
    route = SimpleNamespace(receiver=lambda tensor_parallel, learner: None)
    plan = SimpleNamespace(model=None, route=route, engine=SimpleNamespace(tensor_parallel=1), export=None)
    actor = rollouts.RolloutActor("rollout-0", 0, tmp_path / "log", plan, (0, {}), None)
    (stats,) = exported
    assert stats()["doing"] == "ready"
    spans = [["generating", 1.0, 2.0]]
    told = {"phase": "generating", "silent": 0.0}
    actor._worker = SimpleNamespace(stats=lambda: told, spans=lambda: [spans.pop()] if spans else [])
    assert stats()["doing"] == "generating" and "spans" not in stats()
    assert actor.stats()["spans"] == [["generating", 1.0, 2.0]]
    assert actor.stats()["spans"] == []
