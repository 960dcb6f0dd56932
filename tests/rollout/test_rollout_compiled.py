"""Swaps of an engine that compiles its model, as is the default: kept apart, because compiling takes half a minute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rollout_lab import SECTION, Lab, reference

from penstock.rollout.config import KEEP_NOTHING

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.story]

PROMPT, ANSWER = [5, 6, 7, 8] * 8, [*range(10, 30)]


def test_a_compiled_model_computes_with_the_weights_it_was_given_last(lab: Lab, start: Callable[..., Any]):
    engine = start(lab, KEEP_NOTHING, SECTION.model_copy(update={"enforce_eager": False}))
    for ours, other in [(1, 0), (0, 1), (1, 0)]:  # the first by the engine's own reload
        engine.swap(lab.publish(lab.models[ours]))
        found = engine.logprobs_of(PROMPT, ANSWER)
        assert np.abs(found - reference(lab.models[ours], PROMPT, ANSWER)).max() < 1e-4
        assert np.abs(found - reference(lab.models[other], PROMPT, ANSWER)).max() > 0.1
