"""The few answers of a step that people will look at token by token, and what the train step made of their tokens.

On every rank. All of it comes from passes that are made anyway: with a single update π is still π_prox in the pass that
trains, and with more of them log π_prox has been laid into the micro-batches. Nothing waits for the device before the
end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from penstock.learner.algorithms.corrections import CLIPPED
from penstock.learner.algorithms.objectives import CLIPPED_DUAL, CLIPPED_HIGH, CLIPPED_LOW
from penstock.services import samples

if TYPE_CHECKING:
    from penstock.learner.algorithms.composition import Composed
    from penstock.learner.batch import Array
    from penstock.learner.deal import Share
    from penstock.learner.micro import MicroBatch

_FACTS = {
    CLIPPED: samples.WEIGHT_CUT,
    CLIPPED_LOW: samples.CLIPPED_LOW,
    CLIPPED_HIGH: samples.CLIPPED_HIGH,
    CLIPPED_DUAL: samples.CLIPPED_HIGH,
}
"""Facts of a token that are marks of it."""


class Exhibit:
    """Of one rank's share, the rows that it says are to be shown."""

    def __init__(self, share: Share) -> None:
        self._order = share.shown
        self._seen: dict[int, dict[str, Tensor]] = {}
        self._places = {
            (mini, place): shown
            for mini, plan in enumerate(share.mini_batches)
            for place, rows in enumerate(plan)
            if (shown := [(i, row) for i, row in enumerate(rows) if row in share.shown])
        }

    def look(self, mini: int, place: int, part: MicroBatch, prox: Tensor, made: Composed) -> None:
        """A pass over the micro-batch at `place` of a mini-batch, in which the policy was at `prox` when the step
        began. [rows, window]"""
        for i, row in self._places.get((mini, place), ()):
            answer = part.rows.responses[i]
            marks = _marks(part.mask[i], made, i)[answer]
            if row in self._seen:
                self._seen[row]["marks"] |= marks
                continue
            columns = {
                "logp_learner": prox,
                "advantages": part.advantages,
                "trust_weights": made.trust_weights,
                "values": part.old_values,
                "returns": part.returns,
            }
            found = {name: column[i][answer].float() for name, column in columns.items() if column is not None}
            self._seen[row] = found | {"marks": marks}

    def columns(self) -> dict[str, Array]:
        """By name, the shown rows end to end in the order of the share; none where nothing is shown."""
        rows = [self._seen[row] for row in self._order]
        return {name: torch.cat([row[name] for row in rows]).cpu().numpy() for name in (rows[0] if rows else ())}


def _marks(counts: Tensor, made: Composed, i: int) -> Tensor:
    """[window] bits of `samples.MARKS` for the tokens of one row; whether they are actions is not known here."""
    bits = counts * samples.COUNTS + (counts & ~made.keep[i]) * samples.LEFT_OUT
    for name, bit in _FACTS.items():
        if name in made.facts:
            bits = bits | (counts & (made.facts[name][i] > 0)) * bit
    return bits.to(torch.uint8)


def to_bytes(columns: Mapping[str, Array]) -> bytes:
    """For the way to rank 0."""
    return bytes(safetensors.numpy.save(dict(columns))) if columns else b""


def split(payload: bytes, lengths: Sequence[int]) -> list[dict[str, Array]]:
    """The rows in the bytes of one rank, which have so many tokens each."""
    if not payload:
        return []
    columns = safetensors.numpy.load(payload)
    pieces = {name: np.split(column, np.cumsum(lengths)[:-1]) for name, column in columns.items()}
    return [{name: parts[row] for name, parts in pieces.items()} for row in range(len(lengths))]
