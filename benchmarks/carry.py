"""The carry recipe's inputs for measurements: data and the fine-tuned model of a seed, made once and kept."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent.parent
RUNS = HERE / "runs"


def demo() -> ModuleType:
    """The recipe's own demo.py."""
    folder = str(HERE / "recipes" / "carry")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module("demo")


def inputs_of(seed: int) -> tuple[Path, Path]:
    """(fine-tuned model, folder with train.jsonl and heldout.jsonl) of one seed."""
    made = demo()
    inputs = made.prepare(seed, RUNS)
    return made.fine_tuned(seed, inputs, RUNS), inputs / "data"
