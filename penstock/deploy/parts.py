"""The parts of one run: brought up in the right order, ended in the reverse one."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import ray

from penstock.deploy import plans
from penstock.deploy.assemble import build_stream, held_out_job
from penstock.deploy.cluster import Cluster
from penstock.deploy.desk import desk
from penstock.deploy.fleet import Member
from penstock.deploy.learners import prepare_ranks, start_rank
from penstock.deploy.leftovers import MARK, end_marked
from penstock.deploy.nodes import Ground, inputs_of, look_around, require_common_ground
from penstock.deploy.placement import Placement, place
from penstock.deploy.rollouts import start_worker
from penstock.deploy.runfile import RunFile
from penstock.deploy.scorers import start_scorer
from penstock.deploy.storehost import StoreHost, run_id_of
from penstock.deploy.transport import Route
from penstock.rollout.ends import sampling_of
from penstock.rollout.evaluation import EvaluationJob
from penstock.services.contracts import PenstockError
from penstock.services.replay import LedgerRules
from penstock.services.rundir import RunDir
from penstock.services.weights.config import choose, default_folder


class Parts:
    """Cluster, store and actors of one run. Use as a context manager: leaving it ends everything that was started."""

    def __init__(self, run_file: RunFile, directory: RunDir, resume: Path | None) -> None:
        self._run_file, self._directory, self._resume = run_file, directory, resume
        self._stack = ExitStack()
        self.scorers: list[Member] = []
        self.learners: list[Member] = []
        self.workers: list[Member] = []
        self.left: list[Member] = []
        """Workers that have left the run for good, while it went on."""
        self.cluster: Cluster
        self.host: StoreHost
        self.placement: Placement
        self.evaluation: EvaluationJob | None = None
        self._numbers = 0
        self._rules: LedgerRules
        self._bound = run_file.staleness.max_lag

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
    def members(self) -> list[Member]:
        return [*self.learners, *self.workers, *self.scorers]

    # --- start --------------------------------------------------------------------------------------

    def _bring_up(self) -> None:
        run_file, directory = self._run_file, self._directory
        self.run_id = run_id_of(directory)
        # Every process that comes of this one inherits the mark, so that what a run left behind can be found.
        end_marked(self.run_id)
        os.environ[MARK] = self.run_id
        self._stack.callback(os.environ.pop, MARK, None)
        ranks, workers = run_file.learner.ranks, run_file.rollout.workers
        most = run_file.rollout.most_at_home
        self.cluster = Cluster(run_file.placement.ray_address, self.run_id, actors=ranks + most + 1)
        self._stack.callback(self.cluster.close)
        if self.cluster.joined:
            self._stack.enter_context(desk(directory, self.run_id))
        self.placement = place(run_file, workers=workers, ranks=ranks)
        self.route = self._choose_route()
        address = ray.util.get_node_ip_address() if self.cluster.several else None
        self.host = StoreHost(run_file.store, directory, self.run_id, address)
        self._stack.callback(self.host.close)
        self._stack.callback(self._end_actors)
        looks = look_around(self._ground()) if self.cluster.several else []
        self._start_actors()
        self._open_data()
        require_common_ground(looks, directory)

    def _ground(self) -> Ground:
        """What every node must see."""
        written = (self.route.folder,) if self.route.transport == "file" else ()
        inputs = inputs_of(self._run_file)
        return Ground(self._directory.path, self.run_id, written, inputs, self.host.address.url)

    def _choose_route(self) -> Route:
        """How weights travel; its folder is emptied now and removed at the end."""
        run_file = self._run_file
        chosen, why = choose(run_file.weights.transport, self.cluster.several, self.placement.device == "cuda")
        if chosen is None:
            raise PenstockError(f"weights.transport {run_file.weights.transport!r} cannot be used in this run: {why}")
        given = run_file.weights.folder
        # A folder of the run's own inside of the one that was named: it is emptied here, and removed at the end.
        folder = given / self.run_id if given else default_folder(chosen, self.run_id, self._directory.path)
        if chosen in ("shm", "file"):
            # What a killed driver left there is of no use: the learner publishes its weights anew.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            own = folder.parent if chosen == "shm" and given is None else folder
            self._stack.callback(shutil.rmtree, own, ignore_errors=True)
        return Route(chosen, folder, run_file.weights.deadline)

    def _start_actors(self) -> None:
        """All at once: what takes long is their imports, and they overlap."""
        run_file, log = self._run_file, self._directory.log
        if run_file.reward is None:
            raise PenstockError("the run file has no `reward` section: there is nothing to learn from")
        arguments = {
            "section": run_file.reward,
            "start": run_file.model if run_file.algorithm.needs_reference else None,
            "temperature": run_file.rollout.sampling.temperature,
            "device": self.placement.device_of("scorer"),
            "environment": {name: os.environ[name] for name in run_file.reward.environment if name in os.environ},
        }
        scorer = partial(
            start_scorer,
            f"{self.run_id}-scorer-0",
            log("scorer-0"),
            self.placement.options("scorer"),
            arguments,
        )
        self.scorers.append(Member("scorer-0", "scorer", log("scorer-0"), scorer))
        for rank in range(run_file.learner.ranks):
            name = f"learner-{rank}"
            options, folder = self.placement.options("learner"), run_file.algorithm.folder
            start = partial(start_rank, name, log(name), options, folder)
            self.learners.append(Member(name, "learner", log(name), start))
        for member in (*self.scorers, *self.learners):
            member.launch()
        for _ in range(run_file.rollout.workers):
            self.add_worker()

    def require_room(self, workers: int) -> None:
        """Raises PenstockError, which says what is lacking, when the run may not have so many workers."""
        if (most := self._run_file.rollout.max_workers) is not None and workers > most:
            raise PenstockError(f"{workers} rollout workers are more than rollout.max_workers, which is {most}")
        place(self._run_file, workers=workers, ranks=self._run_file.learner.ranks)

    def add_worker(self) -> Member:
        """One more rollout worker; returns at once, while it starts."""
        number, log = self._numbers, self._directory.log
        self._numbers += 1
        name = f"rollout-{number}"
        plan = plans.rollout_plan(self._run_file, self.host.address, self.route, self._resume)
        handles = [scorer.handle for scorer in self.scorers]
        start = partial(
            start_worker,
            name,
            log(name),
            self.placement.options("rollout"),
            plan,
            handles,
            self.learners[0].handle,
        )
        member = Member(name, "rollout", log(name), start)
        member.launch()
        self.workers.append(member)
        return member

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
        (self.host.store.attach if self._resume is None else self.host.store.amend)(self._rules)
        training = sampling_of(run_file.rollout.sampling, tokenizer)
        assert run_file.reward is not None, "checked before the actors were started"
        self.evaluation = held_out_job(run_file.evaluation, run_file.reward, training, tokenizer)

    def begin_learning(self) -> None:
        """Let the ranks meet and load; rank 0 publishes the first weights, then trains."""
        prepare_ranks(
            [member.handle for member in self.learners],
            plans.learner_plan(self._run_file, self._directory, self._resume),
            self.host.address,
            self.route,
            plans.step_limits(self._run_file),
            self._run_file.deadlines.start,
        )
        for member in self.learners:
            member.run()

    # --- end ----------------------------------------------------------------------------------------

    def _end_actors(self) -> None:
        for member in self.members:
            member.kill()
