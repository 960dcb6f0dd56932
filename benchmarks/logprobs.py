"""What log-probabilities in chunks cost and save: `python -m benchmarks.logprobs [--case NAME ...]`.

One JSON line per measurement, chunked against plain, which computes the logits of the whole batch at once:

    values   largest differences in float32, of results and gradients
    memory   peak memory of forward and backward for one, two and four times the tokens, each in a process of its own,
             beyond what was resident before, gradients included; of the output layer alone and of a whole model
    head     seconds of the output layer alone, forward and backward
    step     seconds of a whole model, forward and backward, where layers dominate and where they do not

Seconds are processor time of one thread. Both ways take turns within one process, so that a busy machine slows them
alike, and the median of the rounds' ratios is reported. A line carries its limit and whether it was met.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from penstock.services.logprob_head import KeptTokens, LogprobHead
from penstock.services.logprob_model import LogprobModel
from penstock.services.logprobs import PaddedRows, pad_rows, token_logprobs, window_logprobs

TEMPERATURE = 0.8
HEAD_LIMIT, STEP_LIMIT, VALUE_LIMIT, GROWTH_LIMIT = 1.4, 1.1, 1e-5, 0.05
"""Chunked over plain time of the output layer and of a step; largest difference; growth of the output layer's peak
memory from one to four times the tokens, as a share of it. A step's grows by what its layers keep."""
MODELS = {
    "layers dominate": {"vocab_size": 32_000, "num_hidden_layers": 24},
    "150k vocabulary": {"vocab_size": 151_936, "num_hidden_layers": 24},
}
"""The shape of a model of half a billion weights, with two vocabularies."""
HEAD_DIM = 64
"""Of its attention, where the model is that wide."""
SMALL = {"vocab_size": 151_936, "num_hidden_layers": 2}
"""For memory: its layers keep little."""


