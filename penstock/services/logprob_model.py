"""A causal language model that answers with log-probabilities of given tokens instead of logits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from penstock.services.logprob_head import Finish, KeptTokens, LogprobHead, Readout
from penstock.services.logprobs import token_logprobs
from penstock.services.padding import in_eval_mode, needs_mask

_log = logging.getLogger(__name__)


class LogprobModel(nn.Module):
    """A Hugging Face causal language model, `model`, whose forward pass ends in log-probabilities.

    Its parameters are those of `model` under the prefix `model.`; with `value_head`, `value_head.weight` and
    `value_head.bias` beside them. `model` is changed in one point: its output layer becomes a `LogprobHead` on the same
    weights, and works as before for everybody else.

    What a model does to its logits after the output layer (caps, scales) is found when this is made, by comparing with
    the model's own logits on a fixed input. A model that does something else keeps computing all its logits at
    once, with a warning: memory is lost, and no number is wrong.
    """

    def __init__(self, model: nn.Module, value_head: bool = False, chunk_tokens: int = 0) -> None:
        """`chunk_tokens`: how many tokens' logits exist at a time; by default (0) what fits into 64 MiB of float32 on a
        CPU, 512 MiB elsewhere. Raises ValueError for a value head on a model whose last hidden state is not known."""
        super().__init__()
        self.model = model
        head = model.get_output_embeddings()  # type: ignore[operator]
        self._chunk = chunk_tokens
        self.masked = needs_mask(self.backbone)
        """Whether padding has to be masked."""
        self._finish = self._replace_head(head) if isinstance(head, nn.Linear) else None
        if self._finish is None:
            name = type(model).__name__
            if value_head:
                raise ValueError(
                    f"a value head cannot be put on {name}: its logits are not a known function of its last hidden "
                    "state; use a value model of its own"
                )
            _log.warning("%s does something unknown after its output layer: all its logits are kept in memory", name)
        self.value_head = Readout(head.in_features, 1).to(head.weight) if value_head else None

    @property
    def backbone(self) -> nn.Module:
        """`model` without its output layer."""
        base: nn.Module = self.model.base_model  # type: ignore[assignment]
        return base

    @property
    def chunked(self) -> bool:
        """Whether logits exist for a chunk of tokens at a time."""
        return self._finish is not None

    def forward(
        self,
        input_ids: Int[Tensor, "rows length"],
        attention_mask: Int[Tensor, "rows length"],
        targets: Int[Tensor, "rows window"],
        responses: Bool[Tensor, "rows window"],
        temperature: Sequence[float],
        entropy_gradient: bool = False,
        kept: KeptTokens | None = None,
    ) -> tuple[Float[Tensor, "rows window"], Float[Tensor, "rows window"], Tensor | None]:
        """Log-probability of every target and the entropy of what it was drawn from, as in `token_logprobs`; exactly 0
        outside of `responses`. Third: values [rows, window + 1] of the states before each target and, last, behind the
        final position, 0 on padding; None without a value head.

        The window are the positions before the last one, from the right. `temperature`: one per row, plain numbers, so
        that no engine casts them. `kept`: of the responses' tokens, row by row.
        """
        window = targets.shape[1]
        # A pass without responses does what the others do, for one token: engines count calls.
        chosen = responses.flatten().nonzero().squeeze(-1)
        nothing = len(chosen) == 0
        if nothing:
            chosen, kept = chosen.new_zeros(1), None
        per_row = torch.tensor(temperature, dtype=torch.float64, device=chosen.device)
        asked = (targets.flatten()[chosen], per_row[chosen // window], entropy_gradient, kept)
        mask = attention_mask if self.masked else None
        inputs = {"input_ids": input_ids, "attention_mask": mask, "use_cache": False}
        values = None
        if self._finish is None:
            states = self.model(**inputs, logits_to_keep=window + 1).logits[:, :-1]
            logp, entropy = token_logprobs(states.flatten(0, 1)[chosen], *asked)
        else:
            hidden = self.backbone(**inputs).last_hidden_state[:, -window - 1 :]
            head = self.model.get_output_embeddings()  # type: ignore[operator]
            logp, entropy = head(hidden[:, :-1].flatten(0, 1)[chosen], *asked, self._finish, self._chunk)
            if self.value_head is not None:
                values = self.value_head(hidden).squeeze(-1)
                values = torch.where(attention_mask[:, -window - 1 :].bool(), values, 0.0)
        laid = [torch.zeros_like(responses, dtype=x.dtype).flatten().index_put((chosen,), x) for x in (logp, entropy)]
        logp, entropy = (torch.where(responses, x.view_as(responses), 0.0) for x in laid)
        return logp, entropy, values

    def _replace_head(self, layer: nn.Linear) -> Finish | None:
        """Put a LogprobHead in the layer's place; None, and all as it was, where no known finish fits the logits."""
        head = LogprobHead(layer)
        with torch.no_grad(), in_eval_mode(self.model):
            finish = _find_finish(self.model, layer, head)
        if finish is not None:
            self.model.set_output_embeddings(head)  # type: ignore[operator]
        return finish


_LARGE = 30.0
"""Largest logit of the comparison: caps of real models lie near it, and logits of untrained ones far below."""


def _find_finish(model: nn.Module, layer: nn.Linear, head: LogprobHead) -> Finish | None:
    """The finish with which chunked log-probabilities are the model's own, on a fixed input; None where none is."""
    ids = (torch.arange(8, device=layer.weight.device) * 7919 + 1).remainder(len(layer.weight)).unsqueeze(0)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    factor: list[Tensor] = []

    def enlarge(_: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        factor.append(_LARGE / layer.forward(arguments[0]).abs().max())
        return (arguments[0] * factor[0],)

    hook = layer.register_forward_pre_hook(enlarge)
    try:
        logits = model(**inputs).logits[0, :-1]
    finally:
        hook.remove()
    hidden = getattr(model.base_model(**inputs), "last_hidden_state", None)  # type: ignore[operator]
    if hidden is None or not factor:
        return None
    hidden, ones = hidden[0, :-1] * factor[0], torch.ones(7, device=ids.device)
    expected, _ = token_logprobs(logits, ids[0, 1:])
    errors = {}
    for finish in _finishes(model):
        found, _ = head(hidden, ids[0, 1:], ones, False, None, finish, 3)
        errors[finish] = float((found - expected).abs().max().nan_to_num(torch.inf))
    best = min(errors, key=errors.__getitem__)
    tolerance = float(logits.abs().max()) * max(1e-4, 8 * torch.finfo(logits.dtype).eps)
    return best if errors[best] <= tolerance else None


def _finishes(model: nn.Module) -> list[Finish]:
    """What the model may do to its logits, as far as its configuration has words for it."""
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    scales = [1.0]
    for name in ("logit_scale", "logits_scaling", "lm_head_multiplier"):
        # Granite divides by its logits_scaling, HyperCLOVA X multiplies.
        scales += [scale, 1 / scale] if (scale := getattr(config, name, None)) else []
    caps = [None, cap] if (cap := getattr(config, "final_logit_softcapping", None)) else [None]
    return [Finish(scale, cap) for scale in dict.fromkeys(scales) for cap in caps]
