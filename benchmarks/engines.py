"""Models of random weights and engines around them, for measurements in one process. Import it before torch or vLLM."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.deploy.cluster import actor_environment

# As every actor of a run has it: one thread, here and in the engine.
os.environ.update(actor_environment(threads=1, device="cpu"))

if TYPE_CHECKING:
    from penstock.rollout.vllm_engine import VllmGenerator
    from penstock.services.contracts import WeightReceiver
    from penstock.services.trajectory import Prompt
    from penstock.services.versions import Version

END = 1


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen3 with tied embeddings."""

    hidden: int
    layers: int
    heads: int
    vocabulary: int
    spread: float = 0.02
    """Standard deviation of the weights."""


SHAPES = {
    # The demo's own, but for its vocabulary: with random weights an answer ends after about as many tokens as there are
    # in the vocabulary, so that these are of geometric length, as those of people's models often are.
    "long-tail": Shape(128, 4, 4, 112, spread=0.01),
    "demo": Shape(128, 4, 4, 14, spread=0.06),
    "large": Shape(768, 11, 12, 32_768),
}
"""0.8, 0.8 and 101 million parameters."""


def network(shape: Shape, seed: int = 0) -> Any:
    """With random weights, in float32."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=3 * shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=max(1, shape.heads // 2),
            head_dim=shape.hidden // shape.heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=shape.spread,
            pad_token_id=None,
            eos_token_id=END,
            bos_token_id=None,
        )
    ).eval()


def tokenizer(shape: Shape) -> Any:
    """Words that are numbers, with a space between."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": END, **{f"w{index}": index for index in range(2, shape.vocabulary)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def weights_of(model: Any) -> dict[str, Any]:
    """As they are published: a tied output layer is left out."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}


def prompts(shape: Shape, count: int, length: int = 12) -> list[Prompt]:
    """Random ones, the same for every call."""
    import numpy as np

    from penstock.services.trajectory import Prompt

    tokens = np.random.default_rng(0).integers(2, shape.vocabulary, (count, length)).astype(np.int32)
    return [
        Prompt(index=i, source="random", row=i, epoch=0, tokens=tokens[i].copy(), text="", columns={"answer": "w2"})
        for i in range(count)
    ]


@contextmanager
def engine(
    folder: Path,
    shape: Shape,
    *,
    receiver: WeightReceiver | None = None,
    loaded: Version | None = None,
    ends: bool = True,
    **section: Any,
) -> Iterator[VllmGenerator]:
    """An engine of the model in `folder`; further values are those of the run file's section `engine`. Without `ends`
    answers end at their budget only."""
    from penstock.rollout.config import EngineSection
    from penstock.rollout.vllm_engine import VllmGenerator

    made = VllmGenerator(
        str(folder),
        EngineSection.model_validate({"threads": 1, **section}),
        tokenizer=tokenizer(shape),
        end_tokens=[END] if ends else [],
        receiver=receiver,
        loaded=loaded,
    )
    try:
        yield made
    finally:
        made.close()


def saved(model: Any, shape: Shape, folder: Path) -> Path:
    """The model in Hugging Face format."""
    from penstock.services.models import save_model

    save_model(model, tokenizer(shape), folder)
    return folder


def lengths(answers: Sequence[Any]) -> float:
    """Mean tokens of these answers."""
    return sum(len(answer) for answer in answers) / len(answers)