class Head:
    """An output layer and states before it."""

    def __init__(self, tokens: int, hidden: int, vocabulary: int, kept: int = 0, chunk: int = 0) -> None:
        random = torch.Generator().manual_seed(0)
        self.layer = nn.Linear(hidden, vocabulary, bias=False)
        nn.init.normal_(self.layer.weight, std=1 / hidden**0.5, generator=random)
        self.hidden = torch.randn(tokens, hidden, generator=random, requires_grad=True)
        self.targets = torch.randint(vocabulary, (tokens,), generator=random)
        self.temperatures = torch.full((tokens,), TEMPERATURE)
        self.pulls = torch.randn(2, tokens, generator=random)
        self.kept = None
        if kept:
            ids = torch.randint(vocabulary, (tokens, kept), generator=random)
            ids[:, 0] = self.targets
            self.kept = KeptTokens(torch.full((tokens,), kept), ids.flatten())
        self.chunked = functools.partial(self._run, True, chunk)
        self.plain = functools.partial(self._run, False, chunk)

    def _run(self, chunked: bool, chunk: int, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
        """Forward and backward."""
        asked = (self.targets, self.temperatures, entropy_gradient, self.kept)
        if chunked:
            logp, entropy = LogprobHead(self.layer)(self.hidden, *asked, chunk=chunk)
        else:
            logp, entropy = token_logprobs(self.layer(self.hidden), *asked)
        _backward(self.pulls, logp, entropy if entropy_gradient else None)
        return logp.detach(), entropy.detach()


class Step:
    """A whole model and a batch of answers."""

    def __init__(self, tokens: int, hidden: int, shape: dict[str, int], recompute: bool = False) -> None:
        torch.manual_seed(0)
        heads = max(1, hidden // HEAD_DIM)
        config = Qwen3Config(
            hidden_size=hidden,
            intermediate_size=hidden * 11 // 2,
            num_attention_heads=heads,
            num_key_value_heads=2 if heads % 2 == 0 else 1,
            head_dim=min(HEAD_DIM, hidden // 2 * 2),
            tie_word_embeddings=True,
            **shape,
        )
        model = Qwen3ForCausalLM(config).train()
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model, self.head_weights = LogprobModel(model), model.lm_head.weight.numel()
        ids = torch.randint(config.vocab_size, (tokens // 128, 128)).int().numpy()
        self.rows: PaddedRows = pad_rows([(row[:16], row[16:]) for row in ids])
        self.pulls = torch.randn(2, *self.rows.targets.shape)

    def chunked(self) -> None:
        """Forward and backward."""
        logp, _ = window_logprobs(self.model, self.rows, TEMPERATURE)
        _backward(self.pulls, logp, None)

    def plain(self) -> None:
        """The same, with the logits of the whole window."""
        window = self.rows.targets.shape[1]
        output = self.model.model(
            input_ids=self.rows.tokens,
            attention_mask=self.rows.attention.long(),
            logits_to_keep=window + 1,
            use_cache=False,
        )
        logp, _ = token_logprobs(output.logits[:, :-1], self.rows.targets, TEMPERATURE)
        _backward(self.pulls, torch.where(self.rows.responses, logp, 0.0), None)


def _backward(pulls: Tensor, logp: Tensor, entropy: Tensor | None) -> None:
    loss = (pulls[0] * logp).sum()
    (loss if entropy is None else loss + (pulls[1] * entropy).sum()).backward()  # type: ignore[no-untyped-call]


# --- cases ----------------------------------------------------------------------------------------


def values(options: argparse.Namespace) -> None:
    """Differences of results and gradients, relative to the largest where that is above 1."""
    for kept in (0, 50):
        head = Head(options.tokens // 2, options.hidden, options.vocabulary, kept)
        found = []
        for run in (head.chunked, head.plain):
            head.hidden.grad = head.layer.weight.grad = None
            found.append([*run(entropy_gradient=True), head.hidden.grad, head.layer.weight.grad])
        pairs = zip(("logp", "entropy", "hidden gradient", "weight gradient"), *found, strict=True)
        errors = {name: float((a - b).abs().max()) / max(1.0, float(b.abs().max())) for name, a, b in pairs}
        say("values", max(errors.values()) <= VALUE_LIMIT, limit=VALUE_LIMIT, kept_per_token=kept or "all", **errors)


def memory(options: argparse.Namespace) -> None:
    """Peaks in processes of their own."""
    for what in ("head", "step"):
        peaks: dict[str, list[float]] = {"chunked": [], "plain": []}
        for way, found in peaks.items():
            for times in (1, 2, 4):
                found.append(_peak_of(what, way, times * options.tokens, options))
                print(
                    json.dumps(
                        {
                            "case": f"memory of a {what}",
                            "way": way,
                            "tokens": times * options.tokens,
                            "peak_mib": found[-1],
                        }
                    ),
                    flush=True,
                )
        growth = {way: round(found[2] - found[0], 1) for way, found in peaks.items()}
        share = round(growth["chunked"] / peaks["chunked"][0], 3)
        met = share <= GROWTH_LIMIT if what == "head" else None
        say(f"memory of a {what}", met, limit=GROWTH_LIMIT, growth_mib=growth, chunked_growth=share)


def _peak_of(what: str, way: str, tokens: int, options: argparse.Namespace) -> float:
    """MiB beyond what was resident after a pass over a few tokens, which leaves weights and gradients in place."""
    asked = [f"--{name}={value}" for name, value in (("hidden", options.hidden), ("vocabulary", options.vocabulary))]
    command = [sys.executable, "-m", "benchmarks.logprobs", "--peak", what, way, f"--tokens={tokens}", *asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def peak(what: str, way: str, options: argparse.Namespace) -> float:
    """In this process: peak resident memory of one pass, in MiB, beyond what is resident before it."""
    case: Any
    if what == "head":
        case = Head(options.tokens, options.hidden, options.vocabulary)
    else:
        case = Step(options.tokens, options.hidden, SMALL | {"vocab_size": options.vocabulary}, recompute=True)
    for parameter in case.layer.parameters() if what == "head" else case.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = _status("VmRSS")
    getattr(case, way)()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "Linux has it"
    return int(found[1])


def head(options: argparse.Namespace) -> None:
    """Time of the output layer."""
    for entropy_gradient in (False, True):
        for kept in (0, 50):
            case = Head(options.tokens, options.hidden, options.vocabulary, kept)
            runs = [functools.partial(way, entropy_gradient=entropy_gradient) for way in (case.chunked, case.plain)]
            seconds = _taking_turns(options.rounds, *runs)
            say(
                "head",
                seconds["ratio"] <= HEAD_LIMIT,
                limit=HEAD_LIMIT,
                kept_per_token=kept or "all",
                entropy_gradient=entropy_gradient,
                **seconds,
            )


def step(options: argparse.Namespace) -> None:
    """Time of whole models."""
    for name, shape in MODELS.items():
        case = Step(options.tokens, options.hidden, shape)
        share = case.head_weights / sum(p.numel() for p in case.model.parameters())
        seconds = _taking_turns(options.rounds, case.chunked, case.plain)
        met = seconds["ratio"] <= STEP_LIMIT if name == "layers dominate" else None
        say("step", met, limit=STEP_LIMIT, model=name, share_of_weights_in_head=round(share, 3), **seconds)


def _taking_turns(rounds: int, chunked: Callable[[], Any], plain: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of both, and the median of their ratios; the first round is not counted."""
    seconds: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        seconds.append((_seconds(chunked), _seconds(plain)))
    one, other = zip(*seconds[1:], strict=True)
    ratio = statistics.median(a / b for a, b in seconds[1:])
    return {
        "chunked_seconds": round(statistics.median(one), 3),
        "plain_seconds": round(statistics.median(other), 3),
        "ratio": round(ratio, 3),
    }


def _seconds(run: Callable[[], Any]) -> float:
    # Processor time of this one thread: others on the machine make it wait, and it does not count that.
    began = time.process_time()
    run()
    return time.process_time() - began


def say(case: str, met: bool | None, **facts: Any) -> None:
    """One line; `met` is None where there is no limit."""
    print(json.dumps({"case": case, **facts, "met": met}), flush=True)


CASES = {"values": values, "memory": memory, "head": head, "step": step}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", nargs=2, metavar=("WHAT", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        what, way = options.peak
        print(peak(what, way, options))
        return
    for name in options.case:
        CASES[name](options)


if __name__ == "__main__":
    main()
