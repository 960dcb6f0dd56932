"""Fixtures of the deployment's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from penstock.deploy.checks import context


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that nobody loads, a tokenizer and two data files."""
    folder = tmp_path_factory.mktemp("home")
    tiny.tokenizer().save_pretrained(folder / "model")
    tiny.save_weightless(folder / "model")
    for name in ("train.jsonl", "held_out.jsonl"):
        (folder / name).write_text('{"prompt": "2+2=", "answer": "4"}\n')
    return folder


@pytest.fixture
def place(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder to work in, on a machine with room and without GPUs."""
    monkeypatch.chdir(home)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(context.Context, "gpus", 0)
    monkeypatch.setattr(context.Context, "cpus", 2)
    return home
