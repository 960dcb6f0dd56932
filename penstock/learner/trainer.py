"""One train step as rank 0 leads it: whole groups become a batch, shares of it go to all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from penstock.learner import deal
from penstock.learner.algorithms.bound import BoundAlgorithm
from penstock.learner.assemble import Moment, assemble
from penstock.learner.batch import Batch
from penstock.learner.coefficients import Coefficients
from penstock.learner.crew import Crew, Trained
from penstock.learner.deal import Share
from penstock.learner.dials import MAX_LAG
from penstock.learner.evidence import Evidence
from penstock.learner.loop_settings import LoopSettings
from penstock.learner.showcase import Showcase
from penstock.services.replay import ReplayStore
from penstock.services.samples import Texts
from penstock.services.trajectory import Group
from penstock.services.versions import Version


@dataclass(frozen=True)
class Work:
    """What one step is made of."""

    groups: tuple[Group, ...]
    batch: Batch
    """Of all mini-batches; every mini-batch's denominators are in its weights."""
    minis: list[list[int]]
    """Rows of each mini-batch."""
    moment: Moment


class Trainer:
    """Makes train steps with the coefficients as they are. `beat(doing)` is called whenever it moves on."""

    def __init__(
        self,
        crew: Crew,
        store: ReplayStore,
        algorithm: BoundAlgorithm,
        settings: LoopSettings,
        coefficients: Coefficients,
        evidence: Evidence,
        beat: Callable[[str], None],
        texts: Texts | None = None,
    ) -> None:
        """`texts` names the tokens of the samples."""
        self._crew, self._store, self._algorithm, self._settings = crew, store, algorithm, settings
        self._coefficients, self._evidence, self._beat = coefficients, evidence, beat
        self._showcase = Showcase(
            settings.samples, settings.samples_every, settings.sample_tokens, settings.seed, texts
        )
        self.samples: Callable[[], list[dict[str, Any]]] = list
        """Trajectories of the step that was made last, for people to read."""
        self.spoiled = ("", "")
        """Where the batch of the last step lies whose gradients were not finite, or why it could not be written."""

    @property
    def max_lag(self) -> int:
        """The bound as it is now."""
        return int(self._coefficients.at(MAX_LAG, self._settings.staleness.first_lag))

    def assemble(self, groups: tuple[Group, ...], now: Version) -> Work:
        """Whole groups with their advantages, dealt into mini-batches; an empty batch where nothing is to be learned:
        every action lies beyond the bound, or no answer has one."""
        learner, staleness = self._settings.learner, self._settings.staleness
        self._beat("assembling the batch")
        moment = Moment(now, self._store.forks(), self.max_lag, staleness.outlived == "mask")
        batch = assemble(groups, self._algorithm.at(self._coefficients.values), moment)
        minis = deal.split_groups(batch, learner.mini_batches, self._seed(now))
        return Work(groups, deal.weigh(batch, minis, self._algorithm.reduction), minis, moment)

    def train(self, work: Work) -> Trained:
        """On all ranks, in shares balanced by tokens. The coefficients move afterwards, by `adapt`."""
        now = work.moment.now
        picked = self._showcase.pick(work.groups, now.next())
        shares = self._shares(work, self._showcase.rows(picked, work.batch))
        keep = self._evidence.wanted(now.next())
        trained = self._crew.train(shares, keep, self._coefficients.values, self._warming_up(now))
        trained = replace(trained, metrics=trained.metrics | self._coefficients.metrics())
        self.samples = lambda: self._showcase.samples(picked, work.moment, shares, trained)
        if keep:
            self._evidence.trained(work.moment, work.groups, shares, trained, self._coefficients.values)
        if trained.applied == 0:
            self.spoiled = self._evidence.spoiled.keep(
                work.moment, work.groups, shares, trained, self._coefficients.values
            )
        return trained

    def adapt(self, trained: Trained, made_from: Version) -> None:
        """Move the adaptive coefficients; while the policy stands still there is nothing that they could follow."""
        if not self._warming_up(made_from):
            self._coefficients.move(trained.metrics)

    def _shares(self, work: Work, rows: Any) -> list[Share]:
        learner, ranks = self._settings.learner, self._crew.team.size
        seed = self._seed(work.moment.now)
        return deal.deal(work.batch, work.minis, ranks, learner.micro_batch_tokens, learner.epochs, seed, rows)

    def _warming_up(self, now: Version) -> bool:
        """Whether the values alone are trained, since they are not yet good enough to judge the policy by."""
        value = self._algorithm.value
        return value is not None and now.step < value.warmup_steps

    def _seed(self, now: Version) -> str:
        """Follows from the run's seed and the step alone, so that a resumed run shuffles alike."""
        return f"{self._settings.seed} {now.step}"
