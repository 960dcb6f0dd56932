"""Of all tests: hypothesis draws the same examples every time, so that a failure is about a change, not about luck."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile("same")
