"""Overlays of deploy/kubernetes, rendered once."""

from __future__ import annotations

from functools import cache
from typing import Any

from scripts.manifests.render import KUBERNETES, render


@cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    """Its objects; not to be changed."""
    return render(KUBERNETES / "overlays" / overlay)
