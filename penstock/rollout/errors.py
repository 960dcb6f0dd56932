"""What can go wrong in generation, each with a consequence of its own."""

from __future__ import annotations

from penstock.services.contracts import PenstockError


class EngineFailed(PenstockError):
    """The engine raised or hung. It must not be used any more; whoever supervises the worker starts another."""


class PromptTooLong(PenstockError):
    """A prompt that leaves no room for an answer. A matter of the data: the engine is fine."""
