"""docs/bad-input.md: what the page says of rewards and stores that fail is what real ones say."""

from __future__ import annotations

from pathlib import Path

import bad_while_running as running
from bad_input import part


def test_what_the_page_says_of_reward_functions_is_what_is_said(tmp_path: Path) -> None:
    assert running.rewards(tmp_path) == rows("rules")


def test_what_the_page_says_of_the_store_is_what_is_said(tmp_path: Path) -> None:
    assert running.stores(tmp_path) == rows("store")


def rows(of: str) -> list[str]:
    return [line for line in part(of) if line.startswith("| ") and "``" in line]
