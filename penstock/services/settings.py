"""The base of every section of a run file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticKnownError
from pydantic_core.core_schema import no_info_before_validator_function


class Section(BaseModel):
    """A closed, frozen set of keys: unknown keys are errors, and docstrings of fields become the schema's help."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )
    left_out: ClassVar[Mapping[str, str]] = {}
    """Keys that people look for here and that are not there on purpose, each with the reason."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Numbers refuse `true` and `false`, which Python takes for 1 and 0: who writes them meant another key."""
        made = handler(source)
        fields = handler.resolve_ref_schema(made)
        while fields["type"] != "model-fields":  # below the model itself and the validators of the whole section
            fields = fields["schema"]
        for field in fields["fields"].values():
            field["schema"] = _without_booleans(field["schema"])
        return made


def on_resume(default: Any = ..., **rules: Any) -> Any:
    """A field whose value may change when a run is resumed. All others must stay as they were."""
    return Field(default, json_schema_extra={"changeable_on_resume": True}, **rules)


class WrongValue(ValueError):
    """What a rule of a whole section finds wrong with one of its keys."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(problem)
        self.key = key


FORMS: dict[str, str] = {}
"""What the patterns of text fields mean, in words."""


def form(pattern: str, words: str) -> str:
    """`pattern` for `Field(pattern=…)`, with the words in which people are told what is allowed."""
    FORMS[pattern] = words
    return pattern


VARIABLE = form(
    r"^[A-Za-z_][A-Za-z0-9_]*$", "the name of an environment variable: letters, digits and '_', no digit in front"
)


_ERRORS: Mapping[str, Literal["int_type", "float_type"]] = {"int": "int_type", "float": "float_type"}


def _without_booleans(schema: Any) -> Any:
    """A field's schema with a question before every number in it, also those in lists and mappings."""
    if isinstance(schema, list):
        return [_without_booleans(each) for each in schema]
    if not isinstance(schema, dict) or schema.get("type") == "model":  # which has asked for itself
        return schema
    if schema.get("type") in _ERRORS:
        return no_info_before_validator_function(_refusing(_ERRORS[schema["type"]]), schema)
    return {key: each if key == "default" else _without_booleans(each) for key, each in schema.items()}


def _refusing(error: Literal["int_type", "float_type"]) -> Callable[[Any], Any]:
    def no_boolean(value: Any) -> Any:
        if isinstance(value, bool):
            raise PydanticKnownError(error)
        return value

    return no_boolean
