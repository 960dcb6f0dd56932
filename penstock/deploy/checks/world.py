"""Rules about what lies outside of the run file: the store, the page, this machine. Starts nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from penstock.deploy.checks.context import STAGES, Context, Stage, all_rules, existing_folder, rule
from penstock.deploy.findings import Finding
from penstock.learner.checkpoints import UNRATED
from penstock.reward import confinement
from penstock.services.contracts import PenstockError
from penstock.services.dashboard import listener
from penstock.services.files import unreachable

GIB = 1024**3
LEAST_DISK = GIB
"""Below this a run is likely to end at its first checkpoint."""
STORE_DEADLINE = 3.0
"""Seconds for a Redis server to answer."""
ENGINE_BYTES = 1.2 * GIB
"""A vLLM engine on CPU without its weights and KV cache, measured with a 0.8M-parameter model."""
_ROLES: dict[Stage, tuple[str, ...]] = {
    "train": ("rollout", "learner", "scorer"),
    "sft": ("learner",),
    "evaluate": (),
}
"""Whose actors Ray places."""
LEARNER_BYTES = 0.8 * GIB
"""A DeepSpeed rank on CPU without its model."""


@rule("reward")
def rules_can_be_shut_in(ctx: Context) -> Iterator[Finding]:
    why = confinement.lacking() if ctx.run_file.reward and ctx.run_file.reward.confine else ""
    if why:
        problem = f"reward functions cannot be shut in here and can read other processes' memory: {why}"
        remedy = "run on such a kernel, or set reward.confine to false if every reward function is trusted"
        yield ctx.warning("reward.confine", problem, remedy=remedy)


@rule("store")
def the_store_answers(ctx: Context) -> Iterator[Finding]:
    store = ctx.run_file.store
    if store.url is None:
        from penstock.services.store.binary import find_binary

        try:
            find_binary()
        except PenstockError as error:
            yield ctx.error("store.url", str(error))
        return
    from penstock.services.store.connection import Connection, StoreRefused

    password, limit = store.password(), "what a check waits for"
    connection = Connection(store.url, "penstock-check", deadline=STORE_DEADLINE, password=password, limit=limit)
    try:
        connection.require()
    except StoreRefused as error:
        state = "is set here" if password is not None else "is not set here"
        yield ctx.error("store.password_env", str(error), remedy=f"{store.password_env} {state}")
    except PenstockError as error:
        remedy = "start the server, correct the url, or leave it out for a private server"
        yield ctx.error("store.url", str(error), remedy=remedy)
    finally:
        connection.close()


@rule("dashboard", stages=("train", "sft"))
def the_page_can_be_served(ctx: Context) -> Iterator[Finding]:
    yield from ctx.within("dashboard", listener.problems(ctx.run_file.dashboard))


@rule(stages=STAGES)
def runs_can_be_written(ctx: Context) -> Iterator[Finding]:
    folder = Path(ctx.run_file.runs_dir)
    if why := unreachable(folder):
        yield ctx.error("runs_dir", why)
        return
    existing = existing_folder(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        yield ctx.error("runs_dir", f"{existing} is no folder that you may write to")
        return
    free = shutil.disk_usage(existing).free
    if free < LEAST_DISK:
        yield ctx.error("runs_dir", f"the disk of {existing} has {free / GIB:.1f} GiB free", allowed="1 GiB or more")


@rule("weights", "reward")
def folders_can_be_looked_into(ctx: Context) -> Iterator[Finding]:
    folders: dict[str, Path | str | None] = {"weights.folder": ctx.run_file.weights.folder}
    if ctx.run_file.reward is not None:
        folders["reward.folder"] = ctx.run_file.reward.folder
    for key, folder in folders.items():
        if folder is not None and (why := unreachable(folder)):
            yield ctx.error(key, why)


def _trained(ctx: Context, parameters: int) -> int:
    """Parameters that are trained: the policy's, and again so many for a value model with a backbone of its own."""
    return parameters * (2 if ctx.run_file.algorithm.value.own_backbone else 1)


@rule("model", "checkpoints", "algorithm")
def checkpoints_fit_on_the_disk(ctx: Context) -> Iterator[Finding]:
    if isinstance(ctx.model, PenstockError):
        return
    keep = ctx.run_file.checkpoints
    # At most: those kept, one being written, and the final model; with `keep_best` the best, and those that still wait
    # for their evaluation. 16 bytes per parameter: weights, two moments, and the model in Hugging Face format.
    for_best = 0 if keep.keep_best is None else 1 + UNRATED
    wanted = 16 * _trained(ctx, ctx.model.parameters) * (keep.keep_last + for_best + 2)
    free = shutil.disk_usage(existing_folder(Path(ctx.run_file.runs_dir))).free
    if LEAST_DISK <= free < wanted:  # below that another rule has spoken
        problem = f"the disk has {free / GIB:.1f} GiB free, checkpoints need about {wanted / GIB:.1f} GiB"
        yield ctx.warning("runs_dir", problem, remedy="lower checkpoints.keep_last, or choose another disk")


