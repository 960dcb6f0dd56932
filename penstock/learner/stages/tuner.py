"""One rank of supervised fine-tuning as a plain object: builds its parts from values and runs the stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from penstock.learner.config import SftSection
from penstock.learner.rank import Rank
from penstock.services.data_config import DataSection
from penstock.services.model_config import ModelSection


@dataclass(frozen=True)
class SftPlan:
    """What every rank must know, the same on all of them."""

    model: ModelSection
    data: DataSection
    sft: SftSection
    meet_at: str
    """`host:port` on rank 0's machine, where the ranks find each other."""
    model_folder: Path
    """Where the tuned model goes."""
    seed: int = 0
    """Of the run; the stage's own is added to it."""
    threads: int | None = None
    """Threads of torch in this process; None leaves torch's choice."""
    cache: Path | None = None
    """Folder of tokenised data; None is the default one."""


class SftRank(Rank):
    """Rank `rank` of fine-tuning; all ranks do the same, rank 0 also reports and writes the model."""

    def __init__(self, rank: int, plan: SftPlan) -> None:
        super().__init__(rank)
        self._plan = plan
        self._stage = "fine-tuning"

    def _run(self) -> str:
        import torch

        from penstock.learner import ranks
        from penstock.learner.engine import Engine
        from penstock.learner.stages.mixture import Mixture
        from penstock.learner.stages.sft import fine_tune
        from penstock.services.data import open_pairs
        from penstock.services.models import load_model, load_tokenizer, save_model

        plan = self._plan
        if plan.threads is not None:
            torch.set_num_threads(plan.threads)
        self._beat("reading the data")
        tokenizer = load_tokenizer(plan.model)
        sources = list(open_pairs(plan.data, tokenizer, plan.cache).values())
        self._beat("meeting the other ranks")
        team = ranks.join(self._rank, plan.sft.ranks, plan.meet_at, plan.sft.collective_timeout)
        self._beat("loading the model")
        engine = Engine(load_model(plan.model, "float32"), plan.sft, team.size)
        self._running()
        self._alive()
        mixture = Mixture(sources, [source.weight for source in sources])
        seed = plan.seed + plan.sft.seed
        why = fine_tune(engine, team, mixture, plan.sft, seed, self._reported, lambda: self._stop_why, self._alive)
        weights = engine.snapshot(team.leads, lambda: self._beat("gathering weights"))
        self._beat("writing the model")
        if team.leads:
            save_model(engine.module, tokenizer, plan.model_folder, weights)
        team.barrier()
        return why

    def _reported(self, report: dict[str, object]) -> None:
        self._keep(report)
        self._stage = f"fine-tuning, update {report['step']} of {report['steps']}"

    def _alive(self) -> None:
        self._beat(self._stage)
