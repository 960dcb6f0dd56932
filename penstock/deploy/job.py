"""What is different when a run is a job of a Ray cluster: `ray job submit --working-dir . -- penstock train RUN.yaml`.

Ray copies the working directory to every node, under its own temporary folder, and gives it up some time after the job.
It stops a job by SIGTERM to all its processes, and by SIGKILL three seconds later.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.deploy.config import DeadlinesSection

_COPY = re.compile(r"^(?P<root>/.*/runtime_resources/working_dir_files/[^/]+)(?:/(?P<below>.*))?$")
"""Where Ray puts a working directory."""
_GRACE = "RAY_JOB_STOP_WAIT_TIME_S"
"""Seconds between SIGTERM and SIGKILL, read by the job's supervisor when the job is stopped."""
_SUPERVISOR, _SUPERVISORS = "_ray_internal_job_actor_{}", "SUPERVISOR_ACTOR_RAY_NAMESPACE"


def submission() -> str:
    """The submission id of the job that this process belongs to; empty where it belongs to none."""
    try:
        described = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    except ValueError:
        return ""
    return str(described.get("metadata", {}).get("job_submission_id", ""))


# --- the working directory ------------------------------------------------------------------------


def copy_root(path: Path) -> Path | None:
    """The working directory's copy that `path` lies in; None where it lies in none."""
    found = _COPY.match(str(path))
    return Path(found["root"]) if found else None


def lasting(folder: Path) -> Path:
    """Where to keep what would be in `folder`: a folder of the user's own for one that lies in a copy of a working
    directory, which does not last; otherwise `folder` itself."""
    root = copy_root(folder)
    return folder if root is None else Path.home() / "penstock" / folder.relative_to(root)


def found_again(value: Any) -> Any:
    """`value`, a part of a run file, with paths into an earlier copy of the working directory turned to where the same
    files are now: in the present copy, or in the folder where one stands. What is not there stays as it was."""
    if isinstance(value, dict):
        return {key: found_again(below) for key, below in value.items()}
    if isinstance(value, list):
        return [found_again(below) for below in value]
    found = _COPY.match(value) if isinstance(value, str) else None
    if found is None:
        return value
    now = (copy_root(Path.cwd()) or Path.cwd()) / (found["below"] or "")
    return str(now) if now.exists() else value


# --- its end --------------------------------------------------------------------------------------


def ask_for_patience(deadlines: DeadlinesSection) -> str:
    """Have Ray wait between SIGTERM and SIGKILL, when this job is stopped, as long as an end may take; what a person
    should know where it will not, else an empty text. Needs a cluster that has been joined; of no effect where this is
    no job.

    A grace period that was given with the job, or with the cluster, is left as it is; where nothing could be drained in
    it, that is told.
    """
    import ray

    seconds, least = deadlines.for_an_end, deadlines.drain
    job, given = submission(), os.environ.get(_GRACE)
    if not job:
        return ""
    if given is not None:
        return _too_short(f"{_GRACE} is {given}", seconds) if not _suffices(given, least) else ""
    wanted, name = str(int(seconds) + 1), _GRACE

    def wait_longer(_: Any) -> None:  # defined here, so that it travels whole and the supervisor imports nothing
        import os

        os.environ.setdefault(name, wanted)

    try:
        supervisor = ray.get_actor(_SUPERVISOR.format(job), namespace=_SUPERVISORS)
        ray.get(supervisor.__ray_call__.remote(wait_longer), timeout=deadlines.answer)
    except (ValueError, AttributeError, ray.exceptions.RayError) as error:  # another version of Ray
        return _too_short(f"Ray did not take a longer one ({type(error).__name__})", seconds)
    return ""


def _suffices(given: str, seconds: float) -> bool:
    try:
        return int(given) >= seconds
    except ValueError:  # what Ray cannot read ends the job at once
        return False


def _too_short(what: str, seconds: float) -> str:
    remedy = json.dumps({"env_vars": {_GRACE: str(int(seconds) + 1)}})
    return (
        f"`ray job stop` may kill this run before its checkpoint is written: {what}, and a clean end may take "
        f"{seconds:g} s; submit with --runtime-env-json '{remedy}'"
    )
