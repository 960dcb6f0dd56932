"""The learner's catalogue of metrics."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from penstock.learner.algorithms.bound import bind
from penstock.learner.algorithms.composition import compose
from penstock.learner.algorithms.table import rows
from penstock.learner.coefficients import Coefficients
from penstock.learner.config import AlgorithmSection
from penstock.learner.diagnostics import BUCKETS, in_bucket, observe, step_metrics
from penstock.learner.metrics import METRICS
from penstock.learner.ranks import Team
from penstock.learner.tally import Tally
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


CELLS = [{"name": name} for name in rows()] + [
    {"name": "grpo", **cells}
    for cells in (
        {"objective": {"kind": "ppo_clip", "dual_clip": 3.0}},
        {"trust": {"kind": "none"}},
        {"trust": {"kind": "masked_is"}},
        {"trust": {"kind": "sequence_is", "beyond": "mask"}},
        {"trust": {"kind": "sequence_is", "beyond": "clip"}},
        {"trust": {"kind": "decoupled", "max_weight": 2.0}},
        {"reject": {"kind": "off_policy_sequence"}},
        {"reject": {"kind": "second_moment"}},
        {"kl": {"coefficient": 0.1, "controller": {"kind": "doubling", "target": 0.1}}},
    )
]


@pytest.mark.parametrize("cells", CELLS, ids=str)
def test_whatever_a_train_step_reports_is_explained(cells):
    algorithm, random = bind(AlgorithmSection.model_validate(cells)), torch.Generator().manual_seed(0)
    # Log-ratios from none to far beyond the range, so that whatever can be counted is.
    logp, prox, sampler, reference, advantages = torch.randn(5, 4, 6, generator=random) * 3 - 4
    mask, lags = torch.ones(4, 6, dtype=torch.bool), torch.arange(24).reshape(4, 6)
    sampler[0] -= 200
    made = compose(algorithm, logp, prox, sampler, reference, advantages, mask, torch.ones(4), logp.abs())
    part = SimpleNamespace(mask=mask, logp_sampler=sampler, logp_reference=reference, lags=lags, older_kv=lags % 5 == 4)
    tally = Tally()
    observe(tally, part, made.mask, made.keep, logp, prox, logp.abs(), made.facts)
    tally.add_number("actor/pg_loss", made.policy)
    tally.add_number("actor/loss", made.loss)
    found = step_metrics(tally.over(Team(0, 1, 1.0, None)), 1)
    found |= Coefficients(algorithm.adaptive, {}).metrics()
    if algorithm.value is not None:
        found |= algorithm.value.loss(logp, prox, sampler, mask)[1]
    assert not [name for name in found if describe(name, METRICS) is None]
    assert {in_bucket(name, "lag_9_up") for name in made.facts} <= set(found)
