"""Cells that do not fit each other, or the sizes of the run: found before anything starts, all at once.

Nothing here knows a row: cells say of themselves what they need (`scope`, `needs_shift`, `ratio`, `weighs`, …), so
that rows and cells of the user's own are checked like Penstock's. Every rule names the keys that it looks at: where
one of them has no right value yet, the rule is left out and all others are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from penstock.learner.algorithms import loss_cells
from penstock.learner.algorithms.cells import NoBaseline, NoValue, OwnValue, ValueCredit, ValueHead
from penstock.learner.algorithms.judging import Contradiction, Rule, Sizes, about

if TYPE_CHECKING:
    from penstock.learner.config import AlgorithmSection


def contradictions(
    section: AlgorithmSection, sizes: Sizes, unknown: frozenset[str] = frozenset()
) -> Iterator[Contradiction]:
    """Everything in `section` that contradicts itself or `sizes`. `unknown` keys have no right value yet, and what
    stands there is looked at by no rule."""
    said: set[tuple[str, str]] = set()
    settled: set[str] = set()
    for rule in RULES:
        found = rule.judge(section, sizes) if rule.can_be_judged(unknown) else None
        if found is None or found.key in settled or (found.remedy and (found.key, found.remedy) in said):
            continue
        said.add((found.key, found.remedy))
        settled.update(found.settles)
        yield found


BASELINE, CREDIT, WHITENING = "algorithm.baseline.kind", "algorithm.credit.kind", "algorithm.whitening.over"
OBJECTIVE, TRUST, REJECT = "algorithm.objective.kind", "algorithm.trust.kind", "algorithm.reject.kind"
VALUE, FILTER, QUORUM = "algorithm.value.kind", "algorithm.group_filter", "algorithm.quorum"
GROUP, GROUPS, UPDATES = "rollout.group_size", "learner.groups_per_step", ("learner.epochs", "learner.mini_batches")
UNWHITENED = "algorithm.whitening: {over: none}, or algorithm.credit: {kind: outcome}"
SEVERAL = "learner.mini_batches: 2, or learner.epochs: 2, or more"

# --- groups ---------------------------------------------------------------------------------------


@about(BASELINE, GROUP)
def _a_group_has_others(section: AlgorithmSection, sizes: Sizes) -> Contradiction | None:
    if section.baseline.scope != "group" or sizes.group_size >= 2:
        return None
    problem = f"the baseline {section.baseline.kind} compares the answers of a group, and one answer has no other"
    more = ", learner.groups_per_step: 2 or more" if sizes.groups_per_step < 2 else ""
    remedy = (
        "or, for one answer to a prompt, all of: algorithm.baseline: {kind: others_mean}, algorithm.quorum: 1, "
        f"algorithm.group_filter: all{more}"
    )
    return Contradiction(GROUP, problem, "2 or more", remedy, settles=(FILTER,))


@about(FILTER, GROUP)
def _a_group_can_have_signal(section: AlgorithmSection, sizes: Sizes) -> Contradiction | None:
    if section.group_filter != "signal" or sizes.group_size >= 2:
        return None
    problem = "a group of one answer never differs in reward, so every group would be replaced for ever"
    return Contradiction(FILTER, problem, "'all'", "algorithm.group_filter: all, or rollout.group_size: 2 or more")


@about(BASELINE, QUORUM)
def _the_quorum_has_others(section: AlgorithmSection, _sizes: Sizes) -> Contradiction | None:
    if section.baseline.scope != "group" or section.quorum >= 2:
        return None
    problem = f"the baseline {section.baseline.kind} compares scored answers of a group, and one has no other"
    return Contradiction(QUORUM, problem, "2 or more")


@about(QUORUM, GROUP)
def _a_group_can_have_the_quorum(section: AlgorithmSection, sizes: Sizes) -> Contradiction | None:
    # A quorum of 2 is right for a baseline that compares: with one answer the group is what is wrong.
    return _too_large(section, sizes) if section.quorum > max(sizes.group_size, 2) else None


@about(BASELINE, QUORUM, GROUP)
def _a_group_of_one_can_have_the_quorum(section: AlgorithmSection, sizes: Sizes) -> Contradiction | None:
    alone = sizes.group_size == 1 and section.quorum == 2 and section.baseline.scope != "group"
    return _too_large(section, sizes) if alone else None


def _too_large(section: AlgorithmSection, sizes: Sizes) -> Contradiction:
    problem = f"no group of {sizes.group_size} answers can have {section.quorum} scored ones"
    return Contradiction(QUORUM, problem, f"up to {sizes.group_size}")


@about(WHITENING, GROUP, GROUPS)
def _a_batch_has_spread(section: AlgorithmSection, sizes: Sizes) -> Contradiction | None:
    if section.whitening.over != "sequences" or sizes.group_size * sizes.groups_per_step >= 2:
        return None
    problem = "a batch of one answer has no spread to be whitened by"
    return Contradiction(WHITENING, problem, "'none'", "algorithm.whitening: {over: none}, or a larger batch")


@about(BASELINE, GROUPS)
def _a_batch_has_other_prompts(section: AlgorithmSection, sizes: Sizes) -> Contradiction | None:
    if not section.baseline.other_prompts or sizes.groups_per_step >= 2:
        return None
    problem = f"the baseline {section.baseline.kind} is of the batch's other prompts, and there are none: it is 0"
    return Contradiction(GROUPS, problem, "2 or more", level="warning")


# --- baseline, whitening and credit work on each other's results ----------------------------------


@about(BASELINE, CREDIT)
def _values_are_the_baseline(section: AlgorithmSection, _sizes: Sizes) -> Contradiction | None:
    baseline, credit = section.baseline, section.credit
    if not isinstance(credit, ValueCredit) or isinstance(baseline, NoBaseline):
        return None
    problem = f"the credit {credit.kind} takes its baseline from the values, so {baseline.kind} is never used"
    return Contradiction("algorithm.baseline", problem, "none", "algorithm.baseline: {kind: none}")


@about(WHITENING, CREDIT)
def _whitening_goes_with_the_credit(section: AlgorithmSection, _sizes: Sizes) -> Contradiction | None:
    over, credit = section.whitening.over, section.credit
    if isinstance(credit, ValueCredit) and over == "sequences":
        problem = f"the credit {credit.kind} gives every token an advantage of its own, not the answer"
        return Contradiction(WHITENING, problem, "'tokens' or 'none'")
    if isinstance(credit, ValueCredit) or over != "tokens":
        return None
    problem = f"the credit {credit.kind} spreads the answer's advantage: counted by tokens, long answers decide"
    if credit.needs_shift:
        return Contradiction(WHITENING, problem, "'none'", UNWHITENED)
    return Contradiction(WHITENING, problem, "'sequences' or 'none'")


@about(BASELINE, CREDIT)
def _the_baseline_shifts_for_the_credit(section: AlgorithmSection, _sizes: Sizes) -> Contradiction | None:
    if not section.credit.needs_shift or section.baseline.shifts:
        return None
    problem = (
        f"the credit {section.credit.kind} takes a number off the reward, and {section.baseline.kind} also divides it"
    )
    remedy = "algorithm.baseline: {kind: group_mean}, or algorithm.credit: {kind: outcome}"
    return Contradiction("algorithm.baseline", problem, remedy=remedy)


@about(WHITENING, CREDIT)
def _whitening_leaves_the_credit_its_shift(section: AlgorithmSection, _sizes: Sizes) -> Contradiction | None:
    if not section.credit.needs_shift or section.whitening.over != "sequences":
        return None
    problem = f"the credit {section.credit.kind} takes a number off the reward, and whitening also divides it"
    return Contradiction(WHITENING, problem, "'none'", UNWHITENED)


# --- values ---------------------------------------------------------------------------------------


@about(CREDIT, VALUE)
def _credit_from_values_has_some(section: AlgorithmSection, _sizes: Sizes) -> Contradiction | None:
    if not isinstance(section.credit, ValueCredit) or not isinstance(section.value, NoValue):
        return None
    problem = f"the credit {section.credit.kind} needs a value model"
    remedy = "algorithm.value: {kind: own} (a model of its own) or {kind: head} (on the policy's backbone)"
    return Contradiction("algorithm.value", problem, "own or head", remedy)


@about(CREDIT, VALUE)
def _values_are_asked_for(section: AlgorithmSection, _sizes: Sizes) -> Contradiction | None:
    if isinstance(section.credit, ValueCredit) or isinstance(section.value, NoValue):
        return None
    problem = f"the credit {section.credit.kind} asks no value model, so it would be trained for nothing"
    remedy = "algorithm.value: {kind: none}; or, for credit from values, algorithm.credit: {kind: gae}"
    return Contradiction("algorithm.value", problem, "none", remedy)


@about(VALUE, "algorithm.value.warmup_steps", "limits.steps")
def _the_policy_learns_too(section: AlgorithmSection, sizes: Sizes) -> Contradiction | None:
    value, steps = section.value, sizes.steps
    if not isinstance(value, OwnValue | ValueHead) or steps is None or value.warmup_steps < steps:
        return None
    problem = f"the run ends after {steps} steps, in which only the value model would learn"
    return Contradiction("algorithm.value.warmup_steps", problem, f"below {steps}")


# --- the ratio to the sampler belongs into the loss once ------------------------------------------


def _traced(section: AlgorithmSection) -> bool:
    return isinstance(section.credit, ValueCredit) and section.credit.corrects


def _compares(section: AlgorithmSection) -> bool:
    return section.objective.ratio == "sampler"


@about(CREDIT, TRUST)
def _the_credit_and_the_trust_weigh_once(section: AlgorithmSection, _sizes: Sizes) -> Contradiction | None:
    if not _traced(section) or not section.trust.weighs:
        return None
    return _twice(f"the credit {section.credit.kind} holds π_prox/μ", section)


@about(OBJECTIVE, TRUST)
def _the_objective_and_the_trust_weigh_once(section: AlgorithmSection, _sizes: Sizes) -> Contradiction | None:
    if not _compares(section) or not section.trust.weighs:
        return None
    return _twice(f"the objective {section.objective.kind} holds π/μ", section)


def _twice(holds: str, section: AlgorithmSection) -> Contradiction:
    problem = f"{holds} already, and {section.trust.kind} would multiply it twice"
    return Contradiction("algorithm.trust", problem, "none", "algorithm.trust: {kind: none}")


@about(CREDIT, OBJECTIVE)
def _the_credit_and_the_objective_weigh_once(section: AlgorithmSection, _sizes: Sizes) -> Contradiction | None:
    if not _traced(section) or not _compares(section):
        return None
    kinds = f"the credit {section.credit.kind} and the objective {section.objective.kind}"
    remedy = "algorithm.objective: {kind: ppo_clip}, or algorithm.credit: {kind: gae}"
    return Contradiction("algorithm.objective", f"both {kinds} hold the ratio to the sampler", remedy=remedy)


@about(OBJECTIVE, TRUST, "algorithm.trust.max_weight")
def _one_ratio_has_one_weight(section: AlgorithmSection, _sizes: Sizes) -> Contradiction | None:
    objective, trust = section.objective, section.trust
    if objective.ratio_of != "answer" or not trust.weighs or trust.weight_of != "token":
        return None
    problem = f"{trust.kind} weighs every token by itself, and {objective.kind} has one ratio for the whole answer"
    remedy = "algorithm.trust: {kind: sequence_is}, or algorithm.trust: {kind: none}"
    if objective.whole:
        problem += ": weighed apart, its tokens no longer add up to its loss, and may push the policy away"
    elif not trust.bounded:
        problem += ": without a bound, one token's weight times what another has done to the ratio may be infinite"
    level: Literal["error", "warning"] = "error" if objective.whole or not trust.bounded else "warning"
    return Contradiction("algorithm.trust", problem, remedy=remedy, level=level)


@about(OBJECTIVE, REJECT)
def _a_whole_answer_stays_whole(section: AlgorithmSection, _sizes: Sizes) -> Contradiction | None:
    objective, reject = section.objective, section.reject
    if not objective.whole or not reject.rejects or reject.rejects_of == "answer":
        return None
    problem = f"{reject.kind} leaves out tokens, and the loss {objective.kind} is of whole answers"
    remedy = "algorithm.reject: {kind: none}, or algorithm.reject: {kind: off_policy_sequence}"
    return Contradiction("algorithm.reject", problem, remedy=remedy)


@about(REJECT, TRUST, CREDIT, OBJECTIVE)
def _what_stays_is_weighed(section: AlgorithmSection, _sizes: Sizes) -> Contradiction | None:
    if not section.reject.rejects or section.trust.weighs or _traced(section) or _compares(section):
        return None
    problem = f"{section.reject.kind} leaves the worst tokens out, and nothing weighs those that stay"
    remedy = "usual is algorithm.trust: {kind: truncated_is}"
    return Contradiction("algorithm.trust", problem, remedy=remedy, level="warning")


# --- reduction ------------------------------------------------------------------------------------


@about(OBJECTIVE, "algorithm.reduction.kind")
def _the_reduction_goes_with_the_objective(section: AlgorithmSection, _sizes: Sizes) -> Contradiction | None:
    objective = section.objective
    if not objective.reductions or section.reduction.kind in objective.reductions:
        return None
    level: Literal["error", "warning"] = "error" if objective.reductions_only else "warning"
    why = objective.reductions_only or "the paper's loss counts every answer once, this one by its length"
    problem = f"does not go with the objective {objective.kind}: {why}"
    return Contradiction("algorithm.reduction.kind", problem, " or ".join(objective.reductions), level=level)


@about("algorithm.reduction.budget", "rollout.sampling.max_tokens")
def _the_budget_is_the_longest_answer(section: AlgorithmSection, sizes: Sizes) -> Contradiction | None:
    if section.reduction.budget in (None, sizes.max_tokens):
        return None
    problem = f"differs from rollout.sampling.max_tokens, which is {sizes.max_tokens}"
    remedy = "leave it out, or algorithm.reduction.budget: null"
    return Contradiction("algorithm.reduction.budget", problem, str(sizes.max_tokens), remedy, level="warning")


# --- what needs several updates per step, and what none but the first is right for ----------------


@about(OBJECTIVE, "algorithm.objective.coefficient", "algorithm.objective.controller")
def _there_is_a_penalty(section: AlgorithmSection, _sizes: Sizes) -> Contradiction | None:
    objective = section.objective
    if not isinstance(objective, loss_cells.PPOKL) or objective.coefficient > 0:
        return None
    moves = not isinstance(objective.controller, loss_cells.Fixed)
    problem = f"{'a controller multiplies it, and 0 stays 0: ' if moves else ''}there would be no penalty"
    return Contradiction("algorithm.objective.coefficient", problem, "more than 0")


@about(OBJECTIVE, *UPDATES)
def _the_objective_has_updates_to_bound(section: AlgorithmSection, sizes: Sizes) -> Contradiction | None:
    if sizes.updates > 1 or not section.objective.with_one_update:
        return None
    problem = f"with one update per step the policy is still π_prox: {section.objective.with_one_update}"
    return Contradiction("algorithm.objective", problem, remedy=SEVERAL, level="warning")


@about(TRUST, "algorithm.trust.max_weight", *UPDATES)
def _the_trust_has_updates_to_be_for(section: AlgorithmSection, sizes: Sizes) -> Contradiction | None:
    if sizes.updates > 1 or not section.trust.with_one_update():
        return None
    problem = f"with one update per step the policy is still π_prox: {section.trust.with_one_update()}"
    remedy = f"{SEVERAL}; or algorithm.trust: {{kind: truncated_is}}"
    return Contradiction("algorithm.trust", problem, remedy=remedy, level="warning")


@about(OBJECTIVE, *UPDATES)
def _later_updates_are_corrected(section: AlgorithmSection, sizes: Sizes) -> Contradiction | None:
    if sizes.updates == 1 or section.objective.ratio != "none":
        return None
    problem = (
        f"the objective {section.objective.kind} has no ratio: of the step's {sizes.updates} updates all but the first "
        "are off-policy, and nothing corrects them"
    )
    remedy = "algorithm.objective: {kind: ppo_clip}; or both learner.epochs: 1 and learner.mini_batches: 1"
    return Contradiction("algorithm.objective", problem, remedy=remedy, level="warning")


def _all_rules(namespace: dict[str, Any]) -> tuple[Rule, ...]:
    return tuple(value for value in namespace.values() if isinstance(value, Rule))


RULES = _all_rules(globals())
