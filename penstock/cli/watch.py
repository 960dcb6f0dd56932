"""`penstock status --watch`: the facts of `penstock status`, again and again until the run is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from penstock.cli.display import PlainLines, panel
from penstock.deploy.status import Status, as_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_MOST_PEAKS = 8
"""Processes whose memory is named."""
_OVER_LOOKS = 2
"""Looks in a row that find no driver after which the run is over."""


class Screen(Protocol):
    """Where the facts go."""

    def show(self, facts: Status) -> None:
        """One look."""
        ...

    def close(self) -> None:
        """No more are coming."""
        ...


def head(facts: Status) -> Text:
    """The run's folder and what is to be said of it in a word."""
    from rich.text import Text

    bad = facts.verdict.startswith("died") or "silent" in facts.verdict
    return Text.assemble(str(facts.place), "\n", (facts.verdict, "red" if bad else ""), _memory(facts))


def _memory(facts: Status) -> str:
    """What a run that has ended took at most, the largest first."""
    peaks: dict[str, int] = (facts.summary or {}).get("peak_memory_bytes", {})
    if not peaks:
        return ""
    each = sorted(peaks.items(), key=lambda peak: -peak[1])
    largest = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in each[:_MOST_PEAKS])
    rest = f" and {len(each) - _MOST_PEAKS} more" if len(each) > _MOST_PEAKS else ""
    return f"\npeak memory, GB: {sum(peaks.values()) / 1e9:.1f} in all: {largest}{rest}"


class Redrawn:
    """In place, on a terminal."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._live.start()

    def show(self, facts: Status) -> None:
        """Over the last one."""
        from rich.console import Group

        body = [panel(facts.view)] if facts.view is not None else []
        self._live.update(Group(head(facts), *body), refresh=True)

    def close(self) -> None:
        """The last one stays on the screen."""
        self._live.stop()


class Lines:
    """Where output goes to a file or a pipe: a line when there is a new step, phase, trouble or verdict."""

    def __init__(self) -> None:
        self._plain = PlainLines()
        self._verdict = ""

    def show(self, facts: Status) -> None:
        """What is new."""
        phase = facts.view.phase if facts.view is not None else ""
        if facts.verdict not in (self._verdict, phase) and not facts.verdict.startswith(f"{phase}:"):
            print(f"[penstock] {facts.verdict}", flush=True)  # noqa: T201  (this is what the class is for)
        self._verdict = facts.verdict
        if facts.view is not None:
            self._plain.update(facts.view)

    def close(self) -> None:
        """Nothing to take down."""


class JsonLines:
    """One object per look, for scripts."""

    def show(self, facts: Status) -> None:
        """All facts."""
        import msgspec

        print(msgspec.json.encode(as_json(facts)).decode(), flush=True)  # noqa: T201  (this is what the class is for)

    def close(self) -> None:
        """Nothing to take down."""


def make_screen(console: Console, json: bool) -> Screen:
    """The one that fits where the output goes."""
    if json:
        return JsonLines()
    return Redrawn(console) if console.is_terminal and not console.is_dumb_terminal else Lines()


def watch(look: Callable[[], Status], every: float, screen: Screen) -> None:
    """Show what `look` finds every so many seconds, until the run is over."""
    without = 0
    try:
        while without < _OVER_LOOKS:
            facts = look()
            screen.show(facts)
            without = 0 if facts.alive else without + 1
            if without < _OVER_LOOKS:
                time.sleep(every)
    finally:
        screen.close()
