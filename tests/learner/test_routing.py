"""Replaying the sampler's experts in models of transformers, against a plain loop over experts."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import batch_of
from learner_parts import tiny_model
from torch import Tensor

from penstock.learner.algorithms.bound import bind
from penstock.learner.batch import Batch
from penstock.learner.config import AlgorithmSection
from penstock.learner.critic import ValueModel
from penstock.learner.deal import Share
from penstock.learner.forward import policy_pass
from penstock.learner.micro import MicroBatch
from penstock.learner.ranks import Team
from penstock.learner.routing import checkpoint_contexts, padded_experts, replay, routers_of
from penstock.learner.start import begin
from penstock.learner.step import micro_losses
from penstock.learner.tally import Tally
from penstock.services.contracts import PenstockError
from penstock.services.logprob_model import LogprobModel
from penstock.services.logprobs import pad_rows

SPREAD = 0.3
"""Of the weights: so large that it matters which experts are used."""


def qwen(seed: int = 0, **more: Any) -> Any:
    return tiny_model(seed, "Qwen3Moe", initializer_range=SPREAD, **more)


MODELS = {
    "qwen": qwen,
    "qwen_not_renormalised": lambda: qwen(norm_topk_prob=False),
    "mixtral": lambda: tiny_model(0, "Mixtral", initializer_range=SPREAD),
}


def random_experts(tokens: int, layers: int = 2) -> Tensor:
    """[layers, tokens, 2] different experts of 4."""
    generator = torch.Generator().manual_seed(1)
    chosen = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(layers * tokens)])
    return chosen.view(layers, tokens, 2).to(torch.int16)


def by_loop(block: Any, hidden: Tensor, experts: Tensor, renormalised: bool) -> Tensor:
    """[tokens, hidden] of one layer with experts, token by token."""
    outputs = []
    for state, chosen in zip(hidden, experts.tolist(), strict=True):
        probabilities = torch.softmax(block.gate.weight @ state, -1)
        shares = probabilities[chosen] / (probabilities[chosen].sum() if renormalised else 1.0)
        total = torch.zeros_like(state)
        for share, expert in zip(shares, chosen, strict=True):
            gate, up = (block.experts.gate_up_proj[expert] @ state).chunk(2)
            total = total + share * (block.experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up))
        outputs.append(total)
    return torch.stack(outputs)


@pytest.mark.parametrize("name", MODELS)
def test_a_layer_computes_with_the_given_experts_and_its_own_weights(name: str):
    model = MODELS[name]()
    experts = random_experts(6)
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    blocks = [layer.mlp for layer in model.model.layers]
    for i, block in enumerate(blocks):
        block.register_forward_hook(lambda m, given, out, i=i: seen.__setitem__(i, (given[0], out)))
    with replay(model, experts), torch.no_grad():
        model(input_ids=torch.arange(3, 9).view(2, 3))
    for i, block in enumerate(blocks):
        hidden, found = (x.reshape(6, -1) for x in seen[i])
        expected = by_loop(block, hidden, experts[i], renormalised=name != "qwen_not_renormalised")
        assert torch.allclose(found, expected, atol=1e-6)


def test_minus_one_and_no_record_leave_the_choice_to_the_router():
    model, ids = qwen(), torch.arange(3, 9).view(1, 6)
    with torch.no_grad():
        free = model(input_ids=ids).logits
        with replay(model, None):
            assert torch.equal(model(input_ids=ids).logits, free)
        with replay(model, torch.full((2, 6, 2), -1, dtype=torch.int16)):
            assert torch.allclose(model(input_ids=ids).logits, free, atol=1e-6)
        with replay(model, random_experts(6)):
            assert not torch.allclose(model(input_ids=ids).logits, free, atol=1e-2)
        assert torch.equal(model(input_ids=ids).logits, free)  # nothing is left behind


def gradients(model: Any, experts: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    ids = torch.arange(3, 9).view(2, 3)
    with replay(model, experts):
        loss = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)[..., 7].sum()
    loss.backward()  # outside: a layer that is computed again must remember
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_gradients_flow_through_the_routers_weights():
    model, experts = qwen().double(), random_experts(6)
    model.set_experts_implementation("eager")  # the other has no double
    found = gradients(model, experts)["model.layers.0.mlp.gate.weight"]
    weight = model.model.layers[0].mlp.gate.weight

    def loss_with(change: float) -> float:
        with torch.no_grad(), replay(model, experts):
            weight[1, 5] += change
            loss = model(input_ids=torch.arange(3, 9).view(2, 3)).logits.log_softmax(-1)[..., 7].sum()
            weight[1, 5] -= change
        return float(loss)

    # Routers compute their softmax in float32, so the step is not too small.
    slope = (loss_with(1e-2) - loss_with(-1e-2)) / 2e-2
    assert float(found[1, 5]) == pytest.approx(slope, rel=2e-3, abs=1e-5) and found.abs().max() > 1e-3


def test_layers_that_are_computed_again_in_backward_use_the_same_experts():
    plain, again = qwen(), qwen()
    again.train().gradient_checkpointing_enable({"use_reentrant": False, "context_fn": checkpoint_contexts})
    experts = random_experts(6)
    expected, found = gradients(plain, experts), gradients(again, experts)
    assert all(torch.allclose(expected[name], found[name], atol=1e-5) for name in expected)
    free = gradients(again, torch.full((2, 6, 2), -1, dtype=torch.int16))
    name = "model.layers.1.mlp.experts.down_proj"
    assert not torch.allclose(expected[name], free[name], atol=1e-3)


def batch_with_experts() -> Batch:
    """Two rows: prompts of 2 and 1 tokens, answers of 1 and 3."""
    answers = np.arange(4 * 4, dtype=np.int16).reshape(4, 2, 2) % 4
    prompts = (1 + np.arange(3 * 4, dtype=np.int16).reshape(3, 2, 2)) % 4
    return batch_of(
        count=4,
        rows=2,
        prompt_tokens=np.asarray([3, 4, 5], np.int32),
        prompt_lengths=np.asarray([2, 1]),
        tokens=np.asarray([6, 7, 8, 9], np.int32),
        lengths=np.asarray([1, 3]),
        logp_sampler=np.zeros(4, np.float32),
        experts=answers,
        prompt_experts=prompts,
    )


def test_experts_are_laid_beside_padded_rows_and_the_last_token_is_free():
    batch = batch_with_experts()
    laid = padded_experts(batch, pad_rows(batch.rows()))
    assert laid is not None and laid.shape == (2, 8, 2) and laid.is_contiguous()
    table = laid.view(2, 2, 4, 2).transpose(0, 1).transpose(1, 2)  # row, position, layer, expert
    assert np.array_equal(table[0, :2], batch.prompt_experts[:2]) and (table[0, 2:] == -1).all()
    assert np.array_equal(table[1, 0], batch.prompt_experts[2]) and np.array_equal(table[1, 1:3], batch.experts[1:3])
    assert (table[1, 3] == -1).all()
    empty = padded_experts(batch.select([]), pad_rows([]))
    assert empty is not None and empty.shape == (2, 2, 2) and (empty == -1).all()


def test_a_micro_batch_goes_through_the_policy_with_its_experts():
    batch, model = batch_with_experts(), qwen()
    policy = LogprobModel(model)
    found = policy_pass(policy, MicroBatch.of(batch, [0, 1], torch.device("cpu"))).logp
    for row, (prompt, answer) in enumerate(batch.rows()):
        experts = padded_experts(batch.select([row]), pad_rows(batch.select([row]).rows()))
        ids = torch.from_numpy(np.concatenate([prompt, answer])).long().unsqueeze(0)
        with replay(model, experts), torch.no_grad():
            logp = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logp.gather(-1, torch.from_numpy(answer).long().unsqueeze(-1)).squeeze(-1)
        assert torch.allclose(found[row][found[row] != 0], expected, atol=1e-5)
    assert torch.isfinite(policy_pass(policy, MicroBatch.of(batch, [], torch.device("cpu"))).logp).all()


# --- values -----------------------------------------------------------------------------------------


def ppo_section(kind: str) -> AlgorithmSection:
    return AlgorithmSection.model_validate({"name": "ppo", "value": {"kind": kind}})


def with_a_head(model: Any) -> Any:
    """A head of values far from 0, on a policy or on a value model; both are trained with gradient checkpointing."""
    torch.manual_seed(5)
    torch.nn.init.normal_(model.value_head.weight)
    inner = model.model if isinstance(model, LogprobModel) else model.backbone
    inner.train().gradient_checkpointing_enable({"use_reentrant": False, "context_fn": checkpoint_contexts})
    return model


def share_of(batch: Batch) -> Share:
    return Share(batch.with_columns(weights=np.full(2, 0.5)), [[[0], [1]]], [[0]])


def begun(models: Any, batch: Batch, kind: str) -> list[MicroBatch]:
    (parts,) = begin(models, share_of(batch), bind(ppo_section(kind)), Team(0, 1, 60.0, None)).parts
    return parts


def value_gradients(models: Any, batch: Batch, kind: str) -> dict[str, Tensor]:
    """Of the loss of a mini-batch, with respect to the model that gives the values."""
    learned = models.policy if models.critic is None else models.critic
    learned.zero_grad()
    for part in begun(models, batch, kind):
        losses = micro_losses(models, part, bind(ppo_section(kind)), math.inf, kind == "head", Tally())
        torch.stack([loss for loss in losses if loss is not None]).sum().backward()
    return {name: p.grad.clone() for name, p in learned.named_parameters() if p.grad is not None}


def test_a_value_head_on_the_policy_reads_the_states_of_the_kept_experts():
    batch = batch_with_experts()
    policy = with_a_head(LogprobModel(qwen(), value_head=True))
    models = SimpleNamespace(policy=policy, critic=None, device=torch.device("cpu"))
    for row, ((prompt, answer), part) in enumerate(zip(batch.rows(), begun(models, batch, "head"), strict=True)):
        alone = batch.select([row])
        ids = torch.from_numpy(np.concatenate([prompt, answer])).long().unsqueeze(0)
        with torch.no_grad():
            free = policy.model.model(input_ids=ids).last_hidden_state[0]
            with replay(policy, padded_experts(alone, pad_rows(alone.rows()))):
                kept = policy.model.model(input_ids=ids).last_hidden_state[0]
        before = slice(len(prompt) - 1, -1)
        expected, other = (states[before] @ policy.value_head.weight[0] for states in (kept, free))
        assert torch.allclose(part.old_values[part.rows.responses], expected, atol=1e-5)
        assert not torch.allclose(expected, other, atol=1e-2)


def test_the_loss_of_a_value_head_pulls_at_the_kept_experts_and_at_no_other():
    batch = batch_with_experts()
    first = np.array([0, 1], np.int16)
    firsts = {name: np.broadcast_to(first, getattr(batch, name).shape) for name in ("experts", "prompt_experts")}
    policy = with_a_head(LogprobModel(qwen(), value_head=True))
    models = SimpleNamespace(policy=policy, critic=None, device=torch.device("cpu"))
    found = value_gradients(models, batch.with_columns(**firsts), "head")
    for layer in range(2):
        for name in ("gate_up_proj", "down_proj"):
            size = found[f"model.model.layers.{layer}.mlp.experts.{name}"].flatten(1).abs().amax(1)
            assert (size[:2] > 1e-4).all()
            assert (size[2:] == 0).all()


def test_a_value_model_of_its_own_routes_for_itself_whatever_the_policy_replays():
    batch = batch_with_experts()
    policy, critic = LogprobModel(qwen()), with_a_head(ValueModel(qwen(seed=3).base_model))
    models = SimpleNamespace(policy=policy, critic=critic, device=torch.device("cpu"))
    unrecorded = batch.with_columns(experts=None, prompt_experts=None)
    kept, free = (begun(models, each, "own") for each in (batch, unrecorded))
    for one, other in zip(kept, free, strict=True):
        assert torch.equal(one.old_values, other.old_values)
        assert not torch.allclose(one.logp_prox, other.logp_prox, atol=1e-2)
    found, expected = (value_gradients(models, each, "own") for each in (batch, unrecorded))
    assert found.keys() == expected.keys() and len(found) > 10
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in found)


def test_what_cannot_be_replayed_is_refused_with_the_reason():
    with pytest.raises(PenstockError, match="Qwen3ForCausalLM has no router"):
        routers_of(tiny_model())
    model, ids = qwen(), torch.arange(3, 9).view(1, 6)
    others = pytest.raises(PenstockError, match="experts of 3 layers, and Qwen3MoeForCausalLM has 2 routers")
    with others, replay(model, random_experts(6, layers=3)):
        pass
    fewer = pytest.raises(PenstockError, match="2 experts for 5 positions, and the router chose 2 for 6")
    with fewer, replay(model, random_experts(5)):
        model(input_ids=ids)

    class OwnRouter(torch.nn.Linear):
        pass

    model.model.layers[0].mlp.gate = OwnRouter(32, 4)
    with pytest.raises(PenstockError, match="cannot be replayed in a OwnRouter"):
        routers_of(model)


def test_a_router_that_weighs_by_something_else_than_a_softmax_is_found_out():
    heads = {"q_lora_rank": None, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    model = tiny_model(0, "DeepseekV3", n_group=1, topk_group=1, head_dim=4, **heads)
    refused = pytest.raises(PenstockError, match="does not weigh its experts by a softmax")
    with refused, replay(model, random_experts(6)):
        model(input_ids=torch.arange(3, 9).view(1, 6))
