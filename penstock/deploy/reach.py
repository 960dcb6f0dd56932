"""A run by its directory or by its name, here or on a Ray cluster: the one way in which commands find it.

A name is that of a run directory (`carry-20261121-1`), or of a run file (`carry`), which means the newest run of it.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.deploy import ray_address
from penstock.deploy.status import Place
from penstock.services.control import NoAnswer, RunControl
from penstock.services.mailbox import MailboxControl
from penstock.services.run_paths import BATCH_FILE
from penstock.services.rundir import RunDir, RunDirError, runs_in

GLANCE = ("config.yaml", "status.json", "summary.json")
"""Files that say how a run stands."""
STORY = (*GLANCE, "metrics.jsonl", "events.jsonl")
"""Files that say what it has been."""
PAGE = (*STORY, "activity*.jsonl", "whatif.json", "samples/*", f"archive/*/{BATCH_FILE}")
"""Files that the page shows."""

_NUMBERED = re.compile(r"^(?P<name>.+)-\d{8}-\d+$")
"""What `RunDir.create` makes of a run file's name."""
_ID_DIGITS = 9
"""Characters that a run's id has behind the name of its directory."""


@dataclass(frozen=True)
class Reached:
    """A run that has been found."""

    directory: RunDir
    """Its own, or a copy of it while it goes on elsewhere."""
    control: RunControl
    refresh: Callable[[], None]
    """Brings the copy up to date, as far as it was asked for; of no effect on a run's own directory."""
    place: Place
    """Where the run's own directory is."""

    @contextlib.contextmanager
    def kept_fresh(self, every: float) -> Iterator[None]:
        """Inside, the copy is brought up to date every so many seconds, beside whatever else is done."""
        if not self.place.node:
            yield
            return
        over = threading.Event()

        def keep() -> None:
            while not over.wait(every):
                with contextlib.suppress(NoAnswer):  # the next look may have one
                    self.refresh()

        keeping = threading.Thread(target=keep, name="penstock-mirror", daemon=True)
        keeping.start()
        try:
            yield
        finally:
            over.set()
            keeping.join()


def the_one(named: str | None, run: str | None) -> str | None:
    """Of a run that is given as an argument or as an option. Raises RunDirError where it is given twice."""
    if named is not None and run is not None:
        raise RunDirError(f"RUN {named} and --run {run} both name a run; give one of them")
    return named if named is not None else run


@contextlib.contextmanager
def reach(
    run: Path | str | None, runs_dir: Path, address: str | None, files: tuple[str, ...] = GLANCE
) -> Iterator[Reached]:
    """The run `run`, a directory or a name; by default the newest under `runs_dir`, or where there is none the only one
    on the cluster.

    Looked for as a directory, then under `runs_dir`, then on the Ray cluster at `address`, by default RAY_ADDRESS.
    `files`: which files of a run elsewhere are wanted here, as patterns; by default those that say how it stands.

    Raises RunDirError that lists the runs there are and names the nearest, and ClusterAway when Ray does not answer.
    """
    here = _here(run, runs_dir)
    if here is not None:
        yield Reached(here, MailboxControl(here), lambda: None, Place(str(here.path)))
        return
    asked = ray_address.to_look_at(address)
    if asked is None:
        if run is not None and Path(run).exists():
            RunDir.open(run)  # says what it lacks
        raise RunDirError(_unknown(run, runs_dir, None, {}))
    with joined(asked) as desks:
        found = _named(run, desks)
        if found is None:
            raise RunDirError(_unknown(run, runs_dir, asked, desks))
        with mirrored(desks[found], files) as reached:
            yield reached


def _here(run: Path | str | None, runs_dir: Path) -> RunDir | None:
    """On this machine's file system; None where it is not."""
    if run is None:
        return max(runs_in(runs_dir), key=RunDir.touched, default=None)
    for path in (Path(run).expanduser(), runs_dir / run):
        if (path / "config.yaml").is_file():
            return RunDir.open(path)
    if len(Path(run).parts) > 1:
        return RunDir.open(run)  # a path is no name: says what it lacks, and which run is nearest to it
    same = [found for found in runs_in(runs_dir) if _plain(found.path.name) == str(run)]
    return max(same, key=RunDir.touched, default=None)


def _plain(directory: str) -> str:
    """The run file's name in the name of a run directory."""
    numbered = _NUMBERED.match(directory)
    return numbered["name"] if numbered else directory


# --- on a cluster ---------------------------------------------------------------------------------


@contextlib.contextmanager
def joined(address: str) -> Iterator[Mapping[str, Any]]:
    """Inside, this process has joined the cluster; gives the desks of the runs there, by the runs' ids. Raises
    ClusterAway."""
    import ray

    from penstock.deploy.desk import NAMESPACE, desks

    known = ray_address.require(address)
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(known, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ray_address.not_joined(address, error) from error
    try:
        yield desks()
    finally:
        ray.shutdown()


@contextlib.contextmanager
def mirrored(desk: Any, files: tuple[str, ...] = GLANCE) -> Iterator[Reached]:
    """The run of a desk. Raises NoAnswer when it has ended, or does not answer in time."""
    from penstock.deploy.mirror import DeskControl, Mirror, card_of

    card = card_of(desk)
    with tempfile.TemporaryDirectory(prefix="penstock-mirror-") as folder:
        own = Path(folder) / Path(card.run_dir).name
        own.mkdir()
        mirror = Mirror(desk, card, own)
        try:
            mirror.refresh(files)
            place = Place(card.run_dir, card.node)
            yield Reached(mirror.directory, DeskControl(desk, card), lambda: mirror.refresh(files), place)
        finally:
            mirror.close()


def _named(run: Path | str | None, desks: Mapping[str, Any]) -> str | None:
    """The id of the run that is meant. Raises RunDirError where that may be several."""
    if run is None:
        meant = list(desks)
    else:
        name = str(run)
        meant = [name] if name in desks else [i for i in desks if i[:-_ID_DIGITS] == name]
        meant = meant or [i for i in desks if _plain(i[:-_ID_DIGITS]) == name]
    if len(meant) > 1:
        what = "there are several runs" if run is None else f"{run} may be one of several runs"
        raise RunDirError(f"{what} on the cluster: {', '.join(sorted(meant))}; say which with --run")
    return meant[0] if meant else None


def _unknown(run: Path | str | None, runs_dir: Path, address: str | None, desks: Mapping[str, Any]) -> str:
    """What is said of a run that is nowhere: the runs there are, and the nearest."""
    local = [found.path.name for found in sorted(runs_in(runs_dir), key=RunDir.touched, reverse=True)]
    remote = [run_id[:-_ID_DIGITS] for run_id in desks]
    places = [f"under {runs_dir.resolve()}: {_listed(local)}"]
    if address is None:
        places.append(f"no Ray cluster was asked: name one with --address, or in RAY_ADDRESS ({ray_address.FORMS})")
    else:
        places.append(f"running on the Ray cluster at {address}: {_listed(remote)}")
    if run is None:
        return f"no run was found; {'; '.join(places)}; start one with: penstock train RUN.yaml"
    known = [*local, *remote, *map(_plain, local), *map(_plain, remote)]
    near = difflib.get_close_matches(Path(run).name, known, n=1, cutoff=0.5)
    return f"there is no run {str(run)!r}{f'; nearest: {near[0]}' if near else ''}; {'; '.join(places)}"


def _listed(names: list[str], most: int = 10) -> str:
    more = f" and {len(names) - most} older" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"
