"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]", help="A run directory, or a run's name, here or on a Ray cluster; else the newest."
    ),
]
RunName = Annotated[
    str | None,
    typer.Option(
        "--run", metavar="RUN", help="A run directory, or a run's name, here or on a cluster; else the newest."
    ),
]
RunsDir = Annotated[Path, typer.Option(help="Where runs are looked for.")]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="RAY", help="Ray cluster to look on: auto, HOST:6379 or ray://HOST:10001."),
]
RUNS = Path("runs")
