"""The value model with a backbone of its own: a language model's layers and one linear layer that starts at zero."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from penstock.services.logprob_head import Readout
from penstock.services.logprobs import PaddedRows
from penstock.services.padding import needs_mask


class ValueModel(nn.Module):
    """`backbone` is a Hugging Face model without its output layer; its parameters lie under the prefix `backbone.`.

    Values are 0 until the first update, so that a new value model is no worse than none.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.config: Any = backbone.config
        text: Any = self.config.get_text_config()  # type: ignore[union-attr,operator]
        self.value_head = Readout(int(text.hidden_size), 1)
        self.masked = needs_mask(backbone)
        """Whether padding has to be masked."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, window: int) -> Float[Tensor, "rows window+1"]:
        """Values of the states before each token of the window and, last, behind the final position; 0 on padding."""
        mask = attention_mask if self.masked else None
        states = self.backbone(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
        values = self.value_head(states[:, -window - 1 :]).squeeze(-1)
        return torch.where(attention_mask[:, -window - 1 :].bool(), values, values.new_zeros(()))

    def gradient_checkpointing_enable(self, settings: dict[str, Any]) -> None:
        """As the backbone's own."""
        self.backbone.gradient_checkpointing_enable(settings)  # type: ignore[operator]


def window_values(model: Any, rows: PaddedRows) -> Float[Tensor, "rows window+1"]:
    """Values of a ValueModel, also inside an engine, on padded rows."""
    found: Tensor = model(
        input_ids=rows.tokens, attention_mask=rows.attention.long(), window=int(rows.targets.shape[1])
    )
    return found


def split_values(
    found: Float[Tensor, "rows window+1"], rows: PaddedRows
) -> tuple[Float[Tensor, "rows window"], Float[Tensor, " rows"]]:
    """Values before every response token, 0 elsewhere; and those behind the last token of each response."""
    before = torch.where(rows.responses, found[:, :-1], found.new_zeros(()))
    places = torch.arange(1, found.shape[1], device=found.device)
    last = (rows.responses * places).amax(dim=1, keepdim=True)
    return before, found.gather(1, last).squeeze(1)
