"""The section `algorithm` of a run file: a row of the table, and where the run departs from it. Loads no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ErrorType

from penstock.learner.algorithms import table
from penstock.learner.algorithms.cells import (
    Baseline,
    BaselineCell,
    Cell,
    Credit,
    CreditCell,
    OwnValue,
    Value,
    Whitening,
)
from penstock.learner.algorithms.loss_cells import (
    KL,
    Objective,
    ObjectiveCell,
    Reduction,
    Reject,
    Rejection,
    Trust,
    TrustCell,
)
from penstock.services.model_config import locate
from penstock.services.settings import Section, on_resume

_GRPO = table.find("grpo")
OPEN = {
    "baseline": BaselineCell,
    "credit": CreditCell,
    "objective": ObjectiveCell,
    "trust": TrustCell,
    "reject": Rejection,
}
"""Cells that may be of the user's own, and what those derive from."""
_KINDS = {*OPEN, "value"}
"""Cells that come in kinds."""


def _own_too(default: Any) -> Any:
    """A field whose keys are not all known here, because the row may hold a cell of the user's own."""
    return Field(default, json_schema_extra={"own_too": True})


class AlgorithmSection(Section):
    """A row of the algorithm table, and the cells in which the run departs from it.

    What is left out comes from the row. In a cell, naming another `kind` replaces the cell; otherwise the keys
    given replace the row's own.
    """

    name: str = _GRPO.name
    """A row of the table (`penstock algorithms` shows them), or `module:ROW` for one of your own."""
    folder: str = on_resume(".")
    """Where `module` is looked for besides what is installed; by default the folder of the run file."""
    baseline: Baseline = _own_too(_GRPO.baseline)
    """What an answer's reward is compared with."""
    whitening: Whitening = _GRPO.whitening
    """Whether advantages are brought to mean 0 and deviation 1 over the batch."""
    credit: Credit = _own_too(_GRPO.credit)
    """Which part of an answer's reward each of its tokens answers for."""
    objective: Objective = _own_too(_GRPO.objective)
    """Loss of a token."""
    trust: Trust = _own_too(_GRPO.trust)
    """Correction for tokens that another policy sampled."""
    reject: Reject = _own_too(_GRPO.reject)
    """Tokens and answers that are left out because the sampler was too far from the policy."""
    kl: KL = _GRPO.kl
    """Penalty for leaving the reference policy."""
    value: Value = _GRPO.value
    """The value model, for credit that needs one."""
    reduction: Reduction = _GRPO.reduction
    """How losses of tokens become one number."""
    group_filter: Literal["signal", "all"] = _GRPO.group_filter
    """`signal`: groups whose rewards are all equal are replaced by others; `all`: they stay in the batch."""
    quorum: int = Field(_GRPO.quorum, ge=1)
    """Fewest scored members with which a group is still of use; a baseline of the group needs two."""
    entropy_coefficient: float = on_resume(_GRPO.entropy_coefficient, ge=0, le=1)
    """Times the entropy of the sampled-from distribution, taken off the loss."""

    @model_validator(mode="before")
    @classmethod
    def _from_row(cls, given: Any, info: ValidationInfo) -> Any:
        if not isinstance(given, Mapping):
            return given
        base = Path((info.context or {}).get("base", "."))
        name = given.get("name", _GRPO.name)
        try:
            row = table.find(str(name), (base / str(given.get("folder", "."))).resolve()).cells()
        except table.RowError as error:
            # Mistakes in other keys are found besides; but whose keys a cell without its kind has, only the row knows.
            known = {k: v for k, v in given.items() if k not in _KINDS or not isinstance(v, Mapping) or "kind" in v}
            return {**known, "name": _NoRow(name, error)}
        return row | {key: _merge(row.get(key), value) for key, value in given.items()}

    @field_validator("name", mode="before")
    @classmethod
    def _there(cls, name: Any) -> Any:
        if isinstance(name, _NoRow):
            raise ValueError(name.why)
        return name

    @field_validator(*OPEN, mode="wrap")
    @classmethod
    def _own(cls, cell: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        if isinstance(cell, _OfOwnKind):
            cell = cell.made()
        if not isinstance(cell, Cell):
            return check(cell)
        wanted = OPEN[str(info.field_name)]
        if not isinstance(cell, wanted):
            raise ValueError(f"the row has {type(cell).__name__} here, which is no {wanted.__name__}")
        return cell

    @field_serializer(*OPEN, mode="wrap")
    def _plain(self, cell: Any, write: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
        # A cell of the user's own is not among those that the field names.
        return cell.model_dump(mode=info.mode) if cell.is_own else write(cell)

    def located(self, base: Path) -> AlgorithmSection:
        """The same section with its paths absolute."""
        changes: dict[str, Any] = {"folder": str((base / Path(self.folder).expanduser()).resolve())}
        if isinstance(self.value, OwnValue) and self.value.path is not None:
            changes["value"] = self.value.model_copy(update={"path": locate(self.value.path, base)})
        return self.model_copy(update=changes)

    @property
    def needs_reference(self) -> bool:
        """Whether the run has to compute log-probs under the frozen reference."""
        return self.kl.coefficient > 0

    def for_answers_of(self, longest: int) -> AlgorithmSection:
        """The same with `longest` tokens for the budget of a fixed length that was left out."""
        if self.reduction.kind != "fixed_length" or self.reduction.budget is not None:
            return self
        return self.model_copy(update={"reduction": self.reduction.model_copy(update={"budget": longest})})


class _NoRow(str):
    """A name that no row has."""

    def __new__(cls, name: Any, why: table.RowError) -> _NoRow:
        self = super().__new__(cls, name)
        self.why = str(why)
        return self

    why: str


class _OfOwnKind(NamedTuple):
    """Keys of a cell of the user's own."""

    kind: type[Section]
    values: dict[str, Any]

    def made(self) -> Section:
        """Raises ValidationError; of a wrong key its context says whose it is, which nothing else here knows."""
        try:
            return self.kind.model_validate(self.values)
        except ValidationError as error:
            details = [self._detail(each) for each in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(error.title, details) from error

    def _detail(self, found: ErrorDetails) -> InitErrorDetails:
        kind: Any = found["type"]
        context = found.get("ctx", {})
        if kind == "extra_forbidden":
            of = {"cell": self.kind, "depth": len(found["loc"])}
            kind = PydanticCustomError(kind, "Extra inputs are not permitted", of)
        elif kind not in get_args(ErrorType):
            kind = PydanticCustomError(kind, found["msg"], context)
        return InitErrorDetails(type=kind, loc=found["loc"], input=found["input"], ctx=context)


def _merge(default: Any, given: Any) -> Any:
    """The row's cell with the given keys put over it; a cell of another kind is taken as it is given."""
    if not isinstance(default, Section) or not isinstance(given, Mapping):
        return given  # a cell that is made already, or a plain value
    values = default.model_dump()
    if given.get("kind", values.get("kind")) != values.get("kind"):
        return dict(given)
    merged = {**values, **given}
    return _OfOwnKind(type(default), merged) if isinstance(default, Cell) and default.is_own else merged
