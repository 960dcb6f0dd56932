"""The run file: all sections together, read from YAML with overrides, written back as config.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from penstock.deploy import job
from penstock.deploy import overrides as command_line
from penstock.deploy.config import (
    DeadlinesSection,
    GoalSection,
    HeldOutSection,
    LimitsSection,
    PlacementSection,
    RecordingSection,
)
from penstock.deploy.findings import Finding, from_pydantic, secrets_in_clear
from penstock.deploy.guards.config import GuardSection
from penstock.deploy.guards.presets import expanded
from penstock.deploy.keys import dotted
from penstock.deploy.shown import masked, shown
from penstock.deploy.yaml_source import KeyPath, YamlError, YamlSource, read_yaml
from penstock.learner.config import (
    AlgorithmSection,
    ArchiveSection,
    AuditSection,
    CheckpointSection,
    LearnerSection,
    SftSection,
    StalenessSection,
)
from penstock.reward.config import RewardSection
from penstock.rollout.config import EngineSection, RolloutSection
from penstock.services.contracts import PenstockError
from penstock.services.dashboard.config import DashboardSection
from penstock.services.data_config import DataSection
from penstock.services.files import followed
from penstock.services.model_config import ModelSection
from penstock.services.settings import Section, form, on_resume
from penstock.services.store.config import StoreSection
from penstock.services.tracking.config import TrackingSection
from penstock.services.weights.config import WeightsSection


class RunFileError(PenstockError):
    """A run file with mistakes; the text lists all that were found."""

    def __init__(self, file: str, findings: Sequence[Finding]) -> None:
        errors = sum(f.level == "error" for f in findings)
        head = f"{file}: {errors} mistake{'s' if errors != 1 else ''}"
        super().__init__("\n".join([head, *(f"  {finding}" for finding in findings)]))
        self.findings = tuple(findings)


class RunFile(Section):
    """Everything a run needs to know. Every key not given has the default shown here.

    Paths of inputs are relative to the folder of the run file; `runs_dir` is relative to where you stand.
    """

    name: str = Field(
        "run",
        pattern=form(
            r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,60}$",
            "up to 61 letters, digits, '_', '.' and '-', a letter or digit in front",
        ),
    )
    """Name of the run; its directory is called NAME-DATE-N. Letters, digits, '_', '.', '-', because it names a
    folder."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of everything that is drawn: sampling, data order, initialisation. Below 2**32, which NumPy demands."""
    runs_dir: str = on_resume("runs")
    """Folder in which run directories are made, relative to the directory from which the command is given."""
    model: ModelSection
    """The model to train and its tokenizer."""
    data: DataSection
    """Prompts to train on."""
    evaluation: HeldOutSection = HeldOutSection()
    """Measuring the policy on held-out prompts."""
    rollout: RolloutSection = RolloutSection()
    """The workers that generate."""
    engine: EngineSection = EngineSection()
    """The engine inside of each worker."""
    reward: RewardSection | None = None
    """How answers are judged, and the frozen reference model; needed to train and to evaluate."""
    algorithm: AlgorithmSection = AlgorithmSection()
    """What is optimised: a row of the algorithm table and where the run departs from it."""
    learner: LearnerSection = LearnerSection()
    """The learner's batch, its ranks and its optimizer."""
    staleness: StalenessSection = StalenessSection()
    """How old a token may be when it is trained on."""
    sft: SftSection = SftSection()
    """Supervised fine-tuning, for `penstock sft`."""
    checkpoints: CheckpointSection = CheckpointSection()
    """When the learner's state is kept."""
    archive: ArchiveSection = ArchiveSection()
    """Whole batches kept on disk."""
    audit: AuditSection = AuditSection()
    """How much of the distance between sampler and policy is staleness, how much mismatch: measured exactly."""
    weights: WeightsSection = WeightsSection()
    """How new weights reach the rollout workers."""
    store: StoreSection = StoreSection()
    """The replay store and its ledger."""
    limits: LimitsSection = LimitsSection()
    """When the run ends."""
    goals: tuple[GoalSection, ...] = on_resume(())
    """What the run must have reached at its end; exit code 3 when one is missed."""
    guards: tuple[GuardSection, ...] = on_resume(())
    """Conditions on metrics, and what is done to the run when they hold; or the name of a preset, `safe` or `watch`, in
    the place of a list or of one guard in it."""
    recording: RecordingSection = RecordingSection()
    """What is written down beside the metrics."""
    dashboard: DashboardSection = DashboardSection()
    """The page on which people watch the run and steer it."""
    tracking: TrackingSection = TrackingSection()
    """Who else is told of metrics: TensorBoard, Weights & Biases, MLflow, Prometheus."""
    placement: PlacementSection = PlacementSection()
    """Where the actors run."""
    deadlines: DeadlinesSection = DeadlinesSection()
    """How long each wait may take."""

    @field_validator("guards", mode="before")
    @classmethod
    def _presets(cls, guards: Any) -> Any:
        return expanded(guards)

    @classmethod
    def at(cls, base: Path, values: Mapping[str, Any]) -> RunFile:
        """The run file of a file in the folder `base`, its paths absolute. Raises ValidationError."""
        return cls.model_validate(values, context={"base": base}).located(base)

    def located(self, base: Path) -> RunFile:
        """The same run file with its paths absolute: inputs against `base`, `runs_dir` against the current folder, or
        where that does not last, since it is Ray's copy of it, against `penstock` in the user's own."""
        changes: dict[str, Any] = {"runs_dir": str(job.lasting(followed(Path(self.runs_dir).expanduser())))}
        for name in type(self).model_fields:
            section = getattr(self, name)
            if hasattr(section, "located"):
                changes[name] = section.located(base)
            elif isinstance(section, Section):
                changes[name] = _with_absolute_paths(section, base)
        return self.model_copy(update=changes)

    def to_yaml(self) -> str:
        """What config.yaml holds: every key with its value, secrets masked. `load` reads it back."""
        values = masked(self.model_dump(mode="json"))
        head = "# The run file as it was resolved: overrides applied, defaults filled in, paths absolute.\n"
        return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)


