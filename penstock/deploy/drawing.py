"""The plots of a run that ends, drawn while its actors and Ray are ended."""

from __future__ import annotations

import threading

from penstock.services.rundir import RunDir


class Drawing:
    """Draws once. `begin` may be left out; then `finish` does all of it."""

    def __init__(self, directory: RunDir, deadline: float) -> None:
        """`deadline`: seconds that `finish` waits, at most."""
        self._directory, self._deadline = directory, deadline
        self._thread = threading.Thread(target=self._draw, name="plots", daemon=True)
        self._trouble = ""

    def begin(self) -> None:
        """In a thread, now that no step and no evaluation comes any more."""
        if self._thread.ident is None:
            self._thread.start()

    def finish(self) -> str:
        """Wait for it; returns why the plots could not be drawn, or nothing: a plot must not hide how a run ended."""
        self.begin()
        self._thread.join(self._deadline)
        if self._thread.is_alive():
            again = f"penstock plot {self._directory.path}"
            return f"the plots were not drawn within {self._deadline:g} s (deadlines.drain); draw them with: {again}"
        return self._trouble

    def _draw(self) -> None:
        from penstock.services.plots import write_plots

        try:
            write_plots(self._directory)
        except Exception as error:  # noqa: BLE001  (told by `finish`)
            self._trouble = f"the plots could not be drawn: {type(error).__name__}: {error}"
