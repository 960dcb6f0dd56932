"""The doctor says what is amiss and what helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from penstock.cli.doctor_table import table
from penstock.deploy import doctor
from penstock.deploy.doctor import Fact, examine


def _named(facts: list[Fact], name: str) -> Fact:
    return next(fact for fact in facts if fact.name == name)


def test_every_fact_that_is_amiss_comes_with_a_remedy() -> None:
    facts = examine()
    assert {"python", "torch", "vllm", "ray", "redis-server", "memory", "disk here"} <= {f.name for f in facts}
    assert all(fact.remedy for fact in facts if fact.state != "good")
    assert all(fact.found for fact in facts)


def _without(name: str) -> Callable[[str], str | None]:
    return lambda asked: None if asked == name else "1.0"


def test_a_package_that_is_missing_or_of_another_version_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", _without("torch"))
    facts = list(doctor._packages())
    assert _named(facts, "torch") == Fact("torch", "not installed", "broken", "make setup")
    assert _named(facts, "ray").state == "broken"
    assert "ray" in _named(facts, "ray").remedy


def test_builds_for_cuda_beside_a_cpu_torch_are_the_known_trap(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.13.0+cpu", "torchvision": "0.28.0", "torchaudio": "2.13.0+none"}
    monkeypatch.setattr(doctor, "_installed", versions.get)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object() if name == "torchvision" else None)
    (fact,) = doctor._torch_companions()
    assert (fact.state, fact.remedy) == ("broken", "pip uninstall -y torchvision")


def test_too_little_of_something_is_doubtful() -> None:
    fact = doctor._enough("memory", 2 * doctor.GIB, 6 * doctor.GIB, "close other programs")
    assert (fact.state, fact.found) == ("doubtful", "2.0 GiB free, the demo needs about 6 GiB")
    assert doctor._enough("memory", 6 * doctor.GIB, 6 * doctor.GIB, "").state == "good"


def test_few_open_files_are_raised_by_the_person_or_by_an_administrator(monkeypatch: pytest.MonkeyPatch) -> None:
    def limits(soft: int, hard: int) -> Any:
        return lambda _which: (soft, hard)

    monkeypatch.setattr(doctor.resource, "getrlimit", limits(1024, 65536))
    assert next(doctor._open_files()).remedy == "ulimit -n 4096"
    monkeypatch.setattr(doctor.resource, "getrlimit", limits(1024, 1024))
    assert "administrator" in next(doctor._open_files()).remedy
    monkeypatch.setattr(doctor.resource, "getrlimit", limits(4096, 4096))
    assert next(doctor._open_files()).state == "good"


def test_the_table_shows_remedies_and_keeps_brackets() -> None:
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    facts = [Fact("ray", "2.1 [old]", "broken", "pip install 'ray[default]'"), Fact("torch", "2.13")]
    Console(file=out, width=100).print(table(facts))
    assert "2.1 [old]" in out.getvalue()
    assert "→ pip install 'ray[default]'" in out.getvalue()
