"""The built-in rules, by name. Each takes all answers to one prompt and gives a number, or None, for each.

The signature is TRL's, and a user's own function has the same: `f(prompts, completions, **columns)`, every
argument a list with one entry per answer. `None` abstains. An exception object in the list says that this
answer could not be judged, and why: it is unscored, which is not the same as a reward of zero.

Runs in the rule process: nothing heavy is imported before a rule needs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

Score = float | None | Exception
Rule = Callable[..., Sequence[Score]]

RULES: dict[str, Rule] = {}
"""Every built-in rule by its name."""

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+")


def rule(function: Rule) -> Rule:
    """Put a rule into the table under its own name."""
    RULES[function.__name__] = function
    return function


def text_of(completion: str | list[dict[str, Any]]) -> str:
    """The text of an answer, also where it comes as chat messages."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message.get("content") or "") for message in completion)


def column_of(columns: dict[str, Any], name: str) -> list[Any]:
    """One column of the data. Raises KeyError that names the columns there are."""
    if name not in columns:
        raise KeyError(f"the data has no column {name!r}; it has {', '.join(columns) or 'none'}")
    values: list[Any] = columns[name]
    return values


def _allowed(answer: Any) -> list[str]:
    """The accepted answers of a row: one value, or a list of alternatives."""
    return [str(a).strip() for a in (answer if isinstance(answer, list) else [answer])]


@rule
def exact(completions: Sequence[Any], column: str = "answer", case: bool = True, **columns: Any) -> list[Score]:
    """1 where the answer, without spaces around it, equals the column (or one of its entries); else 0."""
    fold = (lambda s: s) if case else str.casefold
    return [
        float(fold(text_of(c).strip()) in [fold(a) for a in _allowed(answer)])
        for c, answer in zip(completions, column_of(columns, column), strict=True)
    ]


@rule
def contains(completions: Sequence[Any], column: str = "answer", case: bool = True, **columns: Any) -> list[Score]:
    """1 where the column (or one of its entries) occurs in the answer; else 0."""
    fold = (lambda s: s) if case else str.casefold
    return [
        float(any(fold(a) in fold(text_of(c)) for a in _allowed(answer)))
        for c, answer in zip(completions, column_of(columns, column), strict=True)
    ]


@rule
def regex(completions: Sequence[Any], pattern: str, column: str | None = None, **columns: Any) -> list[Score]:
    """1 where `pattern` is found in the answer; with `column`, where its last match equals that column.

    What is compared is the first group of the match, or all of it where the pattern has no group.
    """
    compiled = re.compile(pattern, re.DOTALL)
    found = [list(compiled.finditer(text_of(c))) for c in completions]
    if column is None:
        return [float(bool(matches)) for matches in found]
    last = [(m[-1].group(1 if compiled.groups else 0) or "").strip() if m else None for m in found]
    return [float(x in _allowed(a)) for x, a in zip(last, column_of(columns, column), strict=True)]


def _last_number(text: str) -> float | None:
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


@rule
def numeric(completions: Sequence[Any], column: str = "answer", tolerance: float = 1e-6, **columns: Any) -> list[Score]:
    """1 where the last number of the answer is the last number of the column, within a relative `tolerance`.

    A column without a number cannot be judged against, whatever the answer is.
    """
    scores: list[Score] = []
    for completion, answer in zip(completions, column_of(columns, column), strict=True):
        wanted, found = _last_number(str(answer)), _last_number(text_of(completion))
        if wanted is None:
            scores.append(ValueError(f"column {column!r} holds no number: {answer!r}"))
        else:
            near = found is not None and abs(found - wanted) <= tolerance * max(1.0, abs(wanted))
            scores.append(float(near))
    return scores


@rule
def math(completions: Sequence[Any], column: str = "answer", seconds: int = 2, **columns: Any) -> list[Score]:
    """1 where the answer is mathematically equal to the column, by math-verify; LaTeX and plain expressions.

    An answer in which nothing can be read is wrong (0). A column in which nothing can be read, and a comparison
    that takes more than `seconds`, cannot be judged. Give the rule a timeout above 3 × seconds × group size.
    """
    return [
        _math(text_of(completion), str(answer), seconds)
        for completion, answer in zip(completions, column_of(columns, column), strict=True)
    ]


def _math(completion: str, answer: str, seconds: int) -> Score:
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    # Bare LaTeX such as \frac{1}{2} is only recognised inside a math environment.
    wanted = parse(answer, parsing_timeout=seconds) or parse(f"${answer}$", parsing_timeout=seconds)
    if not wanted:
        return ValueError(f"math-verify reads nothing in the column: {answer!r}")
    try:
        found = parse(completion, parsing_timeout=seconds, raise_on_error=True)
    except TimeoutException:
        return TimeoutError(f"math-verify needed more than {seconds} s to read the answer")
    except Exception:  # noqa: BLE001  sympy may fail in any way on what a policy writes: a wrong answer
        return 0.0
    try:
        return float(verify(wanted, found, timeout_seconds=seconds, raise_on_error=True))
    except TimeoutException:
        return TimeoutError(f"math-verify needed more than {seconds} s to compare with {answer!r}")
    except Exception as error:  # noqa: BLE001  two readable expressions that sympy cannot compare
        return error


@rule
def length(completion_ids: Sequence[Sequence[int]], parts: dict[str, list[float | None]], accuracy: str) -> list[Score]:
    """Kimi k1.5's length reward (2501.12599): λ = .5 − (len − min)/(max − min) within the group, in tokens.

    Correct answers get λ, wrong ones min(0, λ), all get 0 when all are equally long. `accuracy` names an earlier
    part; where that part has no value, this one abstains.
    """
    if accuracy not in parts:
        raise KeyError(f"length: accuracy {accuracy!r} is no earlier part; those are {', '.join(parts) or 'none'}")
    lengths = [len(ids) for ids in completion_ids]
    low, high = min(lengths), max(lengths)
    scores: list[Score] = []
    for size, correct in zip(lengths, parts[accuracy], strict=True):
        value = 0.5 - (size - low) / (high - low) if high > low else 0.0
        scores.append(None if correct is None else value if correct >= 1 else min(0.0, value))
    return scores


@rule
def soft_overlong(completion_ids: Sequence[Sequence[int]], max_tokens: int, cache_tokens: int) -> list[Score]:
    """DAPO's soft overlong punishment (2503.14476, eq. 13): 0 up to max − cache tokens, then linear to −1 at max."""
    if not 0 < cache_tokens <= max_tokens:
        raise ValueError(f"cache_tokens must lie in 1..max_tokens = {max_tokens}; found {cache_tokens}")
    free = max_tokens - cache_tokens
    return [max(-1.0, min(0.0, (free - len(ids)) / cache_tokens)) for ids in completion_ids]
