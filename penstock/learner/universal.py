"""A checkpoint loaded by another number of ranks than has written it, through DeepSpeed's universal checkpoint.

DeepSpeed's code for that reads files by itself and would unpickle them freely. Here torch is told to read tensors and
plain values only, whatever it is asked for.
"""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.learner import checkpoints
from penstock.learner.state_files import STATE, Form, tensors_only
from penstock.services.contracts import PenstockError

if TYPE_CHECKING:
    from penstock.learner.engines import Engines
    from penstock.learner.ranks import Team

_DONE = "done"


def restore(engines: Engines, team: Team, folder: Path, beat: Callable[[str], None] = lambda _: None) -> None:
    """Load the checkpoint in `folder`, whichever number of ranks has written it, with ZeRO or without. All ranks call
    it alike. Raises PenstockError."""
    written = checkpoints.read(folder)
    if written.zero_stage == 0:
        # Every rank had the whole state, and wrote the same.
        engines.load(folder, Form.OWN if engines.policy.stage == 0 else Form.UNSHARDED)
    elif written.ranks == team.size and written.zero_stage == engines.policy.stage:
        engines.load(folder)
    else:
        beat(f"bringing a checkpoint of {written.ranks} ranks into the form for {team.size}")
        with _converted(team, folder) as universal:
            engines.load(universal, Form.UNIVERSAL)
            team.barrier()  # nobody reads it any more


@contextmanager
def _converted(team: Team, folder: Path) -> Iterator[Path]:
    """Beside the checkpoint, where all ranks see it; made and removed by rank 0. What an interrupted attempt left is
    gone."""
    target = folder.with_name(f".{folder.name}.universal")
    failure = ""
    if team.leads:
        shutil.rmtree(target, ignore_errors=True)
        try:
            for part in sorted(path.parent for path in folder.rglob(STATE) if path.is_dir()):
                _convert(part / STATE, target / part.relative_to(folder) / STATE)
        except (PenstockError, OSError) as error:
            failure = str(error)
    # All fail together, or nobody would come to the load that others wait in.
    failure = team.announce((failure or _DONE).encode()).decode()
    try:
        if failure != _DONE:
            raise PenstockError(f"the checkpoint {folder} cannot be brought into the universal form: {failure}")
        yield target
    finally:
        if team.leads:
            shutil.rmtree(target, ignore_errors=True)


def _convert(source: Path, target: Path) -> None:
    """One engine's state, the converter's own way: files in, files out. Raises PenstockError."""
    from deepspeed.checkpoint import ds_to_universal

    target.mkdir(parents=True)
    wanted = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    try:
        with tensors_only():
            ds_to_universal.main(wanted)
    except Exception as error:
        raise PenstockError(f"{source}: {type(error).__name__}: {error}") from error
