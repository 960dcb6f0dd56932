"""Actors that live and do not move any more: they are ended, with what they stood in."""

from __future__ import annotations

from collections.abc import Iterable

from penstock.deploy.deaths import tail_of
from penstock.deploy.fleet import Member
from penstock.deploy.stacks import where_they_stand


def end_the_silent(members: Iterable[Member], limit: float) -> list[Member]:
    """End those whose loops have given no sign of life for `limit` seconds (`deadlines.silence`); returns them, each
    with its cause. Waits for nothing but the last words of those."""
    silent = [member for member in members if member.state == "running" and member.silent > limit]
    tails = {member.name: tail_of(member.log) for member in silent}  # before the stacks are written into them
    stand = where_they_stand({member.name: member.handle for member in silent})
    for member in silent:
        where = stand.get(member.name)
        how = f"its process answers, {where}" if where else "its process has not answered"
        what = f"silent for {member.silent:.0f} s while {member.stats.get('doing', 'scoring')}"
        member.cause = (
            f"{member.name} has been {what} (deadlines.silence is {limit:g} s): {how}; it was ended{tails[member.name]}"
        )
        member.end_silent(answers=bool(where))
    return silent
