"""Real engines that all engine tests of the session share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rollout_lab import END, SECTION, Lab, build_headless, build_model, build_moe, build_tokenizer

from penstock.rollout.config import EngineSection, Keep
from penstock.services.versions import Version
from penstock.services.weights.files import FileReceiver, FileSender

MOST_KEPT = 30


def _lab(folder: Path, build: Any) -> Iterator[Lab]:
    os.environ["OMP_NUM_THREADS"] = "1"
    models = [build(seed) for seed in (1, 2)]
    models[0].save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    sender = FileSender(folder / "weights")
    yield Lab(folder, models, sender, FileReceiver(folder / "weights", deadline=1.0))
    sender.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from _lab(tmp_path_factory.mktemp("lab"), build_model)


@pytest.fixture(scope="session")
def moe_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The same with a mixture of experts."""
    yield from _lab(tmp_path_factory.mktemp("moe"), build_moe)


@pytest.fixture(scope="session")
def headless_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The same with a model that has no output layer."""
    yield from _lab(tmp_path_factory.mktemp("headless"), build_headless)


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., Any]]:
    """Starts engines in this process. All are closed at the end of the session: vLLM's parallel state is global,
    and closing one engine ends all."""
    from penstock.rollout.vllm_engine import VllmGenerator

    engines = []

    def started(lab: Lab, keep: Keep, section: EngineSection = SECTION) -> Any:
        engine = VllmGenerator(
            str(lab.folder / "model"),
            section,
            tokenizer=build_tokenizer(),
            end_tokens=[END],
            receiver=lab.receiver,
            loaded=Version(0, 0),
            keep=keep,
        )
        engines.append(engine)
        return engine

    yield started
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def session_engine(lab: Lab, session_moe: Any, start: Callable[..., Any]) -> Any:
    """The engine of most tests. It starts after the one with experts: the first one makes vLLM's groups of processes,
    and one without experts makes none for them."""
    return start(lab, Keep(most_kept=MOST_KEPT))


@pytest.fixture(scope="session")
def session_moe(moe_lab: Lab, start: Callable[..., Any]) -> Any:
    """An engine that keeps routing."""
    return start(moe_lab, Keep(most_kept=MOST_KEPT, routing=True))


def _clean(lab: Lab, engine: Any) -> Iterator[Any]:
    """The first model's weights and nothing in flight."""
    section = engine._section
    engine.swap(lab.publish(lab.models[0]))
    yield engine
    # A test may have broken it on purpose, or changed how it swaps.
    engine._calls.failed, engine._section = None, section
    engine.take_back(engine.in_flight)
    engine._done.clear()


@pytest.fixture
def engine(lab: Lab, session_engine: Any) -> Iterator[Any]:
    yield from _clean(lab, session_engine)


@pytest.fixture
def moe_engine(moe_lab: Lab, session_moe: Any) -> Iterator[Any]:
    yield from _clean(moe_lab, session_moe)
