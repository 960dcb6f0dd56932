"""The commands that steer a running run, as the command line gets them: words in, one line out."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast, get_args

from penstock.services.control import (
    Command,
    Gate,
    Refused,
    ScalableRole,
    Scale,
    SetCoefficient,
    SetMaxLag,
)

ROLES: tuple[str, ...] = get_args(ScalableRole)
_MAX_LAG = ("max_lag", "staleness.max_lag")
"""A coefficient for people, and a command of its own, since the ledger keeps it too."""


def send(verb: str, commands: Sequence[Command], run: str | None, runs_dir: Path, address: str | None) -> Iterator[str]:
    """What the run answered to each, as it answers: one that is refused ends it, and those before it are done. `verb`:
    what was typed, for the run's events.

    Raises RunDirError and ClusterAway where there is no such run, Refused, and NoAnswer.
    """
    from penstock.deploy.reach import reach
    from penstock.services.mailbox import whoami

    with reach(run, runs_dir, address) as found:
        for command in commands:
            yield found.control.send(command, f"{verb} by {whoami()}")


def scales(words: Sequence[str]) -> list[Command]:
    """Of `rollout=4` and its like. Raises Refused for a word that is none, before anything is changed."""
    return [_scale_of(word) for word in words]


def settings(words: Sequence[str]) -> list[Command]:
    """Of `kl.coef=0.01` and its like; which coefficients there are, the run knows. Raises Refused."""
    return [_setting_of(word) for word in words]


def gate(state: str) -> Command:
    """Of `open` or `closed`. Raises Refused."""
    ways = {"open": True, "close": False, "closed": False}
    if state not in ways:
        raise Refused(f"a gate can be opened and closed; found {state!r}, allowed: open, close")
    return Gate(ways[state])


def _scale_of(word: str) -> Scale:
    role, equals, number = word.partition("=")
    if role not in ROLES:
        raise Refused(f"{word!r} names no role that can be scaled; allowed: {', '.join(ROLES)}{_nearest(role, ROLES)}")
    if not equals or not (number.isascii() and number.isdecimal()):
        raise Refused(f"{word!r} does not say how many; allowed: {role}= and a whole number from 0 on, as {role}=4")
    return Scale(cast(ScalableRole, role), int(number))


def _setting_of(word: str) -> SetCoefficient | SetMaxLag:
    name, equals, number = word.partition("=")
    try:
        value = float(number)
    except ValueError:
        equals = ""
    if not equals or not name or not math.isfinite(value):
        raise Refused(
            f"{word!r} does not set anything; allowed: the name of a coefficient and a number, as kl.coef=0.01"
        )
    if name not in _MAX_LAG:
        return SetCoefficient(name, value)
    if not (number.isascii() and number.isdecimal()):
        raise Refused(f"{word!r}: a bound on the lag is a whole number from 0 on, as max_lag=4")
    return SetMaxLag(int(number))


def _nearest(word: str, words: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.4)
    return f"; nearest: {near[0]}" if near else ""
