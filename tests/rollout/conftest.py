"""One real engine for all engine tests of the session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from rollout_lab import END, Lab, build_model, build_tokenizer

from penstock.rollout.config import EngineSection
from penstock.services.versions import Version
from penstock.services.weights.files import FileReceiver, FileSender


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = tmp_path_factory.mktemp("lab")
    models = [build_model(seed) for seed in (1, 2)]
    models[0].save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    sender = FileSender(folder / "weights")
    yield Lab(folder, models, sender, FileReceiver(folder / "weights", deadline=1.0))
    sender.close()


@pytest.fixture(scope="session")
def session_engine(lab: Lab) -> Iterator[Any]:
    """The one engine of this process: vLLM's parallel state is global, closing one engine ends all."""
    from penstock.rollout.vllm_engine import VllmGenerator

    engine = VllmGenerator(
        str(lab.folder / "model"),
        EngineSection(max_model_len=256, max_num_seqs=16, kv_cache_gib=0.05, enforce_eager=True),
        tokenizer=build_tokenizer(),
        end_tokens=[END],
        receiver=lab.receiver,
        loaded=Version(0, 0),
    )
    yield engine
    engine.close()


@pytest.fixture
def engine(lab: Lab, session_engine: Any) -> Iterator[Any]:
    """The shared engine with the first model's weights and nothing in flight."""
    section = session_engine._section
    session_engine.swap(lab.publish(lab.models[0]))
    yield session_engine
    # A test may have broken it on purpose, or changed how it swaps.
    session_engine._failed, session_engine._section = None, section
    session_engine.take_back(session_engine.in_flight)
    session_engine._done.clear()
