"""The learner's catalogue of metrics."""

from __future__ import annotations

import pytest

from penstock.learner.diagnostics import BUCKETS, in_bucket
from penstock.learner.metrics import METRICS
from penstock.services.metrics import check_name, describe
from penstock.services.plots import PLOTS


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_a_proper_name_and_an_explanation(name):
    check_name(name)
    assert METRICS[name].help


def test_every_divergence_says_how_it_is_estimated():
    assert all(metric.estimator for name, metric in METRICS.items() if name.startswith("kl/"))


def test_the_plot_by_lag_shows_every_bucket_by_its_name():
    (plot,) = [plot for plot in PLOTS if plot.name == "staleness"]
    drawn = [[line.metric for line in panel.lines] for panel in plot.panels]
    assert drawn == [[in_bucket(name, b) for b in BUCKETS] for name in ("rollout_corr/ess", "kl/offpolicy/k3")]
    assert all(describe(name, METRICS) for panel in drawn for name in panel)


def test_what_is_measured_per_bucket_says_which_buckets_there_are():
    for bucket in BUCKETS:
        found = describe(in_bucket("rollout_corr/ess", bucket), METRICS)
        assert found is not None
        assert bucket in found.help