def _with_absolute_paths(section: Section, base: Path) -> Section:
    """The section with every field that is a Path made absolute."""
    paths = {name: value for name, value in section if isinstance(value, Path)}
    return section.model_copy(update={name: followed(base / path.expanduser()) for name, path in paths.items()})


@dataclass(frozen=True)
class Reading:
    """A run file as far as it could be read, and every mistake of form in it."""

    source: YamlSource
    run_file: RunFile | None
    """With absolute paths; None when its form is so wrong that there is none."""
    findings: tuple[Finding, ...]


def read(path: Path, overrides: Sequence[str] = ()) -> Reading:
    """Read `path` and put the overrides over it; never raises for a mistake in the file."""
    try:
        source = read_yaml(path)
    except YamlError as error:
        finding = Finding("run file", error.problem, remedy=error.remedy, where=error.where)
        return Reading(YamlSource(str(path), {}), None, (finding,))
    source = replace(source, values=job.found_again(source.values))
    source, wrong_overrides = command_line.apply(source, overrides, RunFile)
    run_file: RunFile | None = None
    malformed: list[Finding] = []
    try:
        run_file = RunFile.at(path.resolve().parent, source.values)
    except ValidationError as error:
        malformed = from_pydantic(error, RunFile, source)
    # A section that knows its own secrets says more about them than the general search does.
    said = {finding.key for finding in malformed}
    secrets = [finding for finding in secrets_in_clear(source) if finding.key not in said]
    return Reading(source, run_file, (*wrong_overrides, *secrets, *malformed))


def load(path: Path | str, overrides: Sequence[str] = ()) -> RunFile:
    """The run file at `path` with absolute paths. Raises RunFileError that lists every mistake of form."""
    return _right(path, read(Path(path), overrides))


def _right(path: Path | str, reading: Reading) -> RunFile:
    if reading.run_file is None or reading.findings:
        raise RunFileError(str(path), reading.findings)
    return reading.run_file


# --- resuming -------------------------------------------------------------------------------------


def changed_on_resume(old: RunFile, new: RunFile) -> list[str]:
    """Keys that differ and may not change when a run is resumed."""
    return [dotted(path) for path, free in _differences(old, new, (), False) if not free]


def _differences(old: Any, new: Any, path: KeyPath, free: bool) -> Iterator[tuple[KeyPath, bool]]:
    """Every leaf that differs, with whether it, or a key around it, was declared changeable."""
    if isinstance(old, BaseModel) and type(old) is type(new):
        for name, info in type(old).model_fields.items():
            extra = info.json_schema_extra
            declared = isinstance(extra, dict) and bool(extra.get("changeable_on_resume"))
            yield from _differences(getattr(old, name), getattr(new, name), (*path, name), free or declared)
    elif isinstance(old, Mapping) and isinstance(new, Mapping) and old.keys() == new.keys():
        for key in old:
            yield from _differences(old[key], new[key], (*path, key), free)
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, after, (*path, index), free)
    elif old != new:
        yield path, free


def _at(run: RunFile, key: str) -> Any:
    """The plain value at `key`; None where it has none."""
    here: Any = run.model_dump(mode="json")
    for part in key.split("."):
        here = here[int(part)] if isinstance(here, list) else here.get(part)
    return here


def read_for_resume(config: Path, overrides: Sequence[str] = ()) -> Reading:
    """The resolved run file of an earlier run with overrides. Raises RunFileError for mistakes of form, and for keys
    that must stay."""
    old, reading = load(config), read(config, overrides)
    new = _right(config, reading)
    findings = [
        Finding(
            key,
            "cannot change when a run is resumed",
            found=shown(_at(new, key), key),
            allowed=shown(_at(old, key), key),
            where=command_line.PLACE,
            remedy="start a new run with `penstock train`, or leave it as it was",
        )
        for key in changed_on_resume(old, new)
    ]
    if findings:
        raise RunFileError(str(config), findings)
    return reading


def schema() -> dict[str, Any]:
    """JSON schema of a run file, for editors."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Penstock run file"}
    return {**head, **RunFile.model_json_schema(), "title": head["title"]}
