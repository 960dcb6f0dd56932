"""The learner's sections: what a row fills in, what may be overridden, what is refused and how."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from penstock.learner.algorithms import table
from penstock.learner.algorithms.bound import bind
from penstock.learner.algorithms.cells import GroupMean
from penstock.learner.algorithms.loss_cells import PPOClip, Uncorrected
from penstock.learner.config import AlgorithmSection, LearnerSection, ScheduleSection, SftSection, TrainingSection
from penstock.learner.schedule import learning_rate


def section(**cells):
    return AlgorithmSection.model_validate(cells)


def test_without_a_word_the_algorithm_is_the_row_grpo():
    row = table.find("grpo")
    found = AlgorithmSection()
    assert (found.baseline, found.objective, found.trust, found.reduction) == (
        row.baseline,
        row.objective,
        row.trust,
        row.reduction,
    )


def test_one_key_of_a_cell_may_be_overridden_and_the_others_stay():
    found = section(name="grpo", objective={"clip_high": 0.28})
    assert found.objective == PPOClip(clip_low=0.2, clip_high=0.28)


def test_another_kind_replaces_the_whole_cell():
    found = section(trust={"kind": "none"}, baseline={"kind": "group_mean"})
    assert found.trust == Uncorrected()
    assert found.baseline == GroupMean()


def test_a_resolved_section_reads_back_as_itself():
    found = section(objective={"clip_high": 0.28}, kl={"coefficient": 0.01}, trust={"kind": "none"})
    assert AlgorithmSection.model_validate(found.model_dump()) == found


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        ({"name": "grp"}, r"no algorithm is called 'grp'; did you mean 'grpo'\?"),
        ({"objective": {"clip_hihg": 0.3}}, "clip_hihg"),
        ({"objective": {"kind": "ppo"}}, "ppo_clip"),
        ({"objective": {"clip_low": 1.5}}, "less than or equal to 1"),
        ({"trust": {"max_weight": 0.5}}, "greater than or equal to 1"),
        ({"kl": {"coefficient": 0.1, "estimator": "k1"}}, "expected gradient of zero"),
        ({"kl": {"coefficient": 0.1, "placement": "reward"}}, "the reward takes the estimator k1"),
        ({"reduction": {"kind": "token_mean", "budget": 8}}, "budget belongs to kind: fixed_length"),
        ({"quorum": 0}, "greater than or equal to 1"),
    ],
)
def test_a_cell_that_cannot_be_is_refused(cells, text):
    with pytest.raises(ValidationError, match=text):
        AlgorithmSection.model_validate(cells)


def test_a_row_of_ones_own_is_found_by_its_import_path():
    assert table.find("penstock.learner.algorithms.group_rows:GRPO").name == "grpo"
    with pytest.raises(ValueError, match="is no Algorithm"):
        table.find("penstock.learner.algorithms.table:find")


def test_the_reference_is_needed_exactly_when_the_penalty_counts():
    assert not section().needs_reference
    assert section(kl={"coefficient": 0.1}).needs_reference
    assert bind(section()).penalty is None
    assert bind(section(kl={"coefficient": 0.1})).kl_coefficient == 0.1
    in_reward = bind(section(kl={"coefficient": 0.1, "placement": "reward", "estimator": "k1"}))
    assert (in_reward.penalty, in_reward.reward_kl) == (None, 0.1)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"groups_per_step": 4, "mini_batches": 5}, "cannot exceed groups_per_step"),
        ({"dtype": "bfloat16", "zero_stage": 0}, "use zero_stage 1"),
        ({"betas": (0.9, 1.0)}, r"betas lie in \[0, 1\)"),
        ({"schedule": {"kind": "cosine"}}, "needs schedule.decay_updates"),
        ({"zero_stage": 4}, "0, 1, 2 or 3"),
        ({"compile": True, "zero_stage": 3}, "use zero_stage 2"),
    ],
)
def test_a_learner_that_cannot_be_is_refused(values, text):
    with pytest.raises(ValidationError, match=text):
        LearnerSection.model_validate(values)


def test_every_field_of_every_section_is_explained():
    for kind in (LearnerSection, SftSection, TrainingSection, ScheduleSection, AlgorithmSection):
        assert all(field.description for field in kind.model_fields.values()), kind


def test_the_sections_load_nothing_heavy():
    code = "import sys; import penstock.learner.config; print([m for m in ('torch', 'deepspeed') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Warm-up over 2 updates, then a fall over 4 from 1 to 0.2.
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2]),
        ("cosine", [0.5, 1.0, 1.0, 0.2 + 0.8 * (1 + 2**-0.5) / 2, 0.6, 0.2 + 0.8 * (1 - 2**-0.5) / 2, 0.2, 0.2]),
    ],
)
def test_the_learning_rate_warms_up_falls_and_stays(kind, expected):
    schedule = ScheduleSection(kind=kind, warmup_updates=2, decay_updates=4, min_ratio=0.2)
    assert [learning_rate(1.0, schedule, i) for i in range(8)] == pytest.approx(expected)
