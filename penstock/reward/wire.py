"""What a scorer and its rule processes say to each other: MessagePack behind a length, over one socket.

No pickle: a reward function sees untrusted text, and what it sends back is only ever numbers and strings.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

HEADER = struct.Struct(">I")


class RuleSpec(msgspec.Struct, frozen=True):
    """One part: the rule behind it and its further arguments."""

    rule: str
    args: dict[str, Any]


class Setup(msgspec.Struct, frozen=True, tag=True):
    """The first message to a rule process. It answers Ready, or Failed when a rule cannot be had."""

    folder: str
    rules: dict[str, RuleSpec]
    memory_bytes: int
    """0 for no limit."""
    confine: bool
    """Shut the process in before it imports any rule; see `confinement`."""


class Call(msgspec.Struct, frozen=True, tag=True):
    """Judge the answers to one prompt. The reply is Scores, or Failed."""

    part: str
    prompt: Any
    """A string or a list of messages, as the data has it."""
    completions: list[Any]
    """Strings, or lists with the one message of the assistant where the prompt is a list."""
    completion_ids: list[list[int]]
    columns: dict[str, Any]
    """The row's other columns; a rule gets each once per answer."""
    parts: dict[str, list[float | None]]
    """Values of the parts that ran before this one."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """All rules are imported."""

    unconfined: str = ""
    """Why the process could not be shut in, where it was to be."""


class Stepwise(msgspec.Struct, frozen=True):
    """What a rule says of an answer that it judges step by step."""

    reward: float | None
    """Of the answer as a whole; None where the steps say it all."""
    steps: list[tuple[int, float]]
    """A step's last token, counted from 0 within the answer, and how good the answer is up to there; by rising token.
    Checked in the rule process."""


Entry = float | str | None | Stepwise
"""One answer's number, None for an abstention, the cause (text) why it is unscored, or what its steps are worth."""


class Scores(msgspec.Struct, frozen=True, tag=True):
    """One entry per answer."""

    values: list[Entry]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A rule that could not be imported or that raised; the cause fits on a line or two."""

    cause: str


Request = Setup | Call
Reply = Ready | Scores | Failed

ENCODER = msgspec.msgpack.Encoder()
REQUESTS: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
REPLIES: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def frame(message: Request | Reply) -> bytes:
    """The bytes of one message, length first."""
    body = ENCODER.encode(message)
    return HEADER.pack(len(body)) + body
