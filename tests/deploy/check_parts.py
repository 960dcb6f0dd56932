"""A run file in which nothing is amiss, and what `penstock check` finds when something is changed in it."""

from __future__ import annotations

from pathlib import Path

import yaml

from penstock.deploy import preflight
from penstock.deploy.checks import context
from penstock.deploy.findings import Finding

GOOD = {
    "name": "sort",
    "model": {"path": "model"},
    "data": {"sources": {"train": {"path": "train.jsonl"}}},
    "evaluation": {"data": {"sources": {"held_out": {"path": "held_out.jsonl"}}}},
    "reward": {"rules": {"exact": {}}},
    "rollout": {"sampling": {"max_tokens": 16}},
    "engine": {"max_model_len": 64, "kv_cache_gib": 0.01},
    "limits": {"steps": 50},
}


def check_overridden(place: Path, *overrides: str, stage: context.Stage = "train") -> dict[str, Finding]:
    """Findings by key; of several about one key the first."""
    path = place / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD, sort_keys=False))
    return {finding.key: finding for finding in reversed(preflight.check(path, overrides, stage))}
