"""What the learner's loop is told to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from penstock.learner.checkpoints import Checkpoint
from penstock.learner.config import (
    AlgorithmSection,
    ArchiveSection,
    CheckpointSection,
    LearnerSection,
    StalenessSection,
)


@dataclass(frozen=True)
class LoopSettings:
    """What the loop is to do and where its files go."""

    learner: LearnerSection
    algorithm: AlgorithmSection
    staleness: StalenessSection
    checkpoint: CheckpointSection
    archive: ArchiveSection
    checkpoints: Path
    archives: Path
    nonfinite: Path
    """Where batches go that were skipped because a gradient was infinite or undefined."""
    model: Path
    """Where the trained model goes at the end, in Hugging Face format."""
    config_hash: str
    request: str
    """Names this start of the learner, so that a repeated `reconcile` gives the same answer."""
    resume: Checkpoint | None = None
    samples: int = 4
    """Trajectories per step that are reported for people to read."""
    samples_every: int = 1
    """Of every so many steps."""
    sample_tokens: int = 512
    """Tokens of each that are reported with their numbers."""
    seed: int = 0
    """Of the order of mini-batches, and of which samples are shown."""
