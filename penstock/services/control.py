"""What may be asked of a run while it goes on: the commands, the answers, and the seam they go through.

The command line, the page, guards and the autoscaler all steer by these; whoever is asked writes every one of them into
the run's events, with who asked and when.
"""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

import msgspec

from penstock.services.contracts import PenstockError

ScalableRole = Literal["rollout", "scorer"]
Name = Annotated[str, msgspec.Meta(max_length=200)]
"""Of an actor or of a coefficient; a longer one is none, and is not quoted back."""
Reason = Annotated[str, msgspec.Meta(max_length=1000)]
"""A few words for people, who find them in the status, the events and the summary."""


class NoAnswer(PenstockError):
    """A command that nobody carries out: the run has ended, or its driver did not answer in time."""


class Refused(PenstockError):
    """A command that contradicts the run; nothing was changed. The text says what was found and what is allowed."""


class Scale(msgspec.Struct, frozen=True, tag="scale", forbid_unknown_fields=True):
    """Have `count` actors of a role. Those to go are drained first: what they hold is handed on."""

    role: ScalableRole
    count: int


class Remove(msgspec.Struct, frozen=True, tag="remove", forbid_unknown_fields=True):
    """Drain one named rollout worker or scorer; the wanted number of its role falls by one."""

    name: Name


class Pause(msgspec.Struct, frozen=True, tag="pause", forbid_unknown_fields=True):
    """No new groups and no new train steps until `Resume`; what is being generated is finished."""


class Resume(msgspec.Struct, frozen=True, tag="resume", forbid_unknown_fields=True):
    """Go on after `Pause`."""


class Checkpoint(msgspec.Struct, frozen=True, tag="checkpoint", forbid_unknown_fields=True):
    """Write a checkpoint at the end of the step that is under way."""


class Gate(msgspec.Struct, frozen=True, tag="gate", forbid_unknown_fields=True):
    """Close the staleness gate by hand, or leave it to the lag again. The learner goes on with what is stored."""

    open: bool


class SetCoefficient(msgspec.Struct, frozen=True, tag="set", forbid_unknown_fields=True):
    """Train with another coefficient from the next step on, for example `kl.coef` or `learning_rate`."""

    name: Name
    value: float


class ScaleCoefficient(msgspec.Struct, frozen=True, tag="scale_coefficient", forbid_unknown_fields=True):
    """The same, from what it is now: multiplied, and no further than the bounds."""

    name: Name
    by: float
    at_least: float | None = None
    at_most: float | None = None


class SetMaxLag(msgspec.Struct, frozen=True, tag="max_lag", forbid_unknown_fields=True):
    """Bound the lag anew. What is stored, or taken for the next step, and lies beyond it is dropped."""

    bound: int


class RollBack(msgspec.Struct, frozen=True, tag="roll_back", forbid_unknown_fields=True):
    """Go back to the newest checkpoint of at most the step `until`, by default of at most the present one, and go on
    from there in a new lineage. What was turned stays turned."""

    until: int | None = None


class Stop(msgspec.Struct, frozen=True, tag="stop", forbid_unknown_fields=True):
    """End after this step, with a checkpoint and a summary."""

    why: Reason = "asked for"


Command = (
    Scale
    | Remove
    | Pause
    | Resume
    | Checkpoint
    | Gate
    | SetCoefficient
    | ScaleCoefficient
    | SetMaxLag
    | RollBack
    | Stop
)


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A command on its way."""

    id: str
    """Unique; the answer bears it."""
    by: str
    """Who asks, for the run's events: `scale by ada@lab-3`, `page`, `guard kl/reference`."""
    at: float
    """Unix seconds at which it was asked."""
    command: Command


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of a command."""

    done: bool
    text: str
    """For people: what changes now, or why nothing does and what would be allowed."""


class RunControl(Protocol):
    """Steer one run, from wherever one is."""

    def send(self, command: Command, by: str, deadline: float = 30.0) -> str:
        """What the run answered. Raises Refused with the reason, and NoAnswer when nobody carries it out."""
        ...
