"""`penstock`: the command line. Every command only calls `penstock.api` or `penstock.deploy` and shows the answer.

Exit codes: 0 done, 1 the run failed, 2 the input was wrong and nothing was started, 3 the run ended but missed
a goal, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from penstock.cli import looking_commands, steering_commands

# Nothing heavier than typer is imported here: every command imports what it needs, so that --help is instant.
if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.api import Run
    from penstock.deploy.view import Display

FAILED, WRONG_INPUT, GOAL_MISSED, INTERRUPTED = 1, 2, 3, 130

app = typer.Typer(
    name="penstock",
    help="Train language models with asynchronous reinforcement learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(looking_commands.app)
app.add_typer(steering_commands.app)

RunFileArgument = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.key=value …]", help="Values that win over the run file's.", show_default=False),
]


@app.command()
def train(
    run_file: RunFileArgument,
    overrides: Overrides = None,
    once: Annotated[
        bool, typer.Option("--once", help="Given again, go on with the run of this name, and leave an ended one be.")
    ] = False,
    missed_goal: Annotated[
        int, typer.Option(metavar="CODE", min=0, max=255, help="Exit code where a goal is missed; 0: as if none was.")
    ] = GOAL_MISSED,
) -> None:
    """Train with asynchronous reinforcement learning."""
    from penstock import api

    typer.echo(f"[penstock] checking {run_file}")
    _watch(lambda display: api.train(run_file, overrides or [], once=once, display=display), missed_goal)


@app.command()
def sft(run_file: RunFileArgument, overrides: Overrides = None) -> None:
    """Fine-tune on demonstrations (supervised), with the `sft` section of the run file."""
    from penstock import api

    typer.echo(f"[penstock] checking {run_file}")
    _watch(lambda display: api.sft(run_file, overrides or [], display=display))


@app.command()
def evaluate(
    run_file: RunFileArgument,
    overrides: Overrides = None,
    model: Annotated[Path | None, typer.Option(help="Model to evaluate; by default the run file's own.")] = None,
) -> None:
    """Evaluate a model on the held-out prompts of a run file."""
    from penstock import api

    for name, value in sorted(api.evaluate(run_file, str(model) if model else None, overrides or []).items()):
        typer.echo(f"{name}  {value:.4f}")


@app.command()
def check(
    run_file: RunFileArgument,
    overrides: Overrides = None,
    stage: Annotated[Literal["train", "sft", "evaluate"], typer.Option(help="What the file is for.")] = "train",
) -> None:
    """Find every mistake in a run file before anything starts."""
    from penstock import api

    findings = api.check(run_file, overrides or [], stage=stage)
    for finding in findings:
        typer.echo(str(finding))
    errors = sum(f.level == "error" for f in findings)
    if errors:
        typer.echo(f"{run_file}: {errors} mistake{'s' if errors != 1 else ''}; nothing was started", err=True)
        raise typer.Exit(WRONG_INPUT)
    warnings = sum(f.level == "warning" for f in findings)
    doubts = f", {warnings} warning{'s' if warnings != 1 else ''}" if warnings else ""
    typer.echo(f"{run_file}: nothing amiss{doubts}")


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run to go on with.", show_default=False)],
    overrides: Overrides = None,
) -> None:
    """Go on with a run from its last checkpoint."""
    from penstock import api

    typer.echo(f"[penstock] checking {run_dir}")
    _watch(lambda display: api.resume(run_dir, overrides or [], display=display))


@app.command()
def doctor() -> None:
    """Look at this machine: versions, devices, memory, Redis, ports; a remedy for each thing amiss."""
    from rich.console import Console

    from penstock.cli.doctor_table import table
    from penstock.deploy.doctor import examine

    facts = examine()
    Console().print(table(facts))
    if any(fact.state == "broken" for fact in facts):
        raise typer.Exit(FAILED)


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="All keys as tables for people.")] = False,
) -> None:
    """Print the JSON schema of run files, for editors."""
    import json

    if markdown:
        from penstock.deploy.runfile_docs import markdown as as_markdown

        typer.echo(as_markdown(), nl=False)
        return
    from penstock.deploy.runfile import schema as as_schema

    typer.echo(json.dumps(as_schema(), indent=2, ensure_ascii=False))


@app.command()
def metrics(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only names that begin so.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="All of them as tables, for the docs.")] = False,
) -> None:
    """Show what a run records and exports: meaning, unit, direction, estimator, Prometheus name."""
    from penstock.cli import metrics_table as shown
    from penstock.services.contracts import PenstockError

    if markdown:
        from penstock.deploy.metrics_docs import markdown as as_markdown

        typer.echo(as_markdown(), nl=False)
        return
    try:
        typer.echo(shown.plain(name or ""))
    except PenstockError as error:
        typer.echo(f"penstock: {error}", err=True)
        raise typer.Exit(WRONG_INPUT) from error


@app.command()
def algorithms(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One row in full; MODULE:ROW for yours.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The table and all rows, for the docs.")] = False,
) -> None:
    """Show the table of algorithms, or one row: equation, defaults, paper, traps."""
    from penstock.cli import algorithms_table as shown
    from penstock.learner.algorithms import table

    try:
        rows = list(table.rows().values()) if name is None else [table.find(name, Path.cwd())]
    except table.RowError as error:
        typer.echo(f"penstock: {error}", err=True)
        raise typer.Exit(WRONG_INPUT) from error
    if markdown:
        typer.echo(shown.markdown(rows))
    elif name is not None:
        typer.echo(shown.detail(rows[0], name))
    elif sys.stdout.isatty():
        from rich.console import Console

        shown.show(rows, Console())
    else:
        typer.echo(shown.plain(rows))


@app.command()
def plot(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR…", help="One run, or several seeds of one.")],
    out: Annotated[Path | None, typer.Option(help="PNG with one learning curve over all the runs.")] = None,
) -> None:
    """Draw a run's plots/, or with --out one learning curve over several runs."""
    from penstock.services.plots import learning_curve, write_plots
    from penstock.services.rundir import RunDir

    runs = [RunDir.open(run_dir) for run_dir in run_dirs]
    written = [learning_curve(runs, out)] if out is not None else [path for run in runs for path in write_plots(run)]
    for path in written:
        typer.echo(path)


