"""The learner's main loop, on rank 0: take, step, publish, advance, checkpoint, report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from penstock.learner import checkpoints, report
from penstock.learner.algorithms.bound import BoundAlgorithm
from penstock.learner.audit import Auditor
from penstock.learner.batch import Batch
from penstock.learner.coefficients import Coefficients
from penstock.learner.crew import Crew, Trained
from penstock.learner.dials import Dials
from penstock.learner.evidence import Evidence
from penstock.learner.feed import Fed, Feed
from penstock.learner.keeper import Keeper
from penstock.learner.loop_settings import LoopSettings
from penstock.learner.publisher import Publisher
from penstock.learner.requests import NONFINITE, WAITING, Requests
from penstock.learner.trainer import Trainer
from penstock.services.contracts import PenstockError, WeightSender
from penstock.services.replay import ReplayStore
from penstock.services.samples import Texts
from penstock.services.versions import FIRST, Version

ROLL_BACK = "roll_back"
"""Why the wait for groups ends where the run is to go back."""
_PAUSE = 0.2
"""Seconds between looks of a loop that is paused."""


class NonFinite(PenstockError):
    """Too many steps in a row had infinite or undefined gradients."""


class LearnerLoop:
    """Rank 0's loop.

    `save_model(folder, weights)` writes a Hugging Face folder; `report(dict)` gets every event with plain values;
    `should_stop(step, tokens)` is asked at every step and while waiting, and gives the reason or an empty text;
    `beat(doing)` is called whenever the loop moves on.
    """

    def __init__(
        self,
        crew: Crew,
        store: ReplayStore,
        sender: WeightSender,
        algorithm: BoundAlgorithm,
        settings: LoopSettings,
        save_model: Callable[[Path, dict[str, Any]], object],
        report: Callable[[dict[str, Any]], None],
        should_stop: Callable[[int, int], str] = lambda _step, _tokens: "",
        beat: Callable[[str], None] = lambda _: None,
        auditor: Auditor | None = None,
        texts: Texts | None = None,
        requests: Requests | None = None,
    ) -> None:
        """`texts` names the tokens of the samples; `requests` may have been asked for already."""
        self._crew, self._store = crew, store
        self._settings = settings
        self._save_model, self._report = save_model, report
        self._should_stop, self._beat = should_stop, beat
        keeps = auditor.keeps(settings.staleness.largest_lag) if auditor is not None else 0
        self._publisher = Publisher(store, sender, keeps, settings.staleness.take_deadline)
        self._evidence = Evidence(settings, crew, auditor, self._waiting)
        groups, aged = settings.learner.groups_per_step, settings.staleness
        self._feed = Feed(
            store,
            algorithm,
            groups,
            aged.refill_attempts,
            aged.take_deadline,
            warn=self._warn,
            max_lag=lambda: None if aged.outlived == "mask" else self._trainer.max_lag,
        )
        resume, turnable = settings.resume, Dials(settings.algorithm, settings.learner, aged.first_lag).start
        self._coefficients = Coefficients(
            algorithm.adaptive, resume.coefficients if resume else {}, turnable, resume.began if resume else {}
        )
        self._trainer = Trainer(crew, store, algorithm, settings, self._coefficients, self._evidence, beat, texts)
        self._keeper = Keeper(crew, store, settings, self._coefficients, save_model, beat)
        self.requests = requests or Requests()
        """What may be asked of the loop from other threads."""
        self.version = FIRST
        """The weights that the engine holds now."""
        self.tokens = settings.resume.tokens if settings.resume else 0
        """Response tokens trained on so far."""
        self._falls = 0
        self._weights: dict[str, Any] = {}
        """Those of `version`, as copied for its publication, for a checkpoint or the end right after it. Let go before
        the next step, so that no copy but the one being published takes memory while the learner waits or trains."""
        self._metrics: dict[str, float] = {}
        self._skipped: Counter[str] = Counter()
        self._nonfinite, self._gate_seen = 0, 0.0

    def observe(self, version: Version, metrics: dict[str, float]) -> None:
        """Metrics of `version` that were measured elsewhere; see `Keeper.observe`."""
        self._keeper.observe(version, metrics)

    def run(self) -> str:
        """Until a reason to stop; returns it. Ends with a checkpoint and the model on disk."""
        self._start()
        while not (why := self._why_end()):
            self._weights = {}
            began = time.monotonic()
            self._beat(WAITING)
            fed, stopped = self._fill()
            waited = time.monotonic() - began
            if self._wants_back:
                continue
            if why := fed.ended or stopped:
                break
            work = self._trainer.assemble(tuple(fed.groups), self.version)
            if len(work.batch) == 0:
                self._skip(fed, "no_tokens")
                continue
            trained = self._trainer.train(work)
            times = {"time/wait": waited, "time/forward_backward": time.monotonic() - began - waited}
            if trained.applied == 0:
                folder, failed = self._trainer.spoiled
                self._skip(fed, NONFINITE, folder=folder, failed=failed)
                self._count_nonfinite()
                continue
            self._nonfinite = 0
            self._trainer.adapt(trained, self.version)
            self.version = self.version.next()
            self.tokens += int(work.batch.lengths.sum())
            times |= self._publish()
            times |= self._evidence.audit(self.version)
            metrics = self._metrics = self._step_metrics(fed, work.batch, trained) | times
            if self._checkpoint_due():
                metrics["time/checkpoint"] = self._checkpoint()
            self._step_report(fed, work.batch, metrics, time.monotonic() - began)
        self._finish(why)
        return why

    # --- start and end ------------------------------------------------------------------------------

    def _start(self) -> None:
        """Agree with the store where to go on, and publish the weights that the workers begin with."""
        resume, request = self._settings.resume, self._settings.request
        if resume is None:
            self.version = self._store.reconcile(FIRST, 0, request)
        else:
            self.version = self._store.reconcile(resume.version, resume.memo.issued, request, resume.memo)
            self._keeper.resumed(self.version)
        self._hold_where_paused()
        self._feed.refusals.begin()
        self._beat("publishing the first weights")
        self._publish_afresh()
        self._tell("started", **self._turned())

    def _publish_afresh(self) -> None:
        """Weights that no step has made: those that a run, or a lineage, begins with."""
        self._publisher.start(self.version, self._snapshot(), self._crew.probe(), advance=False)
        self._wait_for_publication()

    def _roll_back(self) -> None:
        """Go back to a checkpoint and go on from there, in a new lineage; what was taken or applied since is stored
        again. The checkpoint that is written at once keeps a resume from choosing the future that was given up."""
        step = self.requests.back_to()
        if step is None:
            return
        self._wait_for_publication()
        left, root = self.version, self._settings.checkpoints
        found = checkpoints.last_until(root, left, self._store.forks(), step)
        if found is None:
            self._warn(f"there is no checkpoint of step {step} or before to go back to; the run goes on at {left}")
            return
        self._crew.load(found.folder)
        self._falls += 1
        request = f"{self._settings.request}-{self._falls}"
        self.version = self._store.reconcile(found.version, found.memo.issued, request, found.memo)
        self.tokens, self._metrics, self._nonfinite = found.tokens, dict(found.metrics), 0
        self._coefficients.fall_back(found.coefficients)
        self._hold_where_paused()
        self._feed.refusals.begin()
        self._beat("publishing the weights of a checkpoint")
        self._publish_afresh()
        self._tell("rolled_back", left=str(left), folder=str(found.folder), **self._turned())
        self._checkpoint()

    def _hold_where_paused(self) -> None:
        """The ledger begins with an open gate, and so do its lineages; whoever paused the run does not hear of it."""
        if self.requests.paused:
            self._store.hold(True)

    @property
    def _wants_back(self) -> bool:
        return self.requests.wants_back(self.version.lineage)

    def _turned(self) -> dict[str, Any]:
        """Coefficients for the driver, with the number of the last of its turns that is in them."""
        heard = self.requests.heard
        self._coefficients.turn(self.requests.turned())
        return {"coefficients": self._coefficients.all, "heard": heard}

    def _why_end(self) -> str:
        """Reason to end between two steps. Who asked to go back wants no end of the future that he gives up."""
        while self._wants_back:
            self._roll_back()
        return self._why_stop()

    def _why_stop(self) -> str:
        """Reason to end here, or nothing. What could not be archived is told by `_finish`, when all else is saved."""
        return "archive" if self._evidence.failed else self._should_stop(self.version.step, self.tokens)

    def _finish(self, why: str) -> None:
        self._wait_for_publication()
        self._turned()
        if not self._keeper.has_all(self.version):
            self._checkpoint()
        weights = self._weights or self._crew.snapshot()
        self._beat("writing the model")
        self._save_model(self._settings.model, weights)
        self._beat("wrote the model")
        # Last, since it may fail, and that must cost neither the checkpoint nor the model.
        self._evidence.finish()
        self._crew.end()
        self._tell("ended", why=why)
        self._beat("ended")

    # --- after a step ---------------------------------------------------------------------------------

    def _fill(self) -> tuple[Fed, str]:
        """What one step is made of, by the bound on the lag that holds when it begins, and why the run ends instead.
        What is held already was perhaps taken under a wider one."""
        fed = self._feed.next(self.version, self._while_waiting)
        while not ((stopped := self._stand_while_paused()) or fed.ended or self._wants_back):
            self._turned()
            if not self._feed.drop_outlived(fed):
                break
            fed = self._feed.next(self.version, self._while_waiting, fed)
        return fed, stopped

    def _skip(self, fed: Fed, why: str, **facts: Any) -> None:
        """Nothing was learned: the groups go, the version stands still."""
        self._store.discard(self.version, fed.indices, why)
        self._skipped += fed.dropped + Counter({why: len(fed.indices)})
        self._tell("skipped", groups=fed.indices, why=why, **facts)

    def _count_nonfinite(self) -> None:
        self._nonfinite += 1
        if self._nonfinite >= self._settings.learner.max_nonfinite:
            raise NonFinite(
                f"{self._nonfinite} train steps in a row from version {self.version} had infinite or undefined "
                "gradients (learner.max_nonfinite); the weights were not changed. Lower learner.learning_rate, or "
                f"look at the rewards and the sampler's log-probs of their batches, in {self._settings.nonfinite}"
            )

    def _publish(self) -> dict[str, float]:
        """Hand the new weights over; overlaps the next step where a lag is allowed."""
        began = time.monotonic()
        self._beat("publishing")
        self._wait_for_publication()
        self._publisher.start(self.version, self._snapshot(), self._crew.probe(), advance=True)
        if self._trainer.max_lag == 0:
            self._wait_for_publication()
        return {"time/publish_blocked": time.monotonic() - began, "time/publish": self._publisher.seconds}

    def _snapshot(self) -> dict[str, Any]:
        """A copy of the weights, for publication and whoever else needs those of this version."""
        self._weights = self._crew.snapshot()
        self._evidence.hold(self.version, self._weights)
        return self._weights

    def _wait_for_publication(self) -> None:
        self._publisher.wait(partial(self._waiting, "publishing"), self._settings.staleness.take_deadline)

    def _waiting(self, doing: str) -> None:
        """Show life, to the supervisor and to the other ranks."""
        self._beat(doing)
        self._crew.idle()

    def _while_waiting(self) -> str:
        """At every turn of the feed's wait."""
        self._crew.idle()
        self._publisher.check()
        self._beat(WAITING)
        if time.monotonic() - self._gate_seen > 1.0:
            self._gate_seen = time.monotonic()
            # Applied groups are kept until a checkpoint has them; they may hold the space that new ones need.
            closed = self._store.gate()
            if self._keeper.saved != self.version and (self.requests.checkpoint or closed == "memory"):
                self._checkpoint()
            self._feed.excused = closed == "held"
        why = self._stand_while_paused() or self._why_stop()
        return ROLL_BACK if self._wants_back else why

    def _stand_while_paused(self) -> str:
        """Nothing is trained until somebody lets the run go on, or go back, or end, which is then returned. Checkpoints
        are written all the same."""
        while self.requests.paused and not self._wants_back:
            if why := self._why_stop():
                return why
            self._waiting("paused")
            self._publisher.check()
            if self.requests.checkpoint and self._keeper.saved != self.version:
                self._checkpoint()
            time.sleep(_PAUSE)
        return ""

    # --- checkpoints and reports --------------------------------------------------------------------

    def _checkpoint_due(self) -> bool:
        return self.requests.checkpoint or self.version.step % self._settings.checkpoint.every == 0

    def _checkpoint(self) -> float:
        """Returns the seconds it took."""
        began = time.monotonic()
        self.requests.checkpoint = False
        self._turned()
        self._wait_for_publication()
        sealed = self._keeper.write(self.version, self.tokens, self._metrics, self._weights)
        took = time.monotonic() - began
        self._tell("checkpoint", folder=str(sealed.folder), seconds=took)
        return took

    def _step_metrics(self, fed: Fed, batch: Batch, trained: Trained) -> dict[str, float]:
        dropped, self._skipped = self._skipped + fed.dropped, Counter()
        seen = report.group_metrics(fed) | report.batch_metrics(batch, fed.groups) | report.dropped_metrics(dropped)
        own = {
            "off_policy/bound": float(self._trainer.max_lag),
            "actor/skipped_updates": float(trained.skipped),
            "learner/updates": float(self._crew.engine.updates),
            "learner/tokens": float(self.tokens),
        }
        return seen | trained.metrics | own | report.refused_metrics(self._feed.refusals.of_step())

    def _tell(self, kind: str, **facts: Any) -> None:
        self._report({"kind": kind, "version": str(self.version), **facts, "at": time.time()})

    def _warn(self, why: str) -> None:
        self._tell("warning", why=why)

    def _step_report(self, fed: Fed, batch: Batch, metrics: dict[str, float], seconds: float) -> None:
        metrics |= report.time_metrics(batch, metrics["time/forward_backward"], seconds)
        told = report.step(self.version, fed, metrics, self._trainer.samples())
        self._report(told | self._turned())
