"""The experts that a real engine chose: recorded for every position once, and replayed in transformers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from rollout_lab import Lab, finish, prompt_of, run_up_to

from penstock.learner.routing import replay, routers_of
from penstock.services.contracts import Request
from penstock.services.trajectory import Completion, Sampling, Unfinished

pytestmark = pytest.mark.engine

PROMPT = [5, 6, 7, 8] * 20
LONG = Sampling(max_tokens=40)


@pytest.fixture
def pieces(moe_engine: Any) -> Iterator[Any]:
    """The engine with steps so short that prompts are computed in pieces."""
    scheduler = moe_engine._calls.started.engine.engine_core.engine_core.scheduler
    before, scheduler.max_num_scheduled_tokens = scheduler.max_num_scheduled_tokens, 48
    yield moe_engine
    scheduler.max_num_scheduled_tokens = before


def submit(engine: Any, key: str, sampling: Sampling = LONG, resume: Unfinished | None = None) -> None:
    engine.submit(Request(key=key, prompt=prompt_of(PROMPT), sampling=sampling, resume=resume))


def chosen_by(model: Any, tokens: list[int]) -> Any:
    """[positions, layers, 2] what the routers of transformers choose, each row sorted."""
    import torch

    seen: list[Any] = []
    handles = [r.register_forward_hook(lambda m, given, out: seen.append(out[2])) for r in routers_of(model)]
    with torch.no_grad():
        model(input_ids=torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    return np.sort(torch.stack(seen, 1).numpy(), -1)


def recorded(answer: Completion | Unfinished) -> Any:
    """[fed positions, layers, 2], each row sorted."""
    routing = answer.routing
    assert routing is not None and (routing.layers, routing.top_k) == (2, 2)
    assert len(routing.prompt) == 4 * len(PROMPT) and not routing.answer[-4:].any()
    return np.sort(np.concatenate([routing.prompt, routing.answer[:-4]]).reshape(-1, 2, 2), -1)


def logprobs(model: Any, answer: Completion, with_experts: bool) -> Any:
    """[T] of the answer's tokens in float32, with the sampler's experts or the model's own."""
    import torch

    rows = torch.from_numpy(np.concatenate([recorded(answer), np.full((1, 2, 2), -1)])).transpose(0, 1)
    with torch.no_grad(), replay(model, rows if with_experts else None):
        logits = model(torch.tensor([[*PROMPT, *answer.tokens.tolist()]])).logits[0, len(PROMPT) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.from_numpy(answer.tokens).long()[:, None])[:, 0].numpy()


def test_every_position_is_recorded_as_transformers_routes_it_and_logprobs_agree(moe_lab: Lab, pieces: Any):
    model = moe_lab.models[0]
    for i in range(20):  # more than the engine has slots
        submit(pieces, f"a{i}", Sampling(max_tokens=40, top_k=5 if i % 2 else 0))
    done = finish(pieces)
    assert len(done) == 20
    for key, answer in done.items():
        expected = chosen_by(model, [*PROMPT, *answer.tokens.tolist()])[:-1]
        # A tie that a rounding decides may fall the other way.
        assert (recorded(answer) == expected).all(-1).mean() > 0.999
        if int(key[1:]) % 2 == 0:
            assert np.abs(logprobs(model, answer, with_experts=True) - answer.logprobs).max() < 1e-5
        else:
            assert answer.kept is not None and (answer.kept.counts == 5).all()


def test_a_preempted_answer_keeps_what_was_recorded_first(moe_lab: Lab, moe_engine: Any):
    for i in range(4):
        submit(moe_engine, f"b{i}")
    for _ in range(5):
        moe_engine.step()
    moe_engine._calls.recompute_all()
    done = finish(moe_engine)
    assert len(done) == 4
    for answer in done.values():
        assert np.abs(logprobs(moe_lab.models[0], answer, with_experts=True) - answer.logprobs).max() < 1e-5