@app.command()
def whatif(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run with archive.weights.", show_default=False)],
    row: Annotated[
        list[str] | None,
        typer.Option("--row", metavar="'NAME [cell.key=value …]'", help="A row of the table; may be repeated."),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="'cell.key=value …'", help="The run's own row, changed; may be repeated."),
    ] = None,
    at: Annotated[
        Literal["start", "next"], typer.Option(help="The weights a step started from, or those it has led to.")
    ] = "start",
    newest: Annotated[int | None, typer.Option(min=1, help="Only so many archived steps, the newest.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON, step by step.")] = False,
) -> None:
    """Evaluate archived steps under other algorithms, corrections and bounds; nothing is generated or trained."""
    from rich.console import Console

    from penstock import api
    from penstock.cli.whatif_table import bar, show

    with bar() as progress:
        found = api.whatif(run_dir, row or [], change or [], at=at, newest=newest, progress=progress)
    if json:
        import json as library

        typer.echo(library.dumps(found.to_json(), allow_nan=False))
        return
    console = Console()
    show(found, console, console if console.is_terminal else Console(stderr=True))


def _watch(start: Callable[[Display], Run], missed_goal: int = GOAL_MISSED) -> None:
    """Show a run while it goes on, then say how it ended."""
    from penstock.cli.display import make_display

    display = make_display()
    try:
        run = start(display)
    finally:
        display.close()
    _conclude(run, missed_goal)


def _conclude(run: Run, missed_goal: int) -> None:
    """Say how the run ended; the run directory stands on the last line, where scripts find it."""
    goals: list[dict[str, Any]] = (run.summary or {}).get("goals", [])
    for goal in goals:
        mark = "reached" if goal["reached"] else "MISSED"
        value = "never recorded" if goal["value"] is None else f"{goal['value']:.4g}"
        typer.echo(f"goal {mark}: {goal['of']} {goal['metric']} {goal['wanted']}, found {value}")
    typer.echo(run.dir)
    if any(not goal["reached"] for goal in goals):
        raise typer.Exit(missed_goal)


def run() -> None:
    """Entry point: errors that a person can act on are one message, all others a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:  # told apart below, and raised again when it is none of ours
        code = _code_of(error)
        if code is None:
            raise
        typer.echo(f"penstock: {error}", err=True)
        sys.exit(code)


def _code_of(error: Exception) -> int | None:
    """The exit code of an error that says enough by its text; None for a fault of the program."""
    from penstock.cli.tail import TailError
    from penstock.deploy.runfile import RunFileError
    from penstock.learner.variants import VariantError
    from penstock.services.contracts import PenstockError, WrongInput
    from penstock.services.control import NoAnswer, Refused
    from penstock.services.dashboard.config import PageError
    from penstock.services.rundir import RunDirError

    wrong = (RunFileError, RunDirError, VariantError, Refused, NoAnswer, WrongInput, PageError, TailError)
    if isinstance(error, wrong):
        return WRONG_INPUT
    return FAILED if isinstance(error, PenstockError) else None
