"""The commands that steer a running run, as the command line gets them: words in, one line out."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from penstock.services.control import Refused, ScalableRole, Scale
from penstock.services.mailbox import MailboxControl, whoami
from penstock.services.rundir import RunDir

ROLES: tuple[str, ...] = get_args(ScalableRole)


def _scale_of(word: str) -> Scale:
    """`rollout=4` and its like. Raises Refused for a word that is none."""
    role, equals, number = word.partition("=")
    if role not in ROLES:
        near = difflib.get_close_matches(role, ROLES, n=1, cutoff=0.4)
        hint = f"; nearest: {near[0]}" if near else ""
        raise Refused(f"{word!r} names no role that can be scaled; allowed: {', '.join(ROLES)}{hint}")
    if not equals or not (number.isascii() and number.isdecimal()):
        raise Refused(f"{word!r} does not say how many; allowed: {role}= and a whole number from 0 on, as {role}=4")
    return Scale(cast(ScalableRole, role), int(number))


def scale(words: Sequence[str], run: Path | None, runs_dir: Path) -> list[str]:
    """What the run answered to each. Raises RunDirError, Refused and NoAnswer."""
    wanted = [_scale_of(word) for word in words]  # all of them, before anything is changed
    directory = RunDir.open(run) if run is not None else RunDir.newest(runs_dir)
    control, who = MailboxControl(directory), f"scale by {whoami()}"
    return [control.send(command, who) for command in wanted]
