"""Penstock: asynchronous actor-learner reinforcement learning for language models.

import penstock

run = penstock.train("run.yaml", ["learner.learning_rate=1e-5"])
run.metrics                      # a table, one row per step
penstock.open_run("runs/…").summary
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.algorithms import Algorithm
    from penstock.api import Run, check, evaluate, open_run, resume, sft, train, whatif

__all__ = ["Algorithm", "Run", "check", "evaluate", "open_run", "resume", "sft", "train", "whatif"]


def __getattr__(name: str) -> Any:
    """Import the face only when it is looked at: `import penstock.services…` in an actor must stay light."""
    if name == "Algorithm":
        from penstock.algorithms import Algorithm

        return Algorithm
    if name in __all__:
        from penstock import api

        return getattr(api, name)
    raise AttributeError(f"module 'penstock' has no attribute {name!r}; it has {', '.join(__all__)}")
