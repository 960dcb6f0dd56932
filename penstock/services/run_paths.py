"""Where everything of a run lies. Nobody else puts a path together."""

from __future__ import annotations

from pathlib import Path

from penstock.services.versions import Version

STEP_NAME = "step-{step:06d}-lineage-{lineage}"
BATCH_FILE = "batch.safetensors"
"""In the folder of an archived step."""


def step_name(version: Version) -> str:
    """What files and folders of the step that ended in `version` are called: `step-000012-lineage-0`."""
    return STEP_NAME.format(step=version.step, lineage=version.lineage)


class RunPaths:
    """The parts of the run directory `path`; touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config(self) -> Path:
        """The run file as it was resolved: overrides applied, defaults filled in, secrets masked."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One line per step."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """What happened between the steps: starts, swaps, restarts, checkpoints, warnings."""
        return self.path / "events.jsonl"

    @property
    def activity(self) -> Path:
        """What every actor did and when, as spans of phases; see `services/lanes.py`."""
        return self.path / "activity.jsonl"

    @property
    def activity_before(self) -> Path:
        """The earlier part of it, once it has grown large."""
        return self.path / "activity-before.jsonl"

    @property
    def status(self) -> Path:
        """What the driver is doing now; replaced about once a second."""
        return self.path / "status.json"

    @property
    def summary(self) -> Path:
        """Written once, when the run ends."""
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        """The learner's states, each in a folder called `step_name`."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def archive(self) -> Path:
        """Whole encoded batches of every N-th step, each in a folder called `step_name`."""
        return self.path / "archive"

    @property
    def nonfinite(self) -> Path:
        """Batches of steps that were skipped for infinite or undefined gradients, with their groups."""
        return self.path / "nonfinite"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def control(self) -> Path:
        """Commands to the driver and its answers, while the run goes on; see `services/mailbox.py`."""
        return self.path / "control"

    @property
    def scrape_targets(self) -> Path:
        """Where Prometheus finds this run while it goes on. Beside the run directories, since Prometheus takes a
        pattern for the names of files, and not for folders."""
        return self.path.parent / "targets" / f"{self.path.name}.json"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def guards(self) -> Path:
        """How often each guard has fired, over all starts of the run."""
        return self.path / "guards.json"

    @property
    def whatif(self) -> Path:
        """What other algorithms would have done with the archived steps, as `penstock whatif` found last."""
        return self.path / "whatif.json"

    @property
    def model(self) -> Path:
        """The trained model in Hugging Face format."""
        return self.path / "model"

    @property
    def store(self) -> Path:
        """Folder of the private store's append-only file. While the server runs, a link `live` in it leads to the
        server's socket, which lies elsewhere because socket paths must be short."""
        return self.path / "store"

    def log(self, actor: str) -> Path:
        return self.logs / f"{actor}.log"

    def samples_of(self, version: Version) -> Path:
        return self.samples / f"{step_name(version)}.jsonl"

    def archived_batch(self, version: Version) -> Path:
        return self.archive / step_name(version) / BATCH_FILE
