"""Fixtures of the tests of deploy/."""

from __future__ import annotations

import copy

import pytest
from deployment_parts import rendered

from scripts.manifests.rules import Deployment


@pytest.fixture
def job() -> Deployment:
    """The overlay `job`, to be broken at will."""
    return Deployment(copy.deepcopy(rendered("job")))
