"""Overlays, rendered once."""

from __future__ import annotations

import copy
from functools import cache

import pytest

from scripts.manifests.render import KUBERNETES, render
from scripts.manifests.rules import Deployment


@cache
def rendered(overlay: str) -> list[dict]:
    return render(KUBERNETES / "overlays" / overlay)


@pytest.fixture
def job() -> Deployment:
    """The overlay `job`, to be broken at will."""
    return Deployment(copy.deepcopy(rendered("job")))
