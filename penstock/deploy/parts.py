"""The parts of one run: brought up in the right order, ended in the reverse one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import ray

from penstock.deploy import plans
from penstock.deploy.around import token_account
from penstock.deploy.assemble import build_stream, held_out_job
from penstock.deploy.cluster import Cluster
from penstock.deploy.crews import Crew, ScorerSet
from penstock.deploy.desk import desk
from penstock.deploy.fleet import Member, wait_for
from penstock.deploy.learners import prepare_ranks, start_rank
from penstock.deploy.leftovers import MARK, claim, end_marked, only_one
from penstock.deploy.nodes import Ground, inputs_of, look_around, require_common_ground
from penstock.deploy.placement import Placement, place
from penstock.deploy.rollouts import start_worker
from penstock.deploy.runfile import RunFile
from penstock.deploy.scorers import start_scorer
from penstock.deploy.storehost import StoreHost, run_id_of
from penstock.deploy.transport import Route
from penstock.reward.config import MOST_SCORERS, RewardSection
from penstock.rollout.config import MOST_WORKERS
from penstock.rollout.ends import sampling_of
from penstock.rollout.evaluation import EvaluationJob
from penstock.services.contracts import PenstockError
from penstock.services.files import closed_folder, own_folder
from penstock.services.replay import LedgerRules
from penstock.services.rundir import RunDir
from penstock.services.weights.config import choose, default_folder


class Parts:
    """Cluster, store and actors of one run. Use as a context manager: leaving it ends everything that was started."""

    def __init__(self, run_file: RunFile, directory: RunDir, resume: Path | None) -> None:
        self._run_file, self._directory, self._resume = run_file, directory, resume
        self._stack = ExitStack()
        self.learners: list[Member] = []
        self.rollout = self._rollout_crew()
        self.scoring = self._scoring_crew()
        self.in_use = ScorerSet(self.scoring, self.rollout)
        """The scorers that the workers may use now."""
        self.scoring.released = self.in_use.released
        self.cluster: Cluster
        self.host: StoreHost
        self.placement: Placement
        self.crowded = ""
        """What others have left of the cluster, when that is less than the run began with."""
        self.evaluation: EvaluationJob | None = None
        self._rules: LedgerRules
        self._bound = run_file.staleness.first_lag

    def __enter__(self) -> Parts:
        try:
            self._bring_up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def workers(self) -> list[Member]:
        """The rollout workers, oldest first."""
        return self.rollout.members

    @property
    def scorers(self) -> list[Member]:
        return self.scoring.members

    @property
    def members(self) -> list[Member]:
        return [*self.learners, *self.workers, *self.scorers]

    @property
    def left(self) -> list[Member]:
        """Those that have left the run for good, while it went on."""
        return [*self.rollout.left, *self.scoring.left]

    # --- start --------------------------------------------------------------------------------------

    def _bring_up(self) -> None:
        run_file, directory = self._run_file, self._directory
        self.run_id = run_id_of(directory)
        self._stack.enter_context(only_one(self.run_id, directory.path))
        # Every process that comes of this one inherits the mark, so that what a run left behind can be found.
        end_marked(self.run_id)
        os.environ[MARK] = self.run_id
        self._stack.callback(os.environ.pop, MARK, None)
        most = run_file.learner.ranks + run_file.rollout.most_at_home + self._reward.most_at_home
        self.export = plans.export(run_file, directory)
        every = self.export.seconds if self.export else None
        self.cluster = Cluster(run_file.placement.ray_address, self.run_id, most, every)
        self._stack.callback(self.cluster.close)
        if self.cluster.joined:
            self._stack.enter_context(desk(directory, self.run_id))
        self.placement = self._place(run_file.rollout.workers, self._reward.scorers)
        self.crowded = _crowd(self.placement, {})
        self.route = self._choose_route()
        address = ray.util.get_node_ip_address() if self._several else None
        self.host = StoreHost(run_file.store, directory, self.run_id, address, run_file.deadlines.start)
        self._stack.callback(self.host.close)
        self._stack.callback(self._end_actors)
        looks = look_around(self._ground()) if self.cluster.nodes > 1 else []
        self._start_actors()
        self._open_data()
        require_common_ground(looks, directory, run_file.deadlines.answer)

    def _ground(self) -> Ground:
        """What every node must see."""
        written = (self.route.folder,) if self.route.transport == "file" else ()
        inputs = inputs_of(self._run_file)
        return Ground(self._directory.path, self.run_id, written, inputs, self.host.address.url)

    @cached_property
    def _several(self) -> bool:
        """Whether several machines may hold actors of this run: a cluster that grows has a second one to come."""
        return self.cluster.nodes > 1 or self._grows

    @cached_property
    def _grows(self) -> bool:
        """Ray is asked once; that takes seconds, and an autoscaler does not come later."""
        said = self._run_file.placement.grows
        return self.cluster.grows if said is None else said

    def _choose_route(self) -> Route:
        """How weights travel; its folder is emptied now and removed at the end."""
        run_file = self._run_file
        chosen, why = choose(run_file.weights.transport, self._several, self.placement.device == "cuda")
        if chosen is None:
            raise PenstockError(f"weights.transport {run_file.weights.transport!r} cannot be used in this run: {why}")
        given = run_file.weights.folder
        # A folder of the run's own inside of the one that was named: it is emptied here, and removed at the end.
        folder = given / self.run_id if given else default_folder(chosen, self.run_id, self._directory.path)
        if chosen in ("shm", "file"):
            # What a killed driver left there is of no use: the learner publishes its weights anew.
            shutil.rmtree(folder, ignore_errors=True)
            in_shm = chosen == "shm" and given is None
            if in_shm:
                claim(folder.parent)
            elif chosen == "shm":  # where everybody may write
                own_folder(folder)
            closed_folder(folder)
            self._stack.callback(shutil.rmtree, folder.parent if in_shm else folder, ignore_errors=True)
        return Route(chosen, folder, run_file.weights.deadline)

    def _start_actors(self) -> None:
        """All at once: what takes long is their imports, and they overlap."""
        run_file, log = self._run_file, self._directory.log
        for _ in range(self._reward.scorers):
            self.scoring.add()
        for rank in range(run_file.learner.ranks):
            name = f"learner-{rank}"
            options, folder = self.placement.options("learner"), run_file.algorithm.folder
            start = partial(start_rank, name, log(name), options, folder, self.export)
            self.learners.append(Member(name, "learner", log(name), start))
            self.learners[-1].launch()
        for _ in range(run_file.rollout.workers):
            self.rollout.add()

    # --- those that come and go ---------------------------------------------------------------------

    @property
    def _reward(self) -> RewardSection:
        if self._run_file.reward is None:
            raise PenstockError("the run file has no `reward` section: there is nothing to learn from")
        return self._run_file.reward

    def _rollout_crew(self) -> Crew:
        return Crew(
            role="rollout",
            noun="rollout worker",
            start=self._start_worker,
            log=self._directory.log,
            require_room=self._room_for_workers,
            least=0,
            most=MOST_WORKERS,
            why_least="",
            parting="hands on what it holds",
            last_words=lambda member: {"tokens": token_account([member])},
        )

    def _scoring_crew(self) -> Crew:
        return Crew(
            role="scorer",
            noun="scorer",
            start=self._start_scorer,
            log=self._directory.log,
            require_room=self._room_for_scorers,
            least=1,
            most=MOST_SCORERS,
            why_least="without a scorer no answer reaches the learner, and workers end when nobody judges theirs",
            parting="answers for what it has",
            last_words=lambda member: {"groups": int(member.stats.get("scorer/groups", 0))},
        )

    def _start_worker(self, name: str, log: Path, restarts: int) -> Any:
        plan = plans.rollout_plan(self._run_file, self._directory, self.host.address, self.route, self._resume)
        options, scorers = self.placement.options("rollout"), (self.in_use.number, self.in_use.handles)
        return start_worker(name, log, options, plan, scorers, self.learners[0].handle, restarts)

    def _start_scorer(self, name: str, log: Path, _: int) -> Any:
        run_file, reward = self._run_file, self._reward
        arguments = {
            "section": reward,
            "start": run_file.model if run_file.algorithm.needs_reference else None,
            "temperature": run_file.rollout.sampling.temperature,
            "device": self.placement.device_of("scorer"),
            "environment": {name: os.environ[name] for name in reward.environment if name in os.environ},
            "export": self.export,
        }
        return start_scorer(name, log, self.placement.options("scorer"), arguments)

    def _room_for_workers(self, count: int) -> str:
        if (most := self._run_file.rollout.max_workers) is not None and count > most:
            raise PenstockError(f"{count} rollout workers are more than rollout.max_workers, which is {most}")
        return self._room(count, len(self.scoring.staying))

    def _room_for_scorers(self, count: int) -> str:
        if (most := self._reward.max_scorers) is not None and count > most:
            raise PenstockError(f"{count} scorers are more than reward.max_scorers, which is {most}")
        return self._room(len(self.rollout.staying), count)

    def _room(self, workers: int, scorers: int) -> str:
        """What has to be waited for, if anything. Raises PenstockError, which says what is lacking, when the cluster
        has no room for so many and gets none by itself."""
        wanted = self._place(workers, scorers)
        lacking = wanted.lacking(ray.cluster_resources())
        if lacking:
            return f"The cluster has to grow first: {lacking}; its autoscaler is waited for"
        return _crowd(wanted, self._place(len(self.rollout.staying), len(self.scoring.staying)).demand())

    def _place(self, workers: int, scorers: int) -> Placement:
        ranks = self._run_file.learner.ranks
        home = self.cluster.home if self.cluster.joined and not self._several else None
        return place(self._run_file, workers=workers, ranks=ranks, scorers=scorers, grows=self._grows, home=home)

    def hold_gate(self, held: bool) -> None:
        """Raises StoreError when the store is away: whoever asked is told, and asks again."""
        self.host.glance.hold(held)

    def bound_lag(self, bound: int) -> None:
        """Bound the lag anew, at the gate and at every worker. Raises StoreError when the store is away; then nothing
        has changed."""
        self.host.glance.amend(replace(self._rules, max_lag=bound))
        self._bound = bound
        for worker in self.workers:
            if worker.state == "running":
                self.tell_bound(worker)

    def tell_bound(self, worker: Member) -> None:
        """A worker starts with the run file's bound; it is told another when it begins to generate, and at a change."""
        worker.handle.set_max_lag.remote(self._bound)

    def _open_data(self) -> None:
        """While the actors start: how long the stream is, and the held-out prompts."""
        from penstock.services.models import load_tokenizer

        run_file = self._run_file
        tokenizer = load_tokenizer(run_file.model)
        prompts = build_stream(run_file.data, tokenizer, run_file.seed).length
        self._rules = plans.ledger_rules(run_file, prompts)
        new = self._resume is None
        self.host.surely(lambda store: (store.attach if new else store.amend)(self._rules))
        if not new:
            self.host.surely(lambda store: store.lapse())  # nobody is left of the start before
        training = sampling_of(run_file.rollout.sampling, tokenizer)
        self.evaluation = held_out_job(run_file.evaluation, self._reward, training, tokenizer)

    def learners_prepared(self, meanwhile: Callable[[], object]) -> bool:
        """Tell the ranks what they are to do, and wait until all know; False when one of them is gone instead.

        Raises ActorLost when one cannot be told, DeadlinePassed when one does not answer."""
        deadline = self._run_file.deadlines.start
        asked = self.prepare_learning(self._resume)
        answers = {member.name: answer for member, answer in zip(self.learners, asked, strict=True)}
        try:
            wait_for(answers, "to be told what to learn", deadline, "deadlines.start", meanwhile)
        except ray.exceptions.RayActorError:
            return False
        return True

    def prepare_learning(self, checkpoint: Path | None) -> list[Any]:
        """Tell ranks that are ready to go on from a checkpoint, or to begin; returns the answers to wait for."""
        for worker in self.workers if self.route.backend is not None else ():
            if worker.state in ("starting", "ready", "running"):
                worker.handle.use_learner.remote(self.learners[0].handle)
        return prepare_ranks(
            [member.handle for member in self.learners],
            plans.learner_plan(self._run_file, self._directory, checkpoint),
            self.host.address,
            self.route,
            plans.step_limits(self._run_file),
        )

    # --- end ----------------------------------------------------------------------------------------

    def _end_actors(self) -> None:
        for member in self.members:
            member.kill()


def _crowd(wanted: Placement, own: Mapping[str, float]) -> str:
    """What has to be waited for because others use the cluster too; `own` is what the run has of it already."""
    free = ray.available_resources()
    lacking = wanted.lacking({kind: free.get(kind, 0) + own.get(kind, 0) for kind in {*free, *own}}, "free for it are")
    return f"Others use the cluster too: {lacking}; what finds no room waits until there is" if lacking else ""
