"""What a rule of `penstock check` may look at, and how a rule is declared."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel

from penstock.deploy.findings import Finding, Level
from penstock.deploy.runfile import RunFile
from penstock.deploy.shown import shown
from penstock.deploy.yaml_source import KeyPath, YamlSource
from penstock.services import model_facts, models
from penstock.services.contracts import PenstockError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from penstock.services.data import PairSource, PromptSource

DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""What drivers make: NVIDIA's, on Linux and in Windows' subsystem, and AMD's, of which nvidia-smi knows nothing."""
_NOTHING = object()
"""Stands for a key that the file does not have."""
Stage = Literal["train", "sft", "evaluate"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class Context:
    """One run file under examination. Looked-up facts are kept, so that rules can share them."""

    run_file: RunFile
    """In a file with mistakes of form: built from the parts that are right."""
    source: YamlSource
    stage: Stage
    unknown: frozenset[str] = frozenset()
    """Keys of the run file that have no right value yet; what stands in `run_file` there is a default."""

    def error(self, key: str, problem: str, *, allowed: str = "", nearest: str = "", remedy: str = "") -> Finding:
        """A finding that keeps the run from starting, with the value that stands at `key`."""
        return self._finding("error", key, problem, allowed, nearest, remedy)

    def warning(self, key: str, problem: str, *, allowed: str = "", nearest: str = "", remedy: str = "") -> Finding:
        """A finding that a person should know of; the run starts all the same."""
        return self._finding("warning", key, problem, allowed, nearest, remedy)

    def note(self, key: str, problem: str) -> Finding:
        """Something that it is good to know, and nothing is amiss."""
        return self._finding("note", key, problem, "", "", "")

    def _finding(self, level: Level, key: str, problem: str, allowed: str, nearest: str, remedy: str) -> Finding:
        path: KeyPath = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        found = self._found(path) if level != "note" or self._value(path) is not _NOTHING else ""
        return Finding(key, problem, level, found, allowed, nearest, remedy, self.source.place(path))

    def _found(self, path: KeyPath) -> str:
        """What is written at `path`, or else what counts there; empty where that is nothing, or a whole section."""
        value = self._value(path)
        if value is not _NOTHING:
            return shown(value, str(path[-1])) if value not in ({}, []) else ""
        default = standing_at(self.run_file, path)
        return f"{shown(default, str(path[-1]))} (the default)" if default is not None else ""

    def written(self, key: str) -> Any:
        """What the file, or the command line, says at `key`; None where it says nothing."""
        value = self._value(tuple(int(part) if part.isdigit() else part for part in key.split(".")))
        return None if value is _NOTHING else value

    def wrote(self, key: str) -> bool:
        """Whether the file, or the command line, says something at `key`."""
        return self._value(tuple(key.split("."))) not in (_NOTHING, None)

    def _value(self, path: KeyPath) -> Any:
        """What the file says at `path`; `_NOTHING` where it says nothing and the default counts."""
        here: Any = self.source.values
        for key in path:
            try:
                here = here[key]
            except (KeyError, IndexError, TypeError):
                return _NOTHING
        return here

    def within(self, prefix: str, problems: Iterable[tuple[str, str]]) -> Iterator[Finding]:
        """What an owner of a section found in it, as (key within the section, text)."""
        for key, text in problems:
            yield self.error(f"{prefix}.{key}" if key else prefix, text)

    # --- facts ---

    @cached_property
    def model(self) -> model_facts.ModelFacts | PenstockError:
        """Facts of the model, or why they cannot be had."""
        try:
            return model_facts.describe(self.run_file.model.path, self.run_file.model.revision)
        except PenstockError as error:
            return error

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | PenstockError:
        """The tokenizer, or why it cannot be had."""
        if self.run_file.model.tokenizer is None and isinstance(self.model, PenstockError):
            return self.model  # it comes with the model, and asking the hub again would take as long again
        try:
            return models.load_tokenizer(self.run_file.model)
        except PenstockError as error:
            return error

    @cached_property
    def opened(self) -> dict[str, PromptSource | PairSource]:
        """Sources whose rows can all be used, by their keys; filled by the rule that reads the rows."""
        return {}

    @cached_property
    def gpus(self) -> int:
        """How many GPUs of this machine the run may use."""
        if self.run_file.placement.device == "cpu" or shutil.which("nvidia-smi") is None:
            return 0
        try:
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
        except subprocess.TimeoutExpired:
            return 0
        there = listed.stdout.count("GPU ") if listed.returncode == 0 else 0
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            return there
        ids = [each.strip() for each in visible.split(",")]
        return min(there, sum(bool(each) and each != "NoDevFiles" and not each.startswith("-") for each in ids))

    @property
    def has_no_gpu(self) -> bool:
        """Whether it is known that the run would find no GPU here: a driver may be there without nvidia-smi."""
        return self.gpus == 0 and not any(Path(each).exists() for each in DRIVERS)

    @property
    def cpus(self) -> int:
        return len(os.sched_getaffinity(0))

    @property
    def joins_a_cluster(self) -> bool:
        """True when other machines may hold actors, so that this one's size says little."""
        return self.run_file.placement.ray_address is not None or "RAY_ADDRESS" in os.environ


def standing_at(section: BaseModel, path: KeyPath) -> Any:
    """The plain value at `path` below `section`; of a section that comes in kinds its kind, of others None."""
    here: Any = section
    for key in path:
        here = getattr(here, str(key), None) if isinstance(here, BaseModel) else None
    return {"kind": kind} if (kind := getattr(here, "kind", None)) else None if isinstance(here, BaseModel) else here


def existing_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


Check = Callable[[Context], Iterator[Finding]]


@dataclass(frozen=True)
class Rule:
    """A check, the stages it is for, and the sections it needs to be there and right."""

    check: Check
    needs: tuple[str, ...]
    stages: tuple[Stage, ...]


def rule(*needs: str, stages: tuple[Stage, ...] = ("train",)) -> Callable[[Check], Rule]:
    """Declares a check that reads the sections `needs`, for `stages`."""
    return lambda check: Rule(check, needs, stages)


def all_rules(namespace: dict[str, Any]) -> tuple[Rule, ...]:
    """The rules of one file, in the order in which they stand there."""
    return tuple(value for value in namespace.values() if isinstance(value, Rule))
