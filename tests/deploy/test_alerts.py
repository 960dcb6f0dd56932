"""Prometheus' configuration and alert rules, by promtool, and what the docs say of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from penstock.deploy.catalogue import exported
from penstock.services.metrics import to_prometheus
from penstock.services.prometheus import SCRAPED

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULES = [rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]]


def promtool(*arguments: str) -> str:
    """What promtool says of the files. Fails the test where it finds fault, and where there is none."""
    if shutil.which("promtool") is None:
        pytest.fail("promtool is not on the PATH; get it with: scripts/system_packages.sh prometheus")
    asked = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=60)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    return asked.stdout + asked.stderr


def test_promtool_accepts_the_rules_and_the_configuration() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "rules", "rules.yml")
    assert "is valid prometheus config file syntax" in promtool("check", "config", "prometheus.yml")


def test_every_alert_fires_when_its_series_misbehave_and_not_otherwise() -> None:
    assert "SUCCESS" in promtool("test", "rules", "rules.test.yml")


def test_every_alert_has_such_a_test() -> None:
    tested = (FOLDER / "rules.test.yml").read_text()
    assert [rule["alert"] for rule in RULES if rule["alert"] not in tested] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_what_is_the_matter_and_what_to_do(rule) -> None:
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert re.fullmatch(r"\d+[sm]", rule["for"])
    assert "{{ $labels." in rule["annotations"]["summary"]
    page, anchor = rule["annotations"]["runbook"].rsplit(" ", 1)[1].split("#")
    headings = re.findall(r"^## (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in [heading.lower().replace(" ", "-") for heading in headings]


def test_alerts_speak_of_metrics_that_are_exported() -> None:
    known = {SCRAPED + to_prometheus(name) for name in exported()}
    for rule in RULES:
        asked = set(re.findall(r"ray_penstock_\w+", rule["expr"]))
        assert asked <= known, rule["alert"]
        assert asked or "up{" in rule["expr"]
