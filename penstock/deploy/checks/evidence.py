"""Rules about what is kept and measured of steps beside the training: what archives and audits need and cost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from penstock.deploy.checks.context import Context, all_rules, existing_folder, rule
from penstock.deploy.findings import Finding
from penstock.deploy.payload import payload_of
from penstock.services.contracts import PenstockError

FACTS_BYTES = 8 * 1024
"""Of sections and metrics in the header of an archived batch."""
UNITS = ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"))


@rule("model", "data", "archive", "learner", "rollout", "engine", "algorithm")
def an_archive_fits_on_the_disk(ctx: Context) -> Iterator[Finding]:
    run, archive = ctx.run_file, ctx.run_file.archive
    if archive.every == 0 or isinstance(ctx.model, PenstockError):
        return
    payload = payload_of(run, ctx.model)
    # The groups themselves are kept with the weights only.
    per_group = payload.columns + (payload.group if archive.weights else 0)
    batch = FACTS_BYTES + run.learner.groups_per_step * per_group
    weights = _weights(ctx, 4 if run.learner.dtype == "float32" else 2) if archive.weights else 0
    # One more is being written while the oldest is still there.
    whole = (batch + weights) * (archive.keep_last + 1)
    parts = f"up to {_size(batch)} of batch" + (f" and {_size(weights)} of weights" if weights else "")
    yield ctx.note(
        "archive.keep_last", f"every archived step takes {parts}, {archive.keep_last + 1} of them {_size(whole)}"
    )
    free = shutil.disk_usage(existing_folder(Path(run.runs_dir))).free
    if whole > free:
        remedy = "lower archive.keep_last, or choose another disk"
        yield ctx.warning("archive.keep_last", f"the disk of runs_dir has {_size(free)} free", remedy=remedy)


def _weights(ctx: Context, width: int) -> int:
    """Bytes of the weights that a step started from; with the value model where it has a backbone of its own."""
    assert not isinstance(ctx.model, PenstockError), "looked at before"
    models = 2 if ctx.run_file.algorithm.value.own_backbone else 1
    return width * ctx.model.parameters * models


@rule("model", "data", "store", "staleness", "learner", "rollout", "engine")
def the_store_holds_what_may_be_outstanding(ctx: Context) -> Iterator[Finding]:
    if isinstance(ctx.model, PenstockError):
        return
    run = ctx.run_file
    groups, one = (run.staleness.largest_lag + 1) * run.learner.groups_per_step, payload_of(run, ctx.model).group
    if groups * one > run.store.max_bytes:
        yield ctx.warning(
            "store.max_bytes",
            f"{groups} groups may be outstanding, (max_lag + 1) × groups_per_step, of up to {_size(one)} each: "
            f"{_size(groups * one)}, and {_size(run.store.max_bytes)} are allowed. Rollout waits when these are full",
            remedy=f"set it to {groups * one} if the store has the memory; or lower rollout.sampling.max_kept, "
            "rollout.sampling.max_tokens or staleness.max_lag",
        )


@rule("archive")
def weights_are_archived_with_batches(ctx: Context) -> Iterator[Finding]:
    archive = ctx.run_file.archive
    if archive.weights and archive.every == 0:
        remedy = "set archive.every to a number of steps"
        yield ctx.warning("archive.weights", "no step is archived, since archive.every is 0", remedy=remedy)


@rule("audit")
def sequences_are_audited_at_some_step(ctx: Context) -> Iterator[Finding]:
    audit = ctx.run_file.audit
    # config.yaml names every key: only what differs from the default was wanted by somebody.
    if audit.every == 0 and audit.sequences != type(audit)().sequences:
        remedy = "set audit.every to a number of steps"
        yield ctx.warning("audit.sequences", "no step is audited, since audit.every is 0", remedy=remedy)


@rule("audit", "weights")
def audits_can_read_weights_back(ctx: Context) -> Iterator[Finding]:
    transport = ctx.run_file.weights.transport
    if ctx.run_file.audit.every and transport in ("nccl", "ipc"):
        yield ctx.error(
            "audit.every",
            f"an audit reads published weights back, and weights.transport {transport} sends them from card to card "
            "without leaving a copy",
            allowed="0, or weights.transport auto, shm or file",
        )


@rule("audit", "weights", "model", "staleness", "learner")
def audits_have_room(ctx: Context) -> Iterator[Finding]:
    run = ctx.run_file
    if run.audit.every == 0 or isinstance(ctx.model, PenstockError) or run.weights.transport in ("nccl", "ipc"):
        return
    width = 4 if run.learner.dtype == "float32" else 2
    one, kept = width * ctx.model.parameters, run.staleness.largest_lag + 3
    where = str(run.weights.folder or "/dev/shm") if run.weights.transport != "file" else "the folder of the weights"
    yield ctx.note(
        "audit.every",
        f"audits keep the last {kept - 1} published versions, and one more is being written: {kept} times {_size(one)} "
        f"in {where}; learner rank 0 holds a copy of the model besides, {_size(one)}",
    )
    folder = existing_folder(run.weights.folder or Path("/dev/shm"))
    free = shutil.disk_usage(folder).free
    if run.weights.transport != "file" and not ctx.joins_a_cluster and one * kept > free:
        remedy = "lower staleness.max_lag, set audit.every to 0, or choose another weights.folder"
        yield ctx.warning("audit.every", f"{folder} has {_size(free)} free", remedy=remedy)


def _size(count: float) -> str:
    for unit, name in UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:.0f} bytes"


RULES = all_rules(globals())