@rule("model", "rollout", "engine", "learner", "placement", "algorithm", "reward")
def memory_suffices(ctx: Context) -> Iterator[Finding]:
    if isinstance(ctx.model, PenstockError) or ctx.joins_a_cluster or ctx.gpus:
        return  # on GPUs the engines take a share of what there is, by engine.memory_share
    run = ctx.run_file
    if run.engine.kind == "paced":
        return  # there is no engine
    width = 4 if run.engine.dtype == "float32" else 2
    engine = ENGINE_BYTES + run.engine.kv_cache_gib * GIB + width * ctx.model.parameters
    learner = LEARNER_BYTES * run.learner.ranks + 16 * _trained(ctx, ctx.model.parameters)
    scorers = run.reward.scorers if run.reward is not None else 1
    reference = 4 * ctx.model.parameters * scorers if run.algorithm.needs_reference else 0
    wanted = run.rollout.workers * engine + learner + reference
    free = psutil.virtual_memory().available
    if wanted > free:
        yield ctx.warning(
            "rollout.workers",
            f"{run.rollout.workers} engines and {run.learner.ranks} learner ranks need about {wanted / GIB:.1f} GiB, "
            f"free are {free / GIB:.1f} GiB",
            remedy="fewer workers, a smaller engine.kv_cache_gib, or a smaller model",
        )


@rule("placement", stages=STAGES)
def gpus_that_are_asked_for_are_here(ctx: Context) -> Iterator[Finding]:
    placement = ctx.run_file.placement
    if ctx.joins_a_cluster or placement.device == "cpu":
        return
    if placement.device == "cuda" and ctx.has_no_gpu:
        remedy = "run where there is one, or join a cluster with placement.ray_address"
        yield ctx.error("placement.device", "this machine has no GPU", allowed="auto, cpu", remedy=remedy)
        return
    for role in _ROLES[ctx.stage]:
        asked = getattr(placement, role).gpus or 0
        if asked and ctx.has_no_gpu:
            remedy = "leave it out, or run where there is one"
            problem = "this machine has no GPU: it is of no effect, and everything runs on the CPU"
            yield ctx.warning(f"placement.{role}.gpus", problem, remedy=remedy)
        elif asked > ctx.gpus > 0:
            yield ctx.error(
                f"placement.{role}.gpus",
                f"one actor asks for {asked:g} GPUs, and this machine has {ctx.gpus}",
                allowed=f"up to {ctx.gpus}",
            )


def _shares_suffice(ctx: Context) -> Iterator[Finding]:
    """Where the run file says how many GPUs, or what share of one, an actor has."""
    run, placement = ctx.run_file, ctx.run_file.placement

    def one(asked: float | None, whole: int) -> float:
        return asked if asked is not None else whole / 2 if placement.colocate and whole == 1 else whole

    engine, rank = one(placement.rollout.gpus, run.engine.tensor_parallel), one(placement.learner.gpus, 1)
    wanted = run.rollout.workers * engine + run.learner.ranks * rank
    if wanted > ctx.gpus and max(engine, rank) <= ctx.gpus:  # of one actor that wants too many another rule speaks
        yield ctx.error(
            "rollout.workers",
            f"{run.rollout.workers} engines of {engine:g} GPUs and {run.learner.ranks} learner ranks of {rank:g} want "
            f"{wanted:g} GPUs, this machine has {ctx.gpus}",
            remedy="fewer of them, or smaller shares in placement.*.gpus",
        )


@rule("rollout", "engine", "learner", "placement")
def processors_suffice(ctx: Context) -> Iterator[Finding]:
    run = ctx.run_file
    if ctx.joins_a_cluster:
        return
    if ctx.gpus:
        engines = run.rollout.workers * run.engine.tensor_parallel
        wanted: float = max(engines, run.learner.ranks) if run.placement.colocate else engines + run.learner.ranks
        asked = (run.placement.rollout.gpus, run.placement.learner.gpus)
        if asked != (None, None):
            yield from _shares_suffice(ctx)
        elif wanted > ctx.gpus:
            yield ctx.error(
                "rollout.workers",
                f"{run.rollout.workers} engines of {run.engine.tensor_parallel} GPUs and {run.learner.ranks} learner "
                f"ranks want {wanted} GPUs, this machine has {ctx.gpus}",
                remedy="fewer of them, placement.colocate: true, or fractions in placement.*.gpus",
            )
        return
    threads = run.rollout.workers * run.engine.threads + run.learner.ranks * run.placement.learner_threads
    # One more than there are cores is usual: engines and learner wait for each other now and then.
    if threads > ctx.cpus + 1:
        yield ctx.warning(
            "rollout.workers",
            f"engines and learner want {threads} threads, this machine has {ctx.cpus} cores: they will take turns",
        )


RULES = all_rules(globals())
