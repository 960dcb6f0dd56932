"""What a model's config.json and the headers of its weight files say of it: cheap facts, no weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from penstock.services import weight_files
from penstock.services.config_values import ConfigValues, brief
from penstock.services.model_config import ModelError
from penstock.services.models import read_config


@dataclass(frozen=True)
class ModelFacts:
    """What config.json and the headers of the weight files say."""

    path: str
    architecture: str
    parameters: int
    exact: bool
    """True when counted from the weight files, False when estimated from the configuration."""
    vocab: int
    tied_embeddings: bool
    max_positions: int
    layers: int
    hidden: int
    kv_values_per_token: int
    """Keys and values that one token keeps in the cache, over all layers."""
    eos_token_ids: tuple[int, ...]
    experts: int = 0
    """Experts that a layer chooses among; 0 where the model is no mixture of experts."""
    experts_used: int = 0
    """How many of them it chooses for a token; 0 where the configuration does not say."""
    model_type: str = ""
    """By which transformers finds the classes; empty where none is written."""
    has_code: bool = False
    """Whether classes come with the model, as Python code that only `trust_remote_code` runs."""


def describe(path: str, revision: str | None = None) -> ModelFacts:
    """Cheap facts for checks and estimates; loads no weights. Raises ModelError."""
    config = read_config(path, revision)
    text = config.get("text_config", config)
    if not isinstance(text, dict):
        raise ModelError(f"config.json of {path!r}: text_config is {brief(text)}, allowed is an object")
    missing = [k for k in ("hidden_size", "num_hidden_layers", "vocab_size") if k not in text]
    if missing:
        raise ModelError(
            f"config.json of {path!r} has no {', '.join(missing)}; it is not a decoder that Penstock knows"
        )
    values = ConfigValues(path, text)
    hidden, layers = values.count("hidden_size"), values.count("num_hidden_layers")
    heads = values.count("num_attention_heads", default=1)
    kv_heads = values.count("num_key_value_heads", default=0, least=0) or heads
    head_dim = values.count("head_dim", default=0, least=0) or hidden // heads
    shape = _Shape(hidden, layers, heads, kv_heads, head_dim, values.count("vocab_size"))
    counted = weight_files.count(Path(path))
    tied = bool(text.get("tie_word_embeddings", True))
    facts = ModelFacts(
        path=path,
        architecture=config["architectures"][0],
        parameters=counted if counted is not None else _estimate(values, shape, tied),
        exact=counted is not None,
        vocab=shape.vocab,
        tied_embeddings=bool(config.get("tie_word_embeddings", tied)),
        max_positions=values.count("max_position_embeddings", default=0),
        layers=layers,
        hidden=hidden,
        kv_values_per_token=2 * layers * kv_heads * head_dim,
        eos_token_ids=values.token_ids("eos_token_id", config.get("eos_token_id")),
        experts=max(values.count(name, default=0, least=0) for name in _EXPERTS),
        experts_used=values.count("num_experts_per_tok", default=0, least=0),
        model_type=str(config.get("model_type") or ""),
        has_code="auto_map" in config,
    )
    values.require()
    return facts


_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""What configurations call the number of experts."""


@dataclass(frozen=True)
class _Shape:
    """The sizes that every decoder has."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


def _estimate(values: ConfigValues, shape: _Shape, tied: bool) -> int:
    """Parameters of a decoder with gated feed-forward blocks; norms and biases are left out (below 0.1 %)."""
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    experts = max(values.count(name, default=0, least=0) for name in ("num_experts", "num_local_experts"))
    inner = values.count("moe_intermediate_size", default=0, least=0) if experts else 0
    inner = inner or values.count("intermediate_size", default=0, least=0) or 4 * shape.hidden
    block = 3 * shape.hidden * inner
    feed_forward = experts * (block + shape.hidden) if experts else block
    embeddings = shape.vocab * shape.hidden * (1 if tied else 2)
    return embeddings + shape.layers * (attention + feed_forward)
