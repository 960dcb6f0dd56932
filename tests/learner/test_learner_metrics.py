"""The learner's catalogue of metrics."""

from __future__ import annotations

import pytest

from penstock.learner.metrics import METRICS
from penstock.services.metrics import check_name


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_a_proper_name_and_an_explanation(name):
    check_name(name)
    assert METRICS[name].help


def test_every_divergence_says_how_it_is_estimated():
    assert all(metric.estimator for name, metric in METRICS.items() if name.startswith("kl/"))
