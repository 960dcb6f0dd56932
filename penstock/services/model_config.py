"""The section of a run file that names a model and its tokenizer."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from penstock.services.contracts import PenstockError
from penstock.services.files import followed, unreachable
from penstock.services.settings import Section


class ModelError(PenstockError):
    """A model or tokenizer that is not there, is incomplete, or cannot be loaded."""


Dtype = Literal["float32", "bfloat16"]
"""float16 is left out: its narrow exponent needs loss scaling, which no part here does."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_FILE = re.compile(r".*\.(jsonl|json|parquet|safetensors)")


def could_be_hub_id(path: str, base: Path = Path()) -> bool:
    """True for `name` and `owner/name`, unless there is a folder `owner` or the name ends like a file: then a file
    system is meant."""
    return (
        _FILE.fullmatch(path) is None
        and _HUB_ID.fullmatch(path) is not None
        and not ("/" in path and _folder_or_link((base / path).parent))
    )


def _folder_or_link(path: Path) -> bool:
    """Unlike those of Path, the functions of os.path raise for no text, however long."""
    return os.path.isdir(path) or os.path.islink(path)  # noqa: PTH112, PTH114


def locate(path: str, base: Path) -> str:
    """`path` made absolute against `base` when it means a file or folder; a hub id stays as it is.

    `owner/name` means the folder of that name when `base` has one, otherwise the hub.
    """
    absolute = followed(base / Path(path).expanduser())
    # What cannot be looked at, as a link that leads back to itself, is told of and not looked for on the hub.
    local = not could_be_hub_id(path, base) or os.path.exists(absolute) or unreachable(absolute)  # noqa: PTH110
    return str(absolute) if local else path


class ModelSection(Section):
    """A model in Hugging Face format: a directory or an id on the hub."""

    path: str = Field(min_length=1)
    """Directory with config.json and safetensors, or a Hugging Face id such as `Qwen/Qwen3-0.6B`."""
    revision: str | None = None
    """Branch, tag or commit on the hub; a commit makes the run repeatable. Ignored for a directory."""
    tokenizer: str | None = None
    """Directory or hub id of the tokenizer; by default the model's own."""
    dtype: Dtype = "float32"
    """Number format of the weights: float32 or bfloat16."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    """Attention kernels of the learner and the reference model; the sampler has its own."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for sources you trust: it runs with your rights."""
    chat_template: str | None = None
    """Jinja template, or the path of a file with one, that replaces the tokenizer's own."""

    def located(self, base: Path) -> ModelSection:
        """The same section with its paths absolute, so that processes with another working directory agree."""
        changes: dict[str, str] = {"path": locate(self.path, base)}
        if self.tokenizer is not None:
            changes["tokenizer"] = locate(self.tokenizer, base)
        if self.chat_template is not None and "\n" not in self.chat_template:
            file = followed(base / Path(self.chat_template).expanduser())
            if len(self.chat_template) < 256 and file.is_file():
                changes["chat_template"] = str(file)
        return self.model_copy(update=changes)