def test_a_swap_in_mid_answer_leaves_every_position_with_its_first_experts(moe_lab: Lab, moe_engine: Any):
    run_up_to(moe_engine, 10, lambda: submit(moe_engine, "c"))
    moe_engine.swap(moe_lab.publish(moe_lab.models[1]))
    answer = finish(moe_engine)["c"]
    first = answer.spans[0].count
    tokens = [*PROMPT, *answer.tokens.tolist()]
    old, new = (chosen_by(model, tokens)[:-1] for model in moe_lab.models)
    fed_before = len(PROMPT) + first - 1  # the last token of the old weights was fed to the new ones
    assert 10 <= first <= 12 and len(answer.tokens) > first
    assert (recorded(answer)[:fed_before] == old[:fed_before]).all()
    assert (recorded(answer)[fed_before:] == new[fed_before:]).all()
    assert not (old == new).all()


def test_routing_is_handed_on_and_cut_with_its_tokens(moe_lab: Lab, moe_engine: Any):
    run_up_to(moe_engine, 10, lambda: submit(moe_engine, "d"))
    part = moe_engine.take_back(["d"])["d"]
    assert len(recorded(part)) == len(PROMPT) + 9
    moe_engine.swap(moe_lab.publish(moe_lab.models[1]))
    run_up_to(moe_engine, 1, lambda: submit(moe_engine, "e", resume=part))
    ((_, answer),) = moe_engine.cut(["e"])
    assert len(answer.tokens) == 11 and answer.finish == "stale"
    assert (recorded(answer)[:-1] == recorded(part)).all()
    new = chosen_by(moe_lab.models[1], [*PROMPT, *answer.tokens.tolist()])
    assert (recorded(answer)[-1] == new[len(PROMPT) + 9]).all()
    submit(moe_engine, "f")
    assert moe_engine.take_back(["f"])["f"].routing is None  # nothing was computed


def test_weights_of_experts_are_in_use_after_a_swap_and_a_forgotten_packing_is_caught(
    moe_lab: Lab, moe_engine: Any, monkeypatch: pytest.MonkeyPatch
):
    from penstock.services.contracts import WeightsError

    for model in (moe_lab.models[1], moe_lab.models[0], moe_lab.models[1]):
        moe_engine.swap(moe_lab.publish(model))  # the probe is in it
        submit(moe_engine, "g")
        answer = finish(moe_engine)["g"]
        assert np.abs(logprobs(model, answer, with_experts=True) - answer.logprobs).max() < 1e-5
    monkeypatch.setattr("penstock.rollout.vllm_reload.repack_experts", lambda model: None)
    with pytest.raises(WeightsError, match="does not compute with the weights of version"):
        moe_engine.swap(moe_lab.publish(moe_lab.models[0]))


def gaps(model: Any, answers: list[Completion], with_experts: bool) -> Any:
    """|log π − log μ| of all tokens."""
    return np.concatenate([np.abs(logprobs(model, a, with_experts) - a.logprobs) for a in answers])


def rounded(model: Any) -> None:
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())


def ahead(model: Any) -> None:
    import torch

    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter += 0.005 * torch.randn_like(parameter)


@pytest.mark.parametrize("change", [rounded, ahead])
def test_where_learner_and_sampler_would_route_differently_a_replay_keeps_logprobs_together(
    moe_lab: Lab, moe_engine: Any, change: Any
):
    """What `keep_routing` is for: the learner has the sampler's weights in bfloat16, or is a small step ahead."""
    import torch

    for i in range(32):
        submit(moe_engine, f"h{i}")
    answers = list(finish(moe_engine).values())
    learner = copy.deepcopy(moe_lab.models[0])
    with torch.no_grad():
        change(learner)
    # A token's log-prob comes from the position before it.
    fed = [(recorded(a) != chosen_by(learner, [*PROMPT, *a.tokens.tolist()])[:-1]).any((1, 2)) for a in answers]
    elsewhere = np.concatenate([each[len(PROMPT) - 1 :] for each in fed])
    assert gaps(moe_lab.models[0], answers, True).max() < 1e-5
    replayed, free = gaps(learner, answers, True), gaps(learner, answers, False)
    assert 0 < elsewhere.mean() < 0.2
    assert free[elsewhere].mean() > 2 * replayed[elsewhere].mean()
    assert free.mean() > replayed.mean() and free.max() > replayed.max()
