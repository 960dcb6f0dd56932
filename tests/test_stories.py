"""The page of the fifteen stories names tests that there are, and every story has one."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_story_is_told_by_tests_that_there_are():
    page = (ROOT / "docs" / "stories.md").read_text()
    rows = re.findall(r"^\| (\d+) \| .+? \| (.+) \|$", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 16))
    there = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        there |= set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    for number, told_by in rows:
        named = re.findall(r"`(test_\w+)`", told_by)
        assert named and set(named) <= there, f"story {number}: {set(named) - there}"
