"""The base of every section of a run file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A closed, frozen set of keys: unknown keys are errors, and docstrings of fields become the schema's help."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )
    left_out: ClassVar[Mapping[str, str]] = {}
    """Keys that people look for here and that are not there on purpose, each with the reason."""


def on_resume(default: Any = ..., **rules: Any) -> Any:
    """A field whose value may change when a run is resumed. All others must stay as they were."""
    return Field(default, json_schema_extra={"changeable_on_resume": True}, **rules)
