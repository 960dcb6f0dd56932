"""The table of algorithms: every row resolves, binds, contradicts nothing, and reads back as itself."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from penstock.learner.algorithms import table
from penstock.learner.algorithms.bound import KL_COEFFICIENT, OBJECTIVE_COEFFICIENT, bind
from penstock.learner.algorithms.composition import compose
from penstock.learner.algorithms.contradictions import contradictions
from penstock.learner.algorithms.judging import Sizes
from penstock.learner.algorithms.loss_cells import PPOClip, Uncorrected
from penstock.learner.config import AlgorithmSection

NAMES = [
    "ppo",
    "ppo_kl",
    "a2c",
    "reinforce",
    "reinforce_pp",
    "rloo",
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "cispo",
    "kimi",
    "decoupled_ppo",
]


def section(name: str, **cells: object) -> AlgorithmSection:
    return AlgorithmSection.model_validate({"name": name, **cells})


def test_the_table_has_the_rows_of_the_field_in_order():
    assert list(table.rows()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_row_says_what_it_is_where_it_comes_from_and_what_goes_wrong(name):
    row = table.find(name)
    assert row.name == name
    assert row.summary and row.equation and row.traps
    assert "arXiv" in row.paper
    assert all(trap.endswith(".") for trap in row.traps)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_resolves_to_its_own_cells_and_reads_back_as_itself(name):
    found = section(name)
    assert {key: getattr(found, key) for key in table.find(name).cells()} == table.find(name).cells()
    assert AlgorithmSection.model_validate(found.model_dump(mode="json")) == found
    assert AlgorithmSection.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("name", NAMES)
def test_a_row_contradicts_nothing_in_a_sensible_run(name):
    found = section(name)
    updates = 1 if found.objective.ratio == "none" else 4
    sizes = Sizes(group_size=8, groups_per_step=4, updates=updates, max_tokens=64, steps=50)
    assert list(contradictions(found, sizes)) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_row_binds_and_gives_a_finite_loss_with_a_gradient(name):
    algorithm = bind(section(name).for_answers_of(5))
    counts, groups = torch.tensor([3, 5]), torch.tensor([0, 0])
    weights = algorithm.reduction(counts, groups)
    mask = torch.arange(5)[None] < counts[:, None]
    logp = torch.full((2, 5), -0.7, dtype=torch.float64).requires_grad_()
    advantages = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, 5)
    prox = torch.full((2, 5), -0.8, dtype=torch.float64)
    sampler = torch.full((2, 5), -0.9, dtype=torch.float64)
    made = compose(algorithm, logp, prox, sampler, None, advantages, mask, weights, torch.ones(2, 5).double())
    made.loss.backward()
    assert math.isfinite(made.loss.item())
    assert logp.grad is not None
    assert torch.all(logp.grad[~mask] == 0)
    assert logp.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_values_belong_exactly_to_the_rows_whose_credit_needs_them(name):
    algorithm = bind(section(name).for_answers_of(5))
    assert (algorithm.value is None) == (algorithm.credit is not None)
    assert (algorithm.value is not None) == (name in ("ppo", "ppo_kl", "a2c"))


def test_papers_defaults_that_are_easily_mistaken():
    assert (table.find("dapo").objective.clip_low, table.find("dapo").objective.clip_high) == (0.2, 0.28)
    assert (table.find("gspo").objective.clip_low, table.find("gspo").objective.clip_high) == (3e-4, 4e-4)
    assert table.find("cispo").objective.max_weight == 5
    assert (table.find("ppo").credit.lam, table.find("ppo").credit.gamma) == (0.95, 1.0)
    assert [name for name in NAMES if table.find(name).group_filter == "signal"] == ["grpo", "dapo", "cispo"]


def test_one_key_of_a_rows_cell_may_be_overridden():
    found = section("dapo", objective={"clip_high": 0.3})
    assert found.objective == PPOClip(clip_low=0.2, clip_high=0.3)
    assert found.reduction.kind == "group_token_mean"


def test_a_whole_cell_may_be_replaced():
    found = section("ppo", trust={"kind": "none"}, credit={"kind": "vtrace", "max_c": 0.5})
    assert found.trust == Uncorrected()
    assert (found.credit.kind, found.credit.max_rho, found.credit.max_c) == ("vtrace", 1.0, 0.5)


def test_coefficients_that_adapt_begin_where_the_row_says_and_follow_their_own_kl():
    in_objective = bind(section("ppo_kl")).adaptive
    assert list(in_objective) == [OBJECTIVE_COEFFICIENT]
    assert (in_objective[OBJECTIVE_COEFFICIENT].start, in_objective[OBJECTIVE_COEFFICIENT].metric) == (1.0, "kl/step")
    to_reference = bind(
        section("grpo", kl={"coefficient": 0.04, "controller": {"kind": "proportional", "target": 0.1}})
    ).adaptive
    assert list(to_reference) == [KL_COEFFICIENT]
    assert to_reference[KL_COEFFICIENT].metric == "kl/reference"
    # 0.04 · (1 + 0.1 · clip(0.11/0.1 − 1, ±0.2)) = 0.04 · 1.01
    assert to_reference[KL_COEFFICIENT].move(0.04, 0.11) == pytest.approx(0.0404)


def test_the_budget_of_a_fixed_length_is_the_longest_answer_unless_it_is_given():
    assert section("dr_grpo").reduction.budget is None
    assert section("dr_grpo").for_answers_of(64).reduction.budget == 64
    assert section("dr_grpo", reduction={"budget": 32}).for_answers_of(64).reduction.budget == 32
    assert section("grpo").for_answers_of(64) == section("grpo")
    # Two answers of 2 and 4 tokens: every token weighs 1 / (2 · 64).
    weights = bind(section("dr_grpo").for_answers_of(64)).reduction(torch.tensor([2, 4]), torch.tensor([0, 0]))
    assert weights.tolist() == [1 / 128, 1 / 128]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("grop", "did you mean 'grpo'"),
        ("grpo:", "MODULE:ROW"),
        ("no_such_module:ROW", "no module 'no_such_module'"),
        ("penstock.learner.algorithms.table:find", "is no Algorithm but function"),
        ("penstock.learner.algorithms.group_rows:DAP", "did you mean 'DAPO'"),
    ],
)
def test_a_row_that_is_not_there_is_refused_with_the_nearest(name, text):
    with pytest.raises(table.RowError, match=text):
        table.find(name)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for modules of one's own; what is imported from it is forgotten again."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).parent == tmp_path:
            del sys.modules[name]


def test_a_module_that_raises_is_reported_with_what_it_raised(folder):
    (folder / "broken_rows.py").write_text("raise RuntimeError('not today')\n")
    with pytest.raises(table.RowError, match="'broken_rows' cannot be imported: RuntimeError: not today"):
        table.find("broken_rows:ROW", folder)


def test_a_module_whose_own_import_is_missing_is_not_said_to_be_missing_itself(folder):
    (folder / "needy_rows.py").write_text("import no_such_library\n")
    with pytest.raises(
        table.RowError, match="cannot be imported: ModuleNotFoundError: No module named 'no_such_library'"
    ):
        table.find("needy_rows:ROW", folder)


def test_a_misspelt_module_beside_the_run_file_is_named(folder):
    (folder / "careful_rows.py").write_text("")
    with pytest.raises(table.RowError, match="did you mean 'careful_rows'"):
        table.find("carefull_rows:ROW", folder)


def test_a_file_that_is_hidden_by_a_module_in_use_is_an_error_and_not_silently_another(folder):
    (folder / "tiny.py").write_text("")  # the tests have a module of this name
    import tiny  # noqa: F401

    with pytest.raises(table.RowError, match="there are two modules 'tiny'"):
        table.find("tiny:ROW", folder)
