"""A run directory, and a page about it, for tests of the page's server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from penstock.services.control import Command, NoAnswer, Refused, Scale
from penstock.services.dashboard.access import Access
from penstock.services.dashboard.api import Subject
from penstock.services.dashboard.app import create_app
from penstock.services.lanes import LanesLog, Span
from penstock.services.metrics import Metric, MetricsLog
from penstock.services.rundir import RunDir
from penstock.services.versions import Version

PORT = 8400
HERE = f"http://127.0.0.1:{PORT}"
JSON = {"content-type": "application/json"}
CATALOGUE = {"reward/mean": Metric("mean reward", good="up"), "kl/{which}": Metric("a divergence", "nat")}


@dataclass
class Control:
    """Remembers what was asked for; refuses more than four workers, and answers nothing when `gone`."""

    asked: list[tuple[Command, str]] = field(default_factory=list)
    gone: bool = False

    def send(self, command: Command, by: str, deadline: float = 30.0) -> str:
        if self.gone:
            raise NoAnswer("the run is not running: no driver holds it")
        if isinstance(command, Scale) and command.count > 4:
            raise Refused(f"{command.count} workers are more than 4")
        self.asked.append((command, by))
        return "done"


def a_run(folder: Path) -> RunDir:
    """Twenty steps of two metrics, three events, one lane."""
    run = RunDir.create(folder, "sort", "name: sort\nstore: {url: 'redis://:***@host'}\n")
    log = MetricsLog(run.metrics)
    log.begin(Version(0, 0), 1000.0)
    for step in range(1, 21):
        log.write(Version(0, step), {"reward/mean": step / 20, "kl/reference": 0.1}, 1000.0 + step)
    log.close()
    run.add_event("training", "training")
    run.add_event("guard", "kl/reference > 0.05", step=7, by="guard kl/reference")
    run.add_event("joined", "rollout-0 begins to generate", name="rollout-0")
    lanes = LanesLog(run.activity, run.activity_before)
    lanes.write({"rollout-0": [Span("generating", 1000.0, 1010.0), Span("swapping weights", 1010.0, 1011.0)]})
    lanes.close()
    return run


def facts(run: RunDir) -> dict[str, Any]:
    view = {"phase": "training", "step": 20, "metrics": {"reward/mean": 1.0}, "workers": []}
    return {"verdict": "training", "facts": {"run_dir": str(run.path), "alive": True, "view": view, "summary": None}}


def client(run: RunDir, control: Control, token: str | None = None, host: str = "127.0.0.1") -> TestClient:
    """A browser's view of the page; enter it, so that the files are followed."""

    def told() -> Mapping[str, Any]:
        return facts(run)

    subject = Subject(run, told, control, CATALOGUE, user="ada@lab")
    # There is no connection here, and so nobody at its other end; test_page_users.py has real ones.
    app = create_app(subject, Access(host, PORT, token, user_of=lambda *_: os.geteuid()))
    return TestClient(app, base_url=HERE, follow_redirects=False)
