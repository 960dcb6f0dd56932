"""The page of deadlines names every wait that the run file bounds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_origin

import pytest
from pydantic import BaseModel

from penstock.deploy.runfile import RunFile

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "deadlines.md").read_text()
ROWS = {
    key: default
    for keys, default in re.findall(r"^\| (`.+?`) \| (\S+) \|", PAGE, re.MULTILINE)
    for key in re.findall(r"`(.+?)`", keys)
}
A_WAIT = re.compile(r"(^|\.)deadlines\.\w+$|deadline$|timeout$|^rollout\.lease_seconds$")


def waits(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, float]]:
    for name, field in model.model_fields.items():
        key = f"{above}{name}"
        if A_WAIT.search(key) and not isinstance(field.annotation, type(BaseModel)):
            yield key, field.default
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from waits(inner, f"{key}.NAME." if get_origin(field.annotation) is dict else f"{key}.")


def test_every_deadline_of_the_run_file_has_a_row_with_its_default():
    found = dict(waits(RunFile))
    assert len(found) > 12
    assert {key: float(default) for key, default in ROWS.items()} == pytest.approx(found)
