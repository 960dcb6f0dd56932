"""A tiny Qwen3, its tokenizer and its forward pass, and what publishes it: shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tiny

from penstock.rollout.config import EngineSection
from penstock.services.trajectory import Completion, Floats, Prompt
from penstock.services.versions import Version
from penstock.services.weights.files import FileReceiver, FileSender
from penstock.services.weights.manifest import ProbeRecord, probe_tokens

VOCABULARY = ["<pad>", "<eos>", "<unk>", *"0123456789abcdefghijklmnopqrstuvwxyz +-*/=?.,:;()[]<>|#@!%&"]
END = 1
SECTION = EngineSection(max_model_len=256, max_num_seqs=16, kv_cache_gib=0.05, enforce_eager=True)

SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 64,
    "intermediate_size": 128,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
"""So large that vLLM has kernels for it; far from uniform."""


def build_model(seed: int) -> Any:
    """A random Qwen3 with 78 thousand parameters, tied embeddings."""
    return tiny.model(seed, **SIZES)


def build_moe(seed: int) -> Any:
    """A random mixture of experts: two layers with four experts each, of which two are used."""
    return tiny.model(seed, "Qwen3Moe", **SIZES, moe_intermediate_size=64)


def build_headless(seed: int) -> Any:
    """A random Command R: logits come from the embeddings themselves, and no layer is called output layer."""
    return tiny.model(seed, "Cohere", **SIZES)


def build_tokenizer() -> Any:
    """One token per character."""
    return tiny.tokenizer_of(VOCABULARY, unknown="<unk>", pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def reference(model: Any, prompt: Sequence[int], response: Sequence[int], temperature: float = 1.0) -> Floats:
    """[T] log-probs of the response by a forward pass of transformers."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0].double() / temperature
    logprobs = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    return logprobs.gather(1, torch.tensor(response)[:, None])[:, 0].numpy().astype(np.float32)


def logits_of(model: Any, prompt: Sequence[int], response: Sequence[int]) -> Any:
    """[T, vocabulary] float64: what a forward pass of transformers says before each token of the response."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([[*prompt, *response]])).logits[0].double().numpy()[len(prompt) - 1 : -1]


def finish(engine: Any) -> dict[str, Completion]:
    """Step until nothing is in flight."""
    done: dict[str, Completion] = {}
    while engine.in_flight:
        done.update(engine.step())
    return done


def run_up_to(engine: Any, count: int, submit: Callable[[], object]) -> None:
    """Leave what `submit` submits running after `count` tokens, however often it begins anew, having drawn its end."""
    while True:
        submit()
        for _ in range(count):
            engine.step()
        if engine.in_flight:
            return


def weights_of(model: Any) -> list[tuple[str, Any]]:
    """As they are published: a tied output layer is left out."""
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    return [(name, tensor) for name, tensor in model.state_dict().items() if name not in tied]


def probe_of(model: Any) -> ProbeRecord:
    tokens = probe_tokens(len(VOCABULARY))
    return ProbeRecord(tokens, tuple(reference(model, tokens[:1], tokens[1:]).tolist()))


def prompt_of(tokens: Sequence[int], index: int = 0) -> Prompt:
    return Prompt(index=index, source="test", row=index, epoch=0, tokens=np.asarray(tokens, np.int32), text="")


@dataclass
class Lab:
    """Models that a test may publish, and where to."""

    folder: Path
    models: list[Any]
    sender: FileSender
    receiver: FileReceiver
    steps: int = 0

    def publish(self, model: Any, probe: bool = True) -> Version:
        """The next version has the weights of `model`."""
        self.steps += 1
        version = Version(0, self.steps)
        self.sender.publish(version, weights_of(model), probe_of(model) if probe else None)
        return version
