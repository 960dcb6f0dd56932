"""Weights into an engine in use by the shorter way: what is learned of a load, what is not, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rollout_lab import Lab, reference

from penstock.rollout import vllm_reload
from penstock.rollout.config import KEEP_NOTHING
from penstock.rollout.errors import EngineFailed
from penstock.rollout.vllm_recording import NotRepeatable, Recording

pytestmark = pytest.mark.engine

PROMPT, ANSWER = [5, 6, 7, 8] * 8, [*range(10, 30)]


class Counted:
    """How often the engine's own reload was used."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        own = vllm_reload.Loader._load_as_the_engine_does

        def counting(loader: Any, model: Any, tensors: Any) -> None:
            self.times += 1
            own(loader, model, tensors)

        monkeypatch.setattr(vllm_reload.Loader, "_load_as_the_engine_does", counting)


def worker_of(engine: Any) -> Any:
    return engine._calls.started.engine.engine_core.engine_core.model_executor.driver_worker.worker


def forget_plan(engine: Any) -> None:
    """As before the engine's first swap."""
    worker_of(engine).__dict__.pop("_loader", None)


def test_what_the_first_swap_taught_is_done_again_and_is_the_same_to_the_bit(
    lab: Lab, engine: Any, monkeypatch: pytest.MonkeyPatch
):
    counted = Counted(monkeypatch)
    forget_plan(engine)
    by_own, by_plan = [], []
    for model in lab.models:
        forget_plan(engine)
        engine.swap(lab.publish(model))
        by_own.append(engine.logprobs_of(PROMPT, ANSWER))
    assert counted.times == 2
    for model in lab.models:
        engine.swap(lab.publish(model))
        by_plan.append(engine.logprobs_of(PROMPT, ANSWER))
    assert counted.times == 2  # not once more
    assert not (by_own[0] == by_own[1]).all()
    for own, planned in zip(by_own, by_plan, strict=True):
        assert (own == planned).all()


def test_tensors_of_other_types_go_the_engines_own_way_and_are_learned_anew(
    lab: Lab, engine: Any, monkeypatch: pytest.MonkeyPatch
):
    counted = Counted(monkeypatch)
    load = engine._load
    engine.swap(lab.publish(lab.models[1]))
    before = counted.times
    monkeypatch.setattr(engine, "_load", lambda tensors: load({n: t.double() for n, t in tensors.items()}))
    engine.swap(lab.publish(lab.models[0]))
    engine.swap(lab.publish(lab.models[1]))
    assert counted.times == before + 1
    monkeypatch.setattr(engine, "_load", load)
    engine.swap(lab.publish(lab.models[0]))
    assert counted.times == before + 2


def test_a_model_with_experts_goes_the_engines_own_way(moe_lab: Lab, moe_engine: Any, monkeypatch: pytest.MonkeyPatch):
    counted = Counted(monkeypatch)
    for model in moe_lab.models:
        moe_engine.swap(moe_lab.publish(model))
    assert counted.times == 2 and worker_of(moe_engine)._loader._plan is None


def test_a_model_without_an_output_layer_computes_logits_with_the_new_embeddings(
    headless_lab: Lab, session_engine: Any, start: Callable[..., Any]
):
    engine = start(headless_lab, KEEP_NOTHING)
    for model in (*headless_lab.models, *headless_lab.models):
        engine.swap(headless_lab.publish(model))  # the probe is in it
        assert np.abs(engine.logprobs_of(PROMPT, ANSWER) - reference(model, PROMPT, ANSWER)).max() < 1e-4
    assert worker_of(engine)._loader._plan is not None


def test_a_layer_that_no_longer_packs_what_it_packed_ends_the_engine(
    lab: Lab, engine: Any, monkeypatch: pytest.MonkeyPatch
):
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    engine.swap(lab.publish(lab.models[1]))
    monkeypatch.setattr(UnquantizedLinearMethod, "process_weights_after_loading", lambda method, layer: None)
    with pytest.raises(EngineFailed, match="did not pack the weight that it packed before"):
        engine.swap(lab.publish(lab.models[0]))
    forget_plan(engine)  # the fixture goes on with it


# --- what is seen of a load, on layers made for it -----------------------------------------------------


class Layer(torch.nn.Module):
    """One weight of [4, 3], without memory, as the engine's reload leaves it for its first, counting load."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(4, 3, device="meta"), requires_grad=False)


def recorded(load: Callable[[torch.Tensor, dict[str, torch.Tensor]], object], **tensors: torch.Tensor) -> Any:
    """The recording, and what happened to the layer's weight in it."""
    layer = Layer()
    recording = Recording(layer, list(tensors.items()))
    with recording:
        load(layer.weight.data, tensors)
    return recording, recording.seen[layer, "weight"]


