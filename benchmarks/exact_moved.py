"""Objectives when π has left π_prox: by an update of this step, with tokens of π_prox or of an older sampler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks import exact_forms as forms
from benchmarks.exact_case import (
    RETURN,
    Case,
    answer_weighted,
    centred,
    gradient_of_return,
    pair_weighted,
    plain,
    ratios,
    token_weighted,
)
from benchmarks.exact_corrections import LARGE, ONE_STEP, TOKEN_LEVEL, geometric_mean
from benchmarks.exact_estimators import Estimator
from benchmarks.exact_worlds import SEQUENCES

THIRD = gradient_of_return(1 / 3)


def _gspo_kept(e: Estimator, apart: Tensor) -> Tensor:
    ratio = geometric_mean(ratios(e)).reshape(-1, 1, 1)
    return (((apart > 0) & (ratio <= 1.1)) | ((apart < 0) & (ratio >= 0.9))) * ratio


def _decoupled_clipped(bound: float) -> Any:
    def keep(e: Estimator, apart: Tensor) -> Tensor:
        step = (e.world.logp(e.tables.now) - e.world.logp(e.tables.prox)).exp().unsqueeze(1)
        inside = ((apart > 0) & (step <= 1 + bound)) | ((apart < 0) & (step >= 1 - bound))
        return inside * ratios(e).unsqueeze(1)

    return pair_weighted(keep, 1.0)


def _clip(low: float = 0.2, high: float = 0.2, dual: float | None = None) -> dict[str, Any]:
    return {"kind": "ppo_clip", "clip_low": low, "clip_high": high, "dual_clip": dual}


def _case(name: str, objective: dict[str, Any], why: str, setting: str = "updated", **more: Any) -> Case:
    cells = {key: more.pop(key) for key in ("trust", "baseline", "reduction") if key in more}
    estimator = Estimator(SEQUENCES, setting, plain(objective=objective, **cells))
    return Case(name, estimator, more.pop("target", RETURN), why, **more)


def _clipped(low: float, high: float, dual: float = LARGE) -> Any:
    def keep(e: Estimator, apart: Tensor) -> Tensor:
        ratio = ratios(e).unsqueeze(1)
        inside = ((apart > 0) & (ratio <= 1 + high)) | ((apart < 0) & (ratio >= 1 - low) & (ratio <= dual))
        return inside * ratio

    return pair_weighted(keep, 1.0)


def _penalised(e: Estimator) -> Tensor:
    tables = e.tables
    apart = forms.kl_of_tokens(e.world, tables.now, tables.prox, tables.prox, reverse=True)
    return TOKEN_LEVEL(e) - 0.5 * apart


def _kimi(e: Estimator) -> Tensor:
    moved_by = ratios(e).log().sum(-1)
    return forms.per_answer(e.world, e.tables.now, e.tables.sampler, centred(e) / 2 - 0.1 * moved_by)


GEOMETRIC: dict[str, Any] = {"reduction": {"kind": "sequence_mean"}, "target": THIRD}


MOVED = [
    _case(
        "policy_gradient",
        {"kind": "policy_gradient"},
        "Nothing corrects for the update: as no correction at all.",
        form=token_weighted(torch.ones_like),
        formula="E_μ[(R − J^μ) ∇log π]",
    ),
    _case(
        "ppo_clip, bounds never reached",
        _clip(1.0, 10.0),
        "The ratio is a token-level weight.",
        form=TOKEN_LEVEL,
        formula=ONE_STEP,
    ),
    _case(
        "ppo_clip, 0.2",
        _clip(),
        "Steps that went far enough in their direction add nothing.",
        form=_clipped(0.2, 0.2),
        formula="the same without clipped pairs",
    ),
    _case(
        "ppo_clip, 0.2 and 0.28",
        _clip(0.2, 0.28),
        "A little more is left above.",
        form=_clipped(0.2, 0.28),
        formula="the same without clipped pairs",
    ),
    _case(
        "ppo_clip, 0.2, dual clip 1.1",
        _clip(0.2, 0.2, 1.1),
        "Bad choices that became likelier add nothing beyond the cap, where they need it most.",
        form=_clipped(0.2, 0.2, 1.1),
        formula="the same without clipped pairs",
    ),
    _case(
        "ppo_kl, β 0.5",
        {"kind": "ppo_kl", "coefficient": 0.5, "controller": {"kind": "fixed"}},
        "The penalty pulls back to π_prox, as it should.",
        form=_penalised,
        formula=f"{ONE_STEP} − β ∇KL(π_prox‖π)",
    ),
    _case(
        "gspo, bounds never reached",
        {"kind": "gspo", "clip_low": 1.0, "clip_high": 10.0},
        "One root of the answer's weight for all of its tokens.",
        form=answer_weighted(lambda ratio: geometric_mean(ratio) / 3),
        formula="E_μ[w^(1/T) (R − J^μ) ∇log π(y)]/T",
        **GEOMETRIC,
    ),
    _case(
        "gspo, 0.1",
        {"kind": "gspo", "clip_low": 0.1, "clip_high": 0.1},
        "Answers that went far enough are missing whole.",
        form=pair_weighted(_gspo_kept, 1 / 3),
        formula="the same without clipped pairs",
        **GEOMETRIC,
    ),
    _case(
        "kimi, τ 0.1",
        {"kind": "mirror_descent", "tau": 0.1},
        "Uncorrected, with the factor (G−1)/G of the group mean, and pulled back to π_prox.",
        baseline={"kind": "group_mean"},
        form=_kimi,
        formula="(G−1)/G · E_μ[(R − J^μ) ∇log π(y)] − τ E_μ[log(π/π_prox) ∇log π(y)]",
    ),
    _case(
        "decoupled + ppo_clip never reached",
        _clip(1.0, 10.0),
        "Both ratios multiply to π/μ per token.",
        "apart",
        trust={"kind": "decoupled", "max_weight": None},
        form=TOKEN_LEVEL,
        formula=ONE_STEP,
    ),
    _case(
        "decoupled + ppo_clip 0.2",
        _clip(),
        "Clipping acts on what this step changed, not on the age of the sampler.",
        "apart",
        trust={"kind": "decoupled", "max_weight": None},
        form=_decoupled_clipped(0.2),
        formula="the same without clipped pairs",
    ),
    _case(
        "cispo, cap 1.25",
        {"kind": "cispo", "max_weight": 1.25},
        "Its ratio is to the sampler whatever π_prox is.",
        "apart",
        form=token_weighted(lambda ratio: ratio.clamp(max=1.25)),
        formula="Σ d^μ(h) μ min(π/μ, 1.25) (Q^μ − J^μ) ∇log π",
    ),
]
"""π has left π_prox by an update; π_prox is the sampler, except where it says so."""
