"""The sections of a run file that say how answers are judged."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from penstock.services.files import followed
from penstock.services.metrics import check_word
from penstock.services.model_config import Dtype, ModelSection
from penstock.services.settings import Section, WrongValue, on_resume

MOST_SCORERS = 256
"""Of one run."""


class RuleSection(Section):
    """One part of the reward: a rule, its weight and its limits."""

    rule: str | None = None
    """Name of a built-in rule, or `module:function` of your own; by default the name of the part itself."""
    weight: float = 1.0
    """Factor in the sum. A part of weight 0 is measured and reported, and its failure spoils no reward."""
    timeout: float = on_resume(10.0, gt=0, le=3600)
    """Seconds for one call, which judges all answers to one prompt. After that the rule's process is killed and
    the answers are unscored. At most an hour: a judge that needs longer keeps its group out of every step."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the rule, by name."""


class ReferenceSection(Section):
    """The frozen model whose log-probabilities the KL penalty compares with; loaded only where a run uses it."""

    model: ModelSection | None = None
    """By default the model that the run starts from."""
    dtype: Dtype | None = None
    """Number format of the frozen weights; by default the model's."""
    batch_tokens: int = on_resume(8192, ge=1)
    """Tokens, padding included, that go through the model at a time; one longer answer is a batch of its own."""

    def located(self, base: Path) -> ReferenceSection:
        """The same section with its paths absolute."""
        return self.model_copy(update={"model": self.model.located(base) if self.model else None})


class RewardSection(Section):
    """Rules, their weights, and the processes they run in."""

    rules: dict[str, RuleSection] = Field(min_length=1)
    """Parts of the reward by a name of your choice, made of letters, digits, `_`, `.` and `-`, since it is part of
    metrics' names; each answer's reward is their weighted sum. They run in this order."""
    accuracy: str | None = None
    """The part that says whether an answer is correct; by default the first."""
    correct_at: float = 1.0
    """An answer counts as correct from this value of the accuracy part on."""
    scorers: int = on_resume(1, ge=1, le=MOST_SCORERS)
    """Scorers at the start, each with rule processes and, where it is used, a reference model of its own; more can join
    and leave while the run goes on."""
    max_scorers: int | None = on_resume(None, ge=1, le=MOST_SCORERS)
    """Most scorers that the run may be scaled to. By default as many as the cluster has room for; a cluster that is
    started for the run and ends with it has room for twice `scorers` and two more."""
    max_restarts: int = on_resume(5, ge=0)
    """How often one scorer is started again after it died; the next death of one that the run began with ends the
    run."""
    workers: int = on_resume(1, ge=1, le=256)
    """Processes that run rules, for every scorer; so many groups are judged by it at a time."""
    folder: str = "."
    """Where modules of `module:function` are looked for first, and the working directory of the rules."""
    environment: tuple[str, ...] = ()
    """Names of environment variables that rules may see, for example the key of a judge; all but a few harmless
    ones are hidden from them."""
    confine: bool = on_resume(True)
    """Shut rule processes in, where the kernel has Landlock: they cannot look into other processes, where the store's
    password is, nor signal them, and root has rights over files alone. `false` for rules that need more, such as a
    sandbox of their own that needs setuid programs or mounts."""
    memory_gb: float | None = on_resume(None, gt=0)
    """Address space one rule process may use, in GiB; a rule that wants more fails with MemoryError. By default
    there is no limit."""
    start_timeout: float = on_resume(120.0, gt=0)
    """Seconds in which a rule process must have started and imported its rules."""
    reference: ReferenceSection = ReferenceSection()
    """The frozen reference model."""

    @field_validator("rules")
    @classmethod
    def _names_fit_metrics(cls, rules: dict[str, RuleSection]) -> dict[str, RuleSection]:
        for name in rules:
            example = re.sub(r"[^A-Za-z0-9_]+", "_", name.rpartition(":")[2]).strip("_") or "my_part"
            check_word(name, f'give the part a plain name and say its rule: rules: {{{example}: {{rule: "{name}"}}}}')
        return rules

    @model_validator(mode="after")
    def _accuracy_is_a_part(self) -> RewardSection:
        if self.accuracy is not None and self.accuracy not in self.rules:
            close = difflib.get_close_matches(self.accuracy, self.rules, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            problem = f"accuracy must be one of the parts {', '.join(self.rules)}; found {self.accuracy!r}{hint}"
            raise WrongValue("accuracy", problem)
        if not any(rule.weight for rule in self.rules.values()):
            raise WrongValue("rules", "every part has weight 0: there is no reward to learn from; give one a weight")
        return self

    @model_validator(mode="after")
    def _within_the_most(self) -> RewardSection:
        if self.max_scorers is not None and self.scorers > self.max_scorers:
            raise WrongValue(
                "scorers", f"scorers is {self.scorers}, more than max_scorers, which is {self.max_scorers}"
            )
        return self

    @property
    def most_at_home(self) -> int:
        """Scorers that a cluster started for the run has room for."""
        return self.max_scorers or 2 * self.scorers + 2

    @property
    def accuracy_part(self) -> str:
        """The part that says whether an answer is correct."""
        return self.accuracy or next(iter(self.rules))

    def located(self, base: Path) -> RewardSection:
        """The same section with its paths absolute."""
        folder = str(followed(base / Path(self.folder).expanduser()))
        return self.model_copy(update={"folder": folder, "reference": self.reference.located(base)})
