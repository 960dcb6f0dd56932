"""docs/bad-input.md: what the page says of rewards and stores that fail is what real ones say."""

from __future__ import annotations

from pathlib import Path

import bad_while_running as running
import pytest
from bad_input import part


def test_what_the_page_says_of_reward_functions_is_what_is_said(tmp_path: Path) -> None:
    assert running.rewards(tmp_path) == [line for line in part("rules") if line.startswith("| it")]


def test_what_the_page_says_of_the_store_is_what_is_said(tmp_path: Path) -> None:
    try:
        with running.small_disk(tmp_path / "may"):
            pass
    except OSError as error:
        pytest.skip(str(error))
    assert running.stores(tmp_path) == [line for line in part("store") if line.startswith("| it")]
