"""Replaying the sampler's experts in models of transformers, against a plain loop over experts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from builders import batch_of
from torch import Tensor
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from penstock.learner.forward import policy_pass
from penstock.learner.micro import MicroBatch
from penstock.learner.routing import checkpoint_contexts, padded_experts, replay, routers_of
from penstock.services.contracts import PenstockError
from penstock.services.logprob_model import LogprobModel
from penstock.services.logprobs import pad_rows

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "initializer_range": 0.3,
}


def qwen(renormalised: bool = True, **more: Any) -> Any:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        **SMALL, num_experts=4, moe_intermediate_size=24, head_dim=8, norm_topk_prob=renormalised, **more
    )
    return Qwen3MoeForCausalLM(config).eval()


def mixtral() -> Any:
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4, head_dim=8)).eval()


MODELS = {"qwen": qwen, "qwen_not_renormalised": lambda: qwen(False), "mixtral": mixtral}


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
        hidden, found = (x.reshape(6, 16) for x in seen[i])
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


def batch_with_experts() -> Any:
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


def test_what_cannot_be_replayed_is_refused_with_the_reason():
    with pytest.raises(PenstockError, match="Qwen3ForCausalLM has no router"):
        routers_of(Qwen3ForCausalLM(Qwen3Config(**{k: v for k, v in SMALL.items() if k != "num_experts_per_tok"})))
    model, ids = qwen(), torch.arange(3, 9).view(1, 6)
    others = pytest.raises(PenstockError, match="experts of 3 layers, and Qwen3MoeForCausalLM has 2 routers")
    with others, replay(model, random_experts(6, layers=3)):
        pass
    fewer = pytest.raises(PenstockError, match="2 experts for 5 positions, and the router chose 2 for 6")
    with fewer, replay(model, random_experts(5)):
        model(input_ids=ids)

    class OwnRouter(torch.nn.Linear):
        pass

    model.model.layers[0].mlp.gate = OwnRouter(16, 4)
    with pytest.raises(PenstockError, match="cannot be replayed in a OwnRouter"):
        routers_of(model)


def test_a_router_that_weighs_by_something_else_than_a_softmax_is_found_out():
    sizes = {"n_routed_experts": 4, "moe_intermediate_size": 24, "first_k_dense_replace": 0, "n_group": 1}
    heads = {"q_lora_rank": None, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**SMALL, **sizes, **heads, topk_group=1)).eval()
    refused = pytest.raises(PenstockError, match="does not weigh its experts by a softmax")
    with refused, replay(model, random_experts(6)):
        model(input_ids=torch.arange(3, 9).view(1, 6))
