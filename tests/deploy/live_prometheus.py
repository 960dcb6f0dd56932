"""A real Prometheus over runs in a folder: deploy/prometheus as it is, only quicker."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import yaml

DEPLOYED = Path(__file__).parents[2] / "deploy" / "prometheus"
SHORT = "6s"
"""In place of every window and every `for` of the rules."""


class LivePrometheus:
    """Scrapes and evaluates every second. Use as a context manager."""

    def __init__(self, folder: Path, runs_dir: Path) -> None:
        if shutil.which("prometheus") is None:
            pytest.fail("prometheus is not on the PATH; get it with: scripts/system_packages.sh prometheus")
        self._folder = folder
        folder.mkdir()
        config = (DEPLOYED / "prometheus.yml").read_text()
        config = config.replace("../../runs/targets", str(runs_dir / "targets")).replace("15s", "1s")
        (folder / "prometheus.yml").write_text(config.replace("/tmp/ray/", f"{folder}/"))
        rules = yaml.safe_load((DEPLOYED / "rules.yml").read_text())
        for group in rules["groups"]:
            for rule in group["rules"]:
                rule["for"] = "1s"
                rule["expr"] = re.sub(r"\[\d+m\]", f"[{SHORT}]", rule["expr"])
        (folder / "rules.yml").write_text(yaml.safe_dump(rules))
        self.rules = [rule for group in rules["groups"] for rule in group["rules"]]

    def __enter__(self) -> LivePrometheus:
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self._folder}/prometheus.yml",
                    f"--storage.tsdb.path={self._folder}/data",
                    "--web.listen-address=127.0.0.1:0",
                ],
                stdout=log,
                stderr=log,
            )
        self.url = f"http://127.0.0.1:{self.wait('Prometheus listens', self._port, 20)}"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)

    def _port(self) -> int | None:
        listening = [c.laddr.port for c in psutil.Process(self._process.pid).net_connections() if c.status == "LISTEN"]
        return listening[0] if listening else None

    def api(self, path: str, **params: Any) -> Any:
        reply = requests.get(f"{self.url}/api/v1/{path}", params=params, timeout=10).json()
        assert reply["status"] == "success", reply
        return reply["data"]

    def targets(self) -> list[tuple[str, str]]:
        """Job and address of everything that is scraped."""
        found = self.api("targets")["activeTargets"]
        return [(target["labels"]["job"], target["labels"]["instance"]) for target in found]

    def ask(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of every series that a query has now."""
        return [(r["metric"], float(r["value"][1])) for r in self.api("query", query=expr)["result"]]

    def value(self, expr: str) -> float | None:
        """The value of a query for one series; None when there is none."""
        found = self.ask(expr)
        assert len(found) <= 1, found
        return found[0][1] if found else None

    def firing(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.api("alerts")["alerts"] if alert["state"] == "firing"}

    def wait(self, what: str, true: Callable[[], Any], deadline: float, say: Callable[[], Any] = lambda: "") -> Any:
        """Until `true` says something; fails the test with what was waited for, and what `say` says then."""
        until = time.monotonic() + deadline
        while not (found := true()):
            if time.monotonic() > until:
                pytest.fail(f"waited {deadline:.0f} s until {what} {say()}")
            time.sleep(0.3)
        return found
