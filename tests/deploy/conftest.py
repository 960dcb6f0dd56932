"""Fixtures of the deployment's tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from penstock.deploy.checks import context


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model's configuration, a tokenizer and two data files."""
    folder = tmp_path_factory.mktemp("home")
    tiny.tokenizer().save_pretrained(folder / "model")
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 46,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
    }
    (folder / "model" / "config.json").write_text(json.dumps(config))
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
