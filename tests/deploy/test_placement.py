"""What actors ask of Ray, on a machine with and without GPUs; Ray's answer is given by the test."""

from __future__ import annotations

import pytest
import ray

from penstock.deploy.placement import Placement, place
from penstock.deploy.runfile import RunFile
from penstock.services.contracts import PenstockError


def run_file(**sections) -> RunFile:
    needed = {"model": {"path": "/m"}, "data": {"sources": {"d": {"path": "/d.jsonl"}}}}
    return RunFile.model_validate(needed | sections)


def placed(monkeypatch, resources, *, workers=2, ranks=1, scorers=1, grows=False, **sections) -> Placement:
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    return place(run_file(**sections), workers=workers, ranks=ranks, scorers=scorers, grows=grows)


def test_without_gpus_everything_runs_on_cpus(monkeypatch):
    placement = placed(monkeypatch, {"CPU": 8.0})
    options = placement.options("rollout")
    assert (placement.device, options["num_gpus"]) == ("cpu", 0.0)
    assert "scheduling_strategy" not in options
    assert options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "1"
    assert options["runtime_env"]["env_vars"]["DS_ACCELERATOR"] == "cpu"


def test_with_gpus_a_rank_takes_one_and_an_engine_as_many_as_it_is_parallel(monkeypatch):
    placement = placed(monkeypatch, {"CPU": 8.0, "GPU": 8.0}, engine={"tensor_parallel": 2})
    assert (placement.gpus("learner"), placement.gpus("rollout"), placement.gpus("scorer")) == (1.0, 2.0, 0.0)


def test_roles_that_share_a_card_take_halves_of_it(monkeypatch):
    placement = placed(monkeypatch, {"CPU": 8.0, "GPU": 1.0}, workers=1, placement={"colocate": True})
    assert placement.gpus("learner") + placement.gpus("rollout") == 1.0


def test_a_cluster_that_is_too_small_is_an_error_with_both_numbers(monkeypatch):
    with pytest.raises(PenstockError, match=r"3 GPUs are asked for, the cluster has 1"):
        placed(monkeypatch, {"CPU": 8.0, "GPU": 1.0})


def test_on_one_node_only_what_that_node_has_counts_and_everything_is_bound_to_it(monkeypatch):
    here, other = "aa" * 28, "bb" * 28
    nodes = [
        {"NodeID": here, "Alive": True, "Resources": {"CPU": 4.0}},
        {"NodeID": other, "Alive": True, "Resources": {"CPU": 8.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 12.0})
    placement = place(run_file(), workers=2, ranks=1, scorers=1, home=here)
    for role in ("rollout", "learner", "scorer"):
        bound = placement.options(role)["scheduling_strategy"]
        assert (bound.node_id, bound.soft) == (here, False)
    with pytest.raises(PenstockError, match=r"5 CPUs are asked for, the cluster has 4\. Nodes that have joined since"):
        place(run_file(), workers=3, ranks=1, scorers=1, home=here)


def test_every_scorer_counts(monkeypatch):
    assert placed(monkeypatch, {"CPU": 6.0}, scorers=3).demand() == {"CPU": 6.0, "GPU": 0.0}
    with pytest.raises(PenstockError, match=r"7 CPUs are asked for, the cluster has 6\. .*placement\.grows=true"):
        placed(monkeypatch, {"CPU": 6.0}, scorers=4)


def test_a_cluster_that_grows_is_waited_for(monkeypatch):
    placement = placed(monkeypatch, {"CPU": 2.0}, workers=4, grows=True)
    assert placement.lacking({"CPU": 2.0}) == "6 CPUs are asked for, the cluster has 2"
    assert placement.lacking({"CPU": 6.0}) == ""


def test_threads_of_engines_and_of_ranks_are_set_apart(monkeypatch):
    sections = {"engine": {"threads": 3}, "placement": {"learner_threads": 5}}
    placement = placed(monkeypatch, {"CPU": 8.0}, **sections)
    threads = {r: placement.options(r)["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] for r in ("rollout", "learner")}
    assert threads == {"rollout": "3", "learner": "5"}


PLACES = {"rollout": {"resources": {"rollout-node": 1.0}}, "learner": {"resources": {"learner-node": 0.001}}}


def test_what_a_role_asks_of_custom_resources_is_what_ray_is_asked(monkeypatch):
    there = {"CPU": 8.0, "rollout-node": 2.0, "learner-node": 1.0}
    placement = placed(monkeypatch, there, placement=PLACES)
    asked = {role: placement.options(role)["resources"] for role in ("rollout", "learner", "scorer")}
    assert asked == {"rollout": {"rollout-node": 1.0}, "learner": {"learner-node": 0.001}, "scorer": {}}


def test_what_several_actors_ask_of_a_custom_resource_is_summed_over_roles(monkeypatch):
    shared = {role: {"resources": {"node": share}} for role, share in (("rollout", 0.5), ("learner", 0.25))}
    placement = placed(monkeypatch, {"CPU": 8.0, "node": 2.0}, workers=3, ranks=2, placement=shared)
    assert placement.demand() == {"CPU": 6.0, "GPU": 0.0, "node": 3 * 0.5 + 2 * 0.25}


def test_custom_resources_that_the_cluster_lacks_are_named_with_both_numbers(monkeypatch):
    there = {"CPU": 8.0, "rollout-node": 1.0, "learner-node": 1.0}
    with pytest.raises(PenstockError, match=r"2 of the custom resource 'rollout-node' are asked for, .* has 1"):
        placed(monkeypatch, there, placement=PLACES)
    assert placed(monkeypatch, there, placement=PLACES, grows=True).demand()["rollout-node"] == 2
