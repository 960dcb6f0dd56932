"""Files of other projects that the page uses, served from the packages in which they were installed.

Both packages wrap a release of the library and nothing else that is used here: no Python of theirs is run, and the
browser checks every file against the digest of the library's own release before it uses it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from penstock.services.dashboard.config import PageError


@dataclass(frozen=True)
class Library:
    """One file."""

    name: str
    """Under which it is served."""
    distribution: str
    """What pip installs."""
    package: str
    path: str
    """In the package."""
    digest: str
    """As in the `integrity` attribute."""

    def locate(self) -> Path:
        """Where it lies. Raises PageError when it is not installed."""
        for folder in _folders(self.package):
            if (folder / self.path).is_file():
                return folder / self.path
        raise PageError(
            f"the page needs {self.path} of the package {self.distribution}, which is not installed; "
            f"install it with: pip install {self.distribution}"
        )


def _folders(package: str) -> Iterator[Path]:
    """Where a package lies; nothing of it is imported. One without Python of its own has only locations."""
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(location)


LIBRARIES = (
    Library(
        "uplot.js",
        "youplot",
        "youplot",
        "vendor/uplot.iife.min.js",
        "sha384-XMP23k7YSCFr13Xrkxh4IO0v1W+8fB6AP+3Vycxphp2Z0V2vocAZHyuGaFCysrtM",
    ),
    Library(
        "uplot.css",
        "youplot",
        "youplot",
        "vendor/uplot.min.css",
        "sha384-IfV0B7MIOYuO95kO9G5ySKPz/85zqFNOAs8iy4tkK5zd9izhJAB8b7lHrwYqqmYE",
    ),
    Library(
        "bootstrap.css",
        "bootstrap-wrapper",
        "bootstrap",
        "css/bootstrap.min.css",
        "sha384-sRIl4kxILFvY47J16cr9ZwB07vP4J8+LH7qKQnuqkuIAvNWLzeN8tE5YBujZqJLB",
    ),
)
"""uPlot 1.6.31 draws the curves, Bootstrap 5.3.8 styles buttons, forms and tables."""
