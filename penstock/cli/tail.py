"""The events of a run as lines, those that are there and those that come."""

from __future__ import annotations

import difflib
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from penstock.services.contracts import PenstockError
from penstock.services.dashboard.tail import Tail
from penstock.services.rundir import RunDir, RunDirError, RunEvent

if TYPE_CHECKING:
    from rich.text import Text

Note = Callable[[str], None]
"""Is told what is not an event."""
LINES = 20
"""Of the past, unless it is said from when on."""
LOOK = 0.25
"""Seconds between looks at a file that does not grow."""
_ENDED_LOOKS = 4
"""Looks in a row without a driver after which nothing more is waited for: a resume takes the lock at once."""
_STYLES = {
    "red": ("died", "failed", "damaged"),
    "yellow": ("warning", "skipped", "refused", "stopped", "restarted", "rolled_back"),
    "green": ("finished", "joined", "checkpoint", "published", "store_back"),
    "cyan": ("steered", "guard", "reopened", "joining", "leaving", "left", "autoscaling", "max_lag"),
}
_STYLE_OF = {kind: style for style, kinds in _STYLES.items() for kind in kinds}
_KIND_WIDTH = 11
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MOST_IN_FACT = 60
"""Characters of a fact that still fits in a line."""


class TailError(PenstockError):
    """What was asked of `penstock tail` does not mean anything."""


@dataclass(frozen=True)
class Wanted:
    """Which events are shown."""

    kinds: frozenset[str] = frozenset()
    """All of them where this is empty."""
    since: float | None = None
    """Unix seconds."""
    lines: int | None = None
    """Only so many of those that are there already; None takes LINES, or all since a moment."""

    def takes(self, event: RunEvent) -> bool:
        """Whether an event is shown."""
        return (not self.kinds or event.kind in self.kinds) and (self.since is None or event.at >= self.since)

    @property
    def most(self) -> int | None:
        """Of the past; None for all."""
        return LINES if self.lines is None and self.since is None else self.lines


def moment(text: str, now: float) -> float:
    """Unix seconds of `10m` (ago; also s, h, d), `14:03` (today), `2026-11-26 14:03`. Raises TailError."""
    if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip()):
        return now - float(ago[1]) * _UNITS[ago[2]]
    today = datetime.fromtimestamp(now).astimezone()
    try:
        if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", text.strip()):
            hour, minute, *second = (int(part) for part in text.strip().split(":"))
            at = today.replace(hour=hour, minute=minute, second=second[0] if second else 0, microsecond=0)
            return (at if at <= today else at - timedelta(days=1)).timestamp()
        return datetime.fromisoformat(text.strip()).astimezone().timestamp()
    except ValueError:
        raise TailError(
            f"--since {text!r} is no moment; allowed: how long ago, as 90s, 10m, 2h or 1d; a time of the last day, as "
            "14:03; a date with or without a time, as 2026-11-26T14:03"
        ) from None


def past(log: Tail, wanted: Wanted, note: Note) -> tuple[list[tuple[RunEvent, bytes]], set[str]]:
    """What is shown of the events that are there, with their lines; and all kinds that are there."""
    shown: deque[tuple[RunEvent, bytes]] = deque(maxlen=wanted.most)
    kinds: set[str] = set()
    while lines := log.read():
        for event, line in _events(lines, note):
            kinds.add(event.kind)
            if wanted.takes(event):
                shown.append((event, line))
    return list(shown), kinds


def coming(log: Tail, wanted: Wanted, over: Callable[[], bool], note: Note) -> Iterator[tuple[RunEvent, bytes]]:
    """What is shown of the events that come, until the run is over and all have been read."""
    without = 0
    while without < _ENDED_LOOKS:
        without = without + 1 if over() else 0
        while lines := log.read():
            yield from ((event, line) for event, line in _events(lines, note) if wanted.takes(event))
        time.sleep(LOOK)


def _events(lines: Iterable[bytes], note: Note) -> Iterator[tuple[RunEvent, bytes]]:
    """What else the file says is worth more than an error at a line that a power cut has damaged."""
    for line in lines:
        try:
            event = RunEvent.of_line(line)
        except RunDirError as error:
            note(f"passed over: {error}")
            continue
        yield event, line


def unknown_kinds(wanted: Collection[str], there: Collection[str]) -> str:
    """What is wrong with the kinds that were asked for; empty when nothing is."""
    unknown = sorted(set(wanted) - set(there))
    if not unknown:
        return ""
    near = difflib.get_close_matches(unknown[0], there, n=1)
    hint = f"; nearest: {near[0]}" if near else ""
    kinds = ", ".join(sorted(there)) or "none"
    return f"no event of the kind {', '.join(unknown)} so far; there are: {kinds}{hint}"


def line_of(event: RunEvent) -> Text:
    """One event on one line: when, what, the message's first line, and short facts that it does not say."""
    from rich.text import Text

    first, *rest = event.message.splitlines() or [""]
    facts = [f"{name}={text}" for name, value in event.facts.items() if (text := _short(value)) and text not in first]
    more = [f"{len(rest)} more lines: --json"] if rest else []
    behind = f"  ({', '.join([*facts, *more])})" if facts or more else ""
    line = Text(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at)), style="dim")
    line.append(f"  {event.kind:<{_KIND_WIDTH}} ", style=f"not dim {_STYLE_OF.get(event.kind, '')}".strip())
    line.append(first, style="not dim")
    line.append(behind)
    return line


def _short(value: Any) -> str:
    """A fact that is one word or number; nothing for any other."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value) if isinstance(value, (str, int)) else ""
    return text if len(text) <= _MOST_IN_FACT and "\n" not in text else ""


def tail(
    directory: RunDir,
    wanted: Wanted,
    follow: bool,
    show: Callable[[RunEvent, bytes], None],
    note: Note,
) -> None:
    """Show events, and with `follow` those that come, until the run is over. `note` is told what is not an event.

    Raises TailError for a kind that there is none of, unless it may come yet.
    """
    log = Tail(directory.events)
    found, kinds = past(log, wanted, note)
    if problem := unknown_kinds(wanted.kinds, kinds):
        if not follow:
            raise TailError(problem)
        note(problem)
    for event, line in found:
        show(event, line)
    if follow:
        for event, line in coming(log, wanted, lambda: not directory.locked, note):
            show(event, line)
