"""Whatever can be a record survives the way to bytes and back; whatever is not one is refused by name."""

from __future__ import annotations

import struct

import msgspec
import numpy as np
import pytest
import xxhash
from builders import completion, group, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from penstock.services import codec
from penstock.services.trajectory import (
    FINISHES,
    Completion,
    Group,
    PartialGroup,
    Prompt,
    Record,
    Sampling,
    Span,
    Trajectory,
    Unfinished,
)

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
LOGPROBS = st.floats(max_value=0.0, allow_nan=False, width=32)  # minus infinity included


@st.composite
def sampled(draw: st.DrawFn) -> dict:
    counts = draw(st.lists(st.integers(1, 5), max_size=3))
    length = sum(counts)
    return {
        "tokens": draw(arrays.arrays(np.int32, length)),
        "logprobs": draw(arrays.arrays(np.float32, length, elements=LOGPROBS)),
        "spans": tuple(
            Span(
                lineage=draw(st.integers(0, 9)), step=draw(st.integers(0, 10**9)), count=n, older_kv=draw(st.booleans())
            )
            for n in counts
        ),
    }


@st.composite
def completions(draw: st.DrawFn) -> Completion:
    base = draw(sampled())
    return Completion(
        **base,
        actions=draw(arrays.arrays(np.bool_, len(base["tokens"]))),
        finish=draw(st.sampled_from(FINISHES)),
        text=draw(st.text(max_size=10)),
        worker=draw(st.text(max_size=5)),
        engine=draw(st.text(max_size=5)),
        started=draw(NUMBERS),
        ended=draw(NUMBERS),
    )


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    done = draw(completions())
    reward = draw(st.none() | NUMBERS)
    count = len(done.tokens)
    return Trajectory(
        completion=done,
        reward=reward,
        parts=draw(st.dictionaries(st.text(max_size=5), st.none() | NUMBERS, max_size=3)),
        unscored=None if reward is not None else draw(st.text(max_size=9)),
        reference_logprobs=draw(st.none() | arrays.arrays(np.float32, count, elements=LOGPROBS)),
    )


PROMPTS = st.builds(
    Prompt,
    index=st.integers(0, 2**40),
    source=st.text(max_size=5),
    row=st.integers(0, 2**40),
    epoch=st.integers(0, 99),
    tokens=arrays.arrays(np.int32, st.integers(1, 6)),
    text=st.text(max_size=9),
    columns=st.dictionaries(st.text(max_size=4), JSON, max_size=3),
)
GROUPS = st.builds(
    Group,
    prompt=PROMPTS,
    sampling=st.builds(Sampling, temperature=st.floats(0.1, 2), stop_token_ids=st.lists(st.integers(0, 9)).map(tuple)),
    trajectories=st.lists(trajectories(), min_size=1, max_size=3).map(tuple),
)
PARTIALS = st.builds(
    PartialGroup,
    members=st.lists(completions() | sampled().map(lambda fields: Unfinished(**fields)), max_size=3).map(tuple),
)


@settings(deadline=None)
@given(st.one_of(PROMPTS, completions(), trajectories(), GROUPS, PARTIALS))
def test_every_record_survives_the_round_trip(record: Record):
    back = codec.decode(codec.encode(record), type(record))
    assert back == record
    assert codec.encode(back) == codec.encode(record)


@given(st.integers(0), st.integers(1, 255))
def test_no_single_altered_byte_goes_unnoticed(at: int, change: int):
    data = bytearray(codec.encode(group()))
    data[at % len(data)] ^= change
    with pytest.raises(codec.CodecError, match="Group"):
        codec.decode(bytes(data), Group)


@given(st.integers(0))
def test_a_record_cut_short_is_refused(length: int):
    data = codec.encode(group())
    with pytest.raises(codec.CodecError, match="Group"):
        codec.decode(data[: length % len(data)], Group)


def test_another_schema_version_is_refused_as_that():
    data = bytearray(codec.encode(prompt()))
    data[4:6] = struct.pack(">H", codec.SCHEMA + 1)
    with pytest.raises(
        codec.CodecError,
        match=rf"Prompt: written with schema version {codec.SCHEMA + 1}, this build reads version {codec.SCHEMA}",
    ):
        codec.decode(bytes(data), Prompt)


def test_another_record_is_refused_by_both_names():
    with pytest.raises(codec.CodecError, match="expected the record Group, found 'Prompt'"):
        codec.decode(codec.encode(prompt()), Group)


def test_bytes_of_something_else_are_refused():
    with pytest.raises(codec.CodecError, match="do not begin like a Penstock record"):
        codec.decode(b"\x80\x04" + b"K" * 40, Group)


def test_lengths_are_checked_again_when_a_record_is_decoded():
    data = codec.encode(completion())
    head = len(data) - len(data.split(b"Completion", 1)[1])
    fields = msgspec.msgpack.decode(data[head + 8 :])
    fields["actions"] += b"\x01"
    body = msgspec.msgpack.encode(fields)
    forged = data[:head] + struct.pack(">Q", xxhash.xxh3_64_intdigest(body)) + body
    with pytest.raises(codec.CodecError, match=r"Completion\.actions: expected 2 entries"):
        codec.decode(forged, Completion)


def test_a_type_outside_the_schema_has_no_encoding():
    with pytest.raises(codec.CodecError, match="Sampling is not one of the records"):
        codec.encode(Sampling())
