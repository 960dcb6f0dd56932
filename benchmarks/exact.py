"""Writes docs/exact-gradients.md: what every estimator is in expectation, beside the exact gradient.

    python -m benchmarks.exact

Takes some seconds on one core; the table is the same on every machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.exact_advantages import ADVANTAGES, REDUCTIONS
from benchmarks.exact_case import TOLERANCE, Case
from benchmarks.exact_corrections import ANSWERS, TOKENS
from benchmarks.exact_kl import BONUS, ESTIMATES, IN_LOSS, IN_REWARD
from benchmarks.exact_moved import MOVED
from benchmarks.exact_rows import ROWS, STALE
from benchmarks.exact_steps import STEPWISE
from benchmarks.exact_values import TARGETS, TRACES

PAGE = Path(__file__).parent.parent / "docs" / "exact-gradients.md"


@dataclass(frozen=True)
class Part:
    """A section of the page."""

    title: str
    text: str
    cases: Sequence[Case]


PARTS = (
    Part(
        "Rows, on-policy",
        "Every row of `penstock algorithms` as it is, and where a cell adds a bias of its own, without that cell. The "
        "target is ∇J, divided by what the row's reduction divides by.",
        ROWS,
    ),
    Part(
        "Rows, with an older sampler",
        "The same rows and targets, each with the correction it comes with. On top of the bias above comes what the "
        "correction leaves.",
        STALE,
    ),
    Part(
        "Baselines, credit, whitening",
        "On-policy. What a line names is all that differs from the row `rloo` without trust weights; the target is ∇J.",
        ADVANTAGES,
    ),
    Part(
        "Step rewards",
        "As above, but without a baseline unless a line says so, and with answers that are judged step by step: a step "
        "earns the rise of the score, and R = outcome + last score. The target is ∇E[R], written without any reward "
        "per token; for scores that are 0 at the end it is ∇E[outcome].",
        STEPWISE,
    ),
    Part(
        "Reductions",
        "On-policy, with answers of 1 to 3 tokens. A mean over tokens is held against ∇J divided by the mean length.",
        REDUCTIONS,
    ),
    Part(
        "Corrections by token, and rejections",
        "μ is older than π; the rest as in `rloo`; the target is ∇J of π. J^μ and Q^μ are the sampler's.",
        TOKENS,
    ),
    Part(
        "Corrections by answer",
        "`sequence_is`: one weight per answer, w = π(y)/μ(y) or its T-th root.",
        ANSWERS,
    ),
    Part("V-trace", "Credit from values instead of weights; answers one by one.", TRACES),
    Part(
        "Objectives, after an update",
        "π is no longer π_prox. `updated`: π_prox drew the tokens; `apart`: an older sampler did.",
        MOVED,
    ),
    Part(
        "KL in the loss",
        "The penalty alone: what it adds to the gradient, per unit of β. The target is −∇KL(π‖π_ref) of whole answers, "
        "which includes that choices lead to prefixes where policies differ more or less.",
        IN_LOSS,
    ),
    Part("KL in the reward", "The penalty alone, per unit of β; the same target.", IN_REWARD),
    Part(
        "Values of KL estimators",
        "Not gradients: the expected sum over an answer's tokens, held against Σ d(h) KL(π‖π_ref)(h).",
        ESTIMATES,
    ),
    Part("Entropy bonus", "The bonus alone, per unit of its coefficient; the target is ∇H of whole answers.", BONUS),
    Part(
        "Targets of a value model",
        "Not gradients: E[target | history] for all histories, held against V^π.",
        TARGETS,
    ),
)
OPENING = """\
# Exact gradients

What an estimator is in expectation can be computed without sampling, where all answers can be written down: the
learner's own functions are run on every batch that can be drawn, weighted by the probability of drawing it, and the sum
is held against the exact gradient of the expected return. This page is made by `make exact`, and a test makes it again
and compares.

**How to read it.** *Along* is the expectation's length along the target, in units of the target's length: 1 is right,
0.5 half of it, below 0 against it. *Cosine* is of the angle to it. *Bias* is the length of the difference, in the same
units. Where the third column says `= target`, theory says unbiased, and the two agree to 1e-9. Where it has a formula,
theory says what the biased expectation is, and those two agree to 1e-9 too. *Measured* means that there is no closed
form. How large a bias is depends on the world and on how far policies are apart; that it is there, and its cause,
do not.

**Worlds**, all in float64, policies softmax over tables of logits:
- *sequences*: 3 tokens, 3 steps, 27 answers, a row of logits for each of the 13 prefixes; groups of 2 are 729 pairs
- *varied*: 2 tokens and one that ends the answer; 15 answers of 1 to 3 tokens
- *mdp*: 2 states, 2 actions, 3 steps, rewards at every step; the environment's tokens lie between the actions, masked,
  with NaN beside them
- *steps*: the same answers with an outcome and the scores of three steps for rewards; two of the steps end where the
  environment has answered
- *two prompts*: 4 answers to each; batches of two groups
- *one token*: 5 answers without prefix or sequel

**Who is who.** π is optimised, π_prox is where the step began, μ drew the tokens, π_ref is the reference. `on`: all but
π_ref are equal. `stale`: μ is older. `updated`: π has left π_prox = μ. `apart`: all differ. d(h) is how often a prefix
h is met, G the size of a group (2 unless said), T the tokens of an answer, E[·] without an index is over π.

**What to take from it**
- On-policy, unbiased up to a constant: `reinforce`, `rloo`, and `ppo`, `ppo_kl`, `a2c` with exact values and without
  whitening or bonus. `dr_grpo` and `kimi` are exactly (G−1)/G of it.
- A z-score climbs another hill: how often one wins against oneself, not how much one gets. Its mean has the same
  (G−1)/G in it; what turns the direction is the division.
- Step rewards leave the gradient that of outcome and last score, whichever credit spreads them, as long as γ = 1 and
  a step's score says nothing of what comes after the step.
- Off-policy only the product of all of an answer's ratios is unbiased. A weight per token, capped or not, keeps
  the sampler's prefixes and, without V-trace, what the sampler did next.
- A KL in the loss is right at every prefix at best (k2 on-policy, `unbiased` always); only in the reward is it the KL
  of whole answers. k3 in the loss has the gradient of the KL the other way round.
- A mean over tokens weighs short answers more; a sum, or a fixed length, does not.
"""


def number(value: float) -> str:
    """Three significant digits; rounding errors of the enumeration are 0."""
    return "0" if abs(value) < TOLERANCE else f"{value:.3g}"


def line(case: Case) -> str:
    """A row of the page's tables."""
    found = case.distance()
    says = "= target" if case.unbiased else case.formula if case.form is not None else "measured"
    cells = (
        case.name,
        f"{case.estimator.world.name}, {case.estimator.setting}",
        says,
        *map(number, (found.along, found.cosine, found.bias)),
        case.why,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page() -> str:
    """The whole page."""
    head = (
        "| Estimator | World, sampler | In expectation | Along | Cosine | Bias | Why |\n|---|---|---|---|---|---|---|"
    )
    parts = [f"## {part.title}\n\n{part.text}\n\n" + "\n".join([head, *map(line, part.cases)]) for part in PARTS]
    return OPENING + "\n" + "\n\n".join(parts) + "\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="writes docs/exact-gradients.md")
    parser.add_argument("--to", type=Path, default=PAGE, help="another file")
    path = parser.parse_args().to
    torch.set_num_threads(1)
    path.write_text(page(), encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