def test_parts_are_found_again_wherever_they_lie():
    a, b = torch.arange(24.0).view(4, 6), torch.arange(100.0, 106.0).view(3, 2)

    def load(weight: torch.Tensor, given: dict[str, torch.Tensor]) -> None:
        weight.narrow(0, 0, 2).copy_(given["a"][1:3, 3:])  # a share of it, as each of several processes takes
        weight.narrow(0, 2, 2).copy_(given["b"].t())

    recording, seen = recorded(load, a=a, b=b)
    recording.must_be_complete()
    vllm_reload._must_be_ordinary(Layer(), "weight", seen)
    whole, other = torch.empty(4, 3), {"a": a + 1000, "b": b + 1000}
    seen.repeat(whole, other)
    assert torch.equal(whole, torch.cat([other["a"][1:3, 3:], other["b"].t()]))


def test_padding_stays_as_the_first_load_left_it():
    def load(weight: torch.Tensor, given: dict[str, torch.Tensor]) -> None:
        weight[:3].copy_(given["a"])
        weight[3:].fill_(0)

    _, seen = recorded(load, a=torch.ones(3, 3))
    vllm_reload._must_be_ordinary(Layer(), "weight", seen)
    whole = torch.zeros(4, 3)
    seen.repeat(whole, {"a": torch.full((3, 3), 7.0)})
    assert whole[:3].eq(7).all() and whole[3:].eq(0).all()


def scaled(weight: torch.Tensor, given: dict[str, torch.Tensor]) -> None:
    weight.copy_(given["a"] * 2)


def added(weight: torch.Tensor, given: dict[str, torch.Tensor]) -> None:
    weight.copy_(given["a"])
    weight.add_(1)


def of_another_type(weight: torch.Tensor, given: dict[str, torch.Tensor]) -> None:
    weight.copy_(given["a"].half())


def broadcast(weight: torch.Tensor, given: dict[str, torch.Tensor]) -> None:
    weight.copy_(given["a"][0])


def turned(weight: torch.Tensor, given: dict[str, torch.Tensor]) -> None:
    weight.copy_(given["a"])
    weight[:2].copy_(weight[2:])


@pytest.mark.parametrize("load", [scaled, added, of_another_type, broadcast, turned])
def test_a_load_that_computes_is_not_done_again(load: Callable[..., None]):
    _, seen = recorded(load, a=torch.ones(4, 3))
    with pytest.raises(NotRepeatable, match=r"weight of Layer was written by aten::(copy_|add_)"):
        vllm_reload._must_be_ordinary(Layer(), "weight", seen)


def twice(weight: torch.Tensor, given: dict[str, torch.Tensor]) -> None:
    weight.copy_(given["a"])
    weight[:1].copy_(given["a"][1:2])


def in_part(weight: torch.Tensor, given: dict[str, torch.Tensor]) -> None:
    weight[:3].copy_(given["a"][:3])


def padded_over(weight: torch.Tensor, given: dict[str, torch.Tensor]) -> None:
    weight.copy_(given["a"])
    weight[3:].zero_()


@pytest.mark.parametrize("load", [twice, in_part, padded_over])
def test_a_load_that_writes_twice_or_not_everything_is_not_done_again(load: Callable[..., None]):
    _, seen = recorded(load, a=torch.ones(4, 3))
    with pytest.raises(NotRepeatable, match="is written more than once, or not in full"):
        vllm_reload._must_be_ordinary(Layer(), "weight", seen)


def as_a_constant(weight: torch.Tensor, given: dict[str, torch.Tensor]) -> None:
    weight.fill_(given["a"].flatten()[0].item())


def unseen(weight: torch.Tensor, given: dict[str, torch.Tensor]) -> None:
    """Into memory that nobody knows, as where a loader gives the layer another tensor."""
    weight.clone(), given["a"].clone()


def changed(weight: torch.Tensor, given: dict[str, torch.Tensor]) -> None:
    given["a"].mul_(2)
    weight.copy_(given["a"])


@pytest.mark.parametrize("load", [as_a_constant, unseen, changed])
def test_a_load_whose_tensors_are_lost_or_changed_on_the_way_is_not_done_again(load: Callable[..., None]):
    given = torch.ones(4, 3)
    recording, _ = recorded(load, a=given)
    with pytest.raises(NotRepeatable, match=r"where a went was not seen|were written by aten::mul_"):
        recording.must_be_complete()
