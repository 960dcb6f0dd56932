"""What would another algorithm have done? Archived steps of a run under other rows, corrections and bounds.

Nothing is generated and nothing is trained: for every archived step the gradient of its whole batch is computed
under each variant and compared with that of the run's own algorithm.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from penstock.learner import archive
from penstock.learner.algorithms.cells import NoValue
from penstock.learner.algorithms.judging import Sizes
from penstock.learner.archived import Models, Step
from penstock.learner.archivist import moment_of
from penstock.learner.batch import BatchError
from penstock.learner.config import AlgorithmSection, LearnerSection
from penstock.learner.recompute import GROUPS, Unfit, cosine, norm, outcome
from penstock.learner.variants import Ask, Variant, VariantError
from penstock.services.codec import CodecError
from penstock.services.contracts import PenstockError
from penstock.services.model_config import ModelSection
from penstock.services.versions import Version

At = Literal["start", "next"]
OWN = "the run's own"
COLUMNS = {
    "grad_norm": ("gradient norm", "norm of the policy's gradient, whole batch, before clipping"),
    "cosine": ("cosine", "of the angle to the gradient of the run's own algorithm"),
    "whatif/ess": ("ESS", "(Σw)²/(n Σw²) of the weights that tokens really get: |∂L/∂log π| over reduction and |A|"),
    "actor/pg_clipfrac_low": ("clip low", "share of tokens whose gradient (for CISPO: weight) the lower bound cut"),
    "actor/pg_clipfrac_high": ("clip high", "share of tokens whose gradient (for CISPO: weight) the upper bound cut"),
    "rollout_corr/clipfrac": ("weight cut", "share of tokens whose weight was cut at its bound"),
    "rollout_corr/left_out": ("left out", "share of tokens that the correction or a rejection masked"),
    "actor/out_of_range": ("out of range", "share of tokens whose log-probs lie more than 80 nats apart"),
    "actor/loss": ("loss", "whole loss of the policy"),
}
"""Metrics of the table: heading and meaning."""


@dataclass(frozen=True)
class Row:
    """One variant over all steps."""

    label: str
    section: dict[str, Any]
    reason: str = ""
    """Why it could not be computed; empty when it could."""
    steps: list[dict[str, float]] = field(default_factory=list)
    """Metrics of every step, in the order of `Comparison.steps`."""

    def mean(self, metric: str) -> float:
        """Over the steps that have it; NaN where none has."""
        values = self._values(metric)
        return sum(values) / len(values) if values else math.nan

    def spread(self, metric: str) -> float:
        """Standard deviation over the steps (n − 1); NaN for fewer than two."""
        values = self._values(metric)
        if len(values) < 2:
            return math.nan
        mean = self.mean(metric)
        return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))

    def _values(self, metric: str) -> list[float]:
        return [step[metric] for step in self.steps if math.isfinite(step.get(metric, math.nan))]


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    run: str
    at: At
    steps: list[str]
    """Versions in which the archived steps ended."""
    rows: list[Row]
    """The run's own algorithm first."""
    recorded: list[float]
    """Gradient norm that the run itself recorded, per step; NaN where it recorded none."""
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is undefined is null."""
        found = asdict(self)
        for row, made in zip(found["rows"], self.rows, strict=True):
            names = sorted({name for step in made.steps for name in step})
            row["mean"] = {name: made.mean(name) for name in names}
            row["spread"] = {name: made.spread(name) for name in names}
        plain: dict[str, Any] = _plain(found)
        return plain


def compare(
    run: Path,
    archives: Path,
    model: ModelSection,
    ask: Ask,
    at: At = "start",
    newest: int | None = None,
    progress: Callable[[int, int, str], None] = lambda _done, _of, _what: None,
) -> Comparison:
    """Every archived step with weights, or the `newest` so many, under the run's own algorithm and all that `ask` makes
    of it.

    The run may go on meanwhile: a step that is pruned while it is read is left out. So is one that is damaged, or for
    which the run's own algorithm cannot be computed, with a note. `progress(done, of, what)` is
    called at every evaluation. Raises PenstockError when there is nothing to look at, VariantError for variants that
    cannot be.
    """
    there = _archived(archives)
    # Nothing follows the last step, so of those that something may follow the newest are wanted.
    left = {folder: note for folder in there if (note := _came_to_nothing(folder))}
    folders = [folder for folder in (there[:-1] if at == "next" else there) if folder not in left][-(newest or 0) :]
    work = _Work(model, at, ask)
    work.gone.extend(left.values())
    for place, folder in enumerate(folders):
        later = there[there.index(folder) + 1 :]
        work.look_at(folder, later, functools.partial(progress, place, len(folders)))
    if not work.steps:
        raise PenstockError(_nothing(archives, at, work.gone))
    facts = [each for _, each in work.steps]
    notes = [*work.left_out, *work.gone, *_notes(facts, at), *_groups_differ(work.rows.values())]
    recorded = [each["metrics"].get("actor/grad_norm", math.nan) for each in facts]
    return Comparison(str(run), at, [str(v) for v, _ in work.steps], list(work.rows.values()), recorded, notes)


class _Work:
    """Evaluates steps one after the other."""

    def __init__(self, model: ModelSection, at: At, ask: Ask) -> None:
        self._model, self._at, self._ask = model, at, ask
        self._device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        self._variants: list[Variant] = []
        self.rows: dict[str, Row] = {}
        """By label; what could not be computed has its reason."""
        self.steps: list[tuple[Version, Mapping[str, Any]]] = []
        """Those that were evaluated: the version each ended in, and its facts. Batches and groups are let go."""
        self.gone: list[str] = []
        """What became of the others."""
        self.left_out: list[str] = []
        """What is said of variants that were not asked for after all."""

    def look_at(self, folder: Path, later: Sequence[Path], progress: Callable[[str], None]) -> None:
        """One archived step; `later` are those after it."""
        try:
            step = Step.read(folder)
            following = _following(step, later) if self._at == "next" else None
            if self._at == "next" and following is None:
                return
            found = self._evaluate(step, following, progress)
        except VariantError:
            raise
        except (OSError, BatchError, CodecError, PenstockError) as error:
            damaged = archive.has_weights(folder)
            why = f"is left out: {error}" if damaged else "was pruned while it was read"
            self.gone.append(f"{folder.name} {why}")
            return
        self.steps.append((step.version, step.facts))
        for label, metrics in found.items():
            self.rows[label].steps.append(metrics)

    def _evaluate(
        self, step: Step, following: Path | None, progress: Callable[[str], None]
    ) -> dict[str, dict[str, float]]:
        """Metrics by variant; variants that cannot be computed are struck off the list with the reason."""
        own = AlgorithmSection.model_validate(step.facts["algorithm"])
        if not self._variants:
            variants, self.left_out = self._ask(own, _sizes(step))
            self._variants = [Variant(OWN, own), *variants]
            self.rows = {v.label: Row(v.label, v.section.model_dump(mode="json"), v.reason) for v in self._variants}
        budget = LearnerSection.model_validate(step.facts["learner"]).micro_batch_tokens
        models = Models.load(step.folder, self._model, self._device)
        found: dict[str, dict[str, float]] = {}
        reference: list[torch.Tensor] = []
        for variant in [v for v in self._variants if not self.rows[v.label].reason]:
            alive = functools.partial(progress, f"step {step.version.step}: {variant.label}")
            section = own if variant.label == OWN else variant.section
            try:
                made = outcome(step, models, section, budget, following, alive)
            except Unfit as error:
                if variant.label == OWN:
                    # All others are compared with it: without it there is nothing to say about this step.
                    raise
                self.rows[variant.label] = replace(self.rows[variant.label], reason=str(error))
                continue
            reference = reference or made.gradient
            angle = {"cosine": cosine(made.gradient, reference), "grad_norm": norm(made.gradient)}
            found[variant.label] = made.metrics | angle
            if following is not None:
                models.advance(step.folder)
        return found


def _sizes(step: Step) -> Sizes:
    learner = LearnerSection.model_validate(step.facts["learner"])
    return Sizes(
        group_size=max(len(group.trajectories) for group in step.groups),
        groups_per_step=len(step.groups),
        updates=learner.epochs * learner.mini_batches,
        max_tokens=step.longest,
    )


def _archived(archives: Path) -> list[Path]:
    """Steps that can be computed anew, oldest first. Raises PenstockError that says how to have some."""
    there = archive.steps(archives)
    able = [step for step in there if archive.has_weights(step)]
    if not able:
        what = f"{len(there)} archived steps without weights" if there else "no archived steps"
        raise PenstockError(
            f"{archives} holds {what}, and this needs the weights that the steps started from: run with "
            "archive.every=N archive.weights=true (they may also be set at `penstock resume`)"
        )
    return able


def _following(step: Step, later: Sequence[Path]) -> Path | None:
    """The archived step that started from the weights that `step` led to; None where there is none."""
    for folder in later:
        try:
            if moment_of(archive.read_facts(folder)[1]).now == step.version:
                return folder
        except BatchError:
            continue
    return None


def _came_to_nothing(folder: Path) -> str:
    """What is to be said of a step none of whose updates were applied; empty for the others, and for those that cannot
    be read, of which `look_at` says what is to be said."""
    try:
        _, facts = archive.read_facts(folder)
    except BatchError:
        return ""
    if facts.get("applied", 1) > 0:  # older archives do not say so
        return ""
    return f"{folder.name} is left out: none of its updates were applied, since their gradients were not finite"


def _nothing(archives: Path, at: At, gone: Sequence[str]) -> str:
    if at == "next" and not gone:
        return (
            f"no two steps in {archives} follow each other: --at next needs the weights that a step has led to, "
            "which the next step has when it is archived too; run with archive.every=1 and archive.weights=true"
        )
    return f"no archived step in {archives} could be read: " + "; ".join(gone)


def _notes(facts: Sequence[Mapping[str, Any]], at: At) -> Iterator[str]:
    """What a reader of the table should know of the steps with these facts."""
    learner = LearnerSection.model_validate(facts[0]["learner"])
    algorithms = [AlgorithmSection.model_validate(each["algorithm"]) for each in facts]
    if at == "start":
        yield "at the start of a step π is π_prox, so bounds on π/π_prox cut nothing yet; see --at next"
    if learner.mini_batches * learner.epochs > 1:
        yield (
            f"the run makes {learner.mini_batches * learner.epochs} updates per step (mini_batches × epochs); this is "
            "the gradient of the whole batch in one, and the recorded norm is a mean over theirs"
        )
    if learner.dtype != "float32":
        yield f"the run computes in {learner.dtype}, this in float32: norms differ by rounding"
    warming = [
        str(moment.now.next())
        for moment, value in zip(map(moment_of, facts), (each.value for each in algorithms), strict=True)
        if not isinstance(value, NoValue) and moment.now.step < value.warmup_steps
    ]
    if warming:
        yield (
            f"{len(warming)} of {len(facts)} steps were made while the values warmed up ({', '.join(warming)}): the "
            "policy's loss counted nothing in the run there, and does here"
        )
    if "signal" in {each.group_filter for each in algorithms}:
        yield "the groups are those that the run kept: groups without signal are not among them, whatever the row"


def _groups_differ(rows: Iterable[Row]) -> Iterator[str]:
    """Where group filters or quorums differ, so do the batches: a part of what is compared."""
    by_count: dict[float, list[str]] = {}
    for row in rows:
        if not row.reason and row.steps:
            by_count.setdefault(row.mean(GROUPS), []).append(row.label)
    if len(by_count) > 1:
        used = "; ".join(f"{count:g} by {', '.join(labels)}" for count, labels in by_count.items())
        yield f"group filters and quorums differ; groups used per step, on average: {used}"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Version) else value
