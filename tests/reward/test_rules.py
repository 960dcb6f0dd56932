"""Every built-in rule against values worked out by hand."""

from __future__ import annotations

import pytest

from penstock.reward.rules import RULES, contains, exact, length, math, numeric, regex, soft_overlong


def chat(text):
    return [{"role": "assistant", "content": text}]


def test_exact_ignores_spaces_around_the_answer_and_nothing_else():
    assert exact([" 42\n", "42.", "4 2"], answer=["42", "42", "42"]) == [1.0, 0.0, 0.0]


def test_exact_accepts_any_of_several_answers_numbers_and_chat_messages():
    assert exact([chat("b"), chat("c"), chat("7")], answer=[["a", "b"], ["a", "b"], 7]) == [1.0, 0.0, 1.0]


def test_exact_can_ignore_case():
    assert exact(["Paris"], answer=["paris"]) == [0.0]
    assert exact(["Paris"], answer=["paris"], case=False) == [1.0]


def test_a_rule_can_read_another_column():
    assert exact(["x"], column="gold", answer=["y"], gold=["x"]) == [1.0]


def test_a_column_that_is_not_there_is_an_error_that_names_those_that_are():
    with pytest.raises(KeyError, match=r"no column 'answer'; it has gold"):
        exact(["x"], gold=["x"])


def test_contains_looks_inside():
    assert contains(["it is 42, sure", "it is 4"], answer=["42", "42"]) == [1.0, 0.0]
    assert contains(["it is PARIS"], answer=["paris"], case=False) == [1.0]


def test_regex_alone_asks_only_whether_it_is_found():
    assert regex(["<b>1</b>", "1"], pattern="<b>.*</b>") == [1.0, 0.0]


def test_regex_with_a_column_compares_the_first_group_of_the_last_match():
    completions = ["a=1 a=2", "a=2 a=1", "nothing"]
    assert regex(completions, pattern=r"a=(\d)", column="answer", answer=["2", "2", "2"]) == [1.0, 0.0, 0.0]


def test_regex_without_a_group_compares_the_whole_match():
    assert regex(["so 12"], pattern=r"\d+", column="answer", answer=[12]) == [1.0]


@pytest.mark.parametrize(
    ("text", "answer", "wanted"),
    [
        ("first 3, then 1,234.50", "1234.5", 1.0),
        ("it is -7", "-7", 1.0),
        ("it is 7", "-7", 0.0),
        ("about 1e3", "1000", 1.0),
        ("no number", "3", 0.0),
        ("so 42", "long reasoning 12 #### 42", 1.0),
        ("0.3333333", "0.33333333", 1.0),
        ("0.33", "0.3333", 0.0),
    ],
)
def test_numeric_compares_the_last_numbers(text, answer, wanted):
    assert numeric([text], answer=[answer]) == [wanted]


def test_numeric_cannot_judge_against_a_column_without_a_number():
    (score,) = numeric(["3"], answer=["three"])
    assert isinstance(score, ValueError)
    assert "'three'" in str(score)


@pytest.mark.parametrize(
    ("text", "answer", "wanted"),
    [
        ("The answer is $\\frac{2}{4}$", "\\frac{1}{2}", 1.0),
        ("\\boxed{0.5}", "1/2", 1.0),
        ("\\boxed{0.6}", "1/2", 0.0),
        ("I do not know", "1/2", 0.0),
        ("$x = 3$", "3", 1.0),
    ],
)
def test_math_compares_values_not_strings(text, answer, wanted):
    assert math([text], answer=[answer]) == [wanted]


def test_math_cannot_judge_against_an_unreadable_column():
    (score,) = math(["1"], answer=[""])
    assert isinstance(score, ValueError)


def test_length_follows_kimis_formula():
    # Lengths 2, 4, 6: λ = .5, 0, −.5.
    ids = [[0] * n for n in (2, 4, 6, 2, 6)]
    parts = {"exact": [1.0, 1.0, 1.0, 0.0, 0.0]}
    assert length(ids, parts, accuracy="exact") == [0.5, 0.0, -0.5, 0.0, -0.5]


def test_length_is_zero_where_all_are_equally_long():
    assert length([[1], [2]], {"exact": [1.0, 0.0]}, accuracy="exact") == [0.0, 0.0]


def test_length_abstains_where_correctness_is_unknown():
    assert length([[1], [2, 3]], {"exact": [None, 1.0]}, accuracy="exact") == [None, -0.5]


def test_length_names_the_parts_that_ran_before_it():
    with pytest.raises(KeyError, match="'exakt' is no earlier part; those are exact"):
        length([[1]], {"exact": [1.0]}, accuracy="exakt")


def test_soft_overlong_is_dapos_ramp():
    # Budget 10, cache 4: free up to 6, then −1/4 per token, −1 from 10 on.
    ids = [[0] * n for n in (1, 6, 7, 8, 10, 12)]
    assert soft_overlong(ids, max_tokens=10, cache_tokens=4) == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]


def test_soft_overlong_refuses_a_cache_larger_than_the_budget():
    with pytest.raises(ValueError, match=r"1\.\.max_tokens = 10; found 11"):
        soft_overlong([[1]], max_tokens=10, cache_tokens=11)


def test_the_table_holds_every_rule_under_its_name():
    assert sorted(RULES) == ["contains", "exact", "length", "math", "numeric", "regex", "soft_overlong"]
