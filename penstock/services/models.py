"""Models and tokenizers in Hugging Face format: find, load and save them, for every stage.

Nothing heavy is imported before something is loaded. A token for private models comes only from the
environment (`HF_TOKEN`), never from a run file.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.services import tokenizer_files, weight_files
from penstock.services.config_values import brief
from penstock.services.files import unreachable
from penstock.services.model_config import ModelError, ModelSection, could_be_hub_id

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def not_found(path: str, looked_for: str) -> str:
    """Why `path` is no model, what was looked for, and the nearest name that exists beside it."""
    folder = Path(path)
    if why := unreachable(path):
        return why
    if folder.is_dir():
        holds = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        text = f"{path!r} is a directory without {looked_for}; it holds {holds}"
        deeper = sorted(str(p.parent) for p in folder.glob(f"*/{looked_for}"))
        return text + (f"; did you mean {deeper[-1]!r}?" if deeper else "")
    text = f"{path!r} is not a directory with {looked_for}"
    if folder.parent.is_dir():
        names = [p.name for p in folder.parent.iterdir() if p.is_dir()]
        near = difflib.get_close_matches(folder.name, names, n=1)
        text += f"; did you mean {str(folder.parent / near[0])!r}?" if near else ""
    return text


def problems(section: ModelSection) -> list[tuple[str, str]]:
    """What can be known to be wrong without loading or network: (key within the section, what and remedy)."""
    found: list[tuple[str, str]] = []
    tokenizer = section.tokenizer or section.path
    if _is_local(section.path) and not os.path.isfile(Path(section.path) / "config.json"):  # noqa: PTH113
        found.append(("path", not_found(section.path, "config.json")))
        if section.tokenizer is None:
            return found
    elif Path(section.path).is_dir() and (why := _weights_problem(Path(section.path))):
        found.append(("path", why))
    if section.chat_template is not None and (why := _template_problem(section.chat_template)):
        found.append(("chat_template", why))
    if _is_local(tokenizer) and not _holds_tokenizer(Path(tokenizer)):
        found.append(("tokenizer", not_found(tokenizer, "tokenizer.json")))
    return found


def _weights_problem(folder: Path) -> str:
    try:
        weight_files.count(folder)
        return weight_files.problem(folder)
    except ModelError as error:
        return str(error)


def _template_problem(template: str) -> str:
    """Why it is no chat template; empty where it is one."""
    import jinja2

    try:
        text = _template(template)
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except ModelError as error:
        return str(error)
    except jinja2.TemplateSyntaxError as error:
        known_elsewhere = "unknown tag" in str(error.message)  # transformers has tags of its own
        return "" if known_elsewhere else f"line {error.lineno} of the template is no Jinja: {error.message}"
    return ""


def _is_local(path: str) -> bool:
    """True where only a file or directory can be meant."""
    # Unlike those of Path, the functions of os.path raise for no text, however long.
    return os.path.exists(path) or not could_be_hub_id(path)  # noqa: PTH110


def _holds_tokenizer(folder: Path) -> bool:
    """Whether any of the files is there that one of the tokenizer classes begins from."""
    return any(p.name.startswith(("tokenizer", "vocab")) or p.suffix == ".model" for p in folder.glob("*"))


# --- loading --------------------------------------------------------------------------------------


def read_config(path: str, revision: str | None = None) -> dict[str, Any]:
    """config.json of a directory or hub id. Raises ModelError."""
    file = Path(path) / "config.json"
    if not os.path.isfile(file):  # noqa: PTH113
        if _is_local(path):
            raise ModelError(not_found(path, "config.json"))
        with _explained(path, "config.json"):
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(path, "config.json", revision=revision, etag_timeout=10))
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict) or not (names := config.get("architectures")):
        raise ModelError(f"{file} names no `architectures`; it is not the configuration of a Hugging Face model")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        example = names if isinstance(names, str) else "Qwen3ForCausalLM"
        raise ModelError(f'{file}: architectures is {brief(names)}, allowed is a list of names, as ["{example}"]')
    return config


@contextlib.contextmanager
def _explained(path: str, what: str) -> Iterator[None]:
    """Turn what the hub, transformers and safetensors raise into one ModelError."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if not Path(path).is_dir():
            raise ModelError(
                f"{not_found(path, 'config.json')}, and as an id on the hub its {what} could not be had: "
                f"{type(error).__name__}: {str(error).strip().splitlines()[0]}. "
                "Check the name and the network; private models need HF_TOKEN in the environment"
            ) from error
        raise ModelError(f"cannot load the {what} of {path!r}: {type(error).__name__}: {error}") from error


def _no_bars_in_logs() -> None:
    """Progress bars are for terminals; in a log file each update is a line."""
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()


def _source(path: str, section: ModelSection) -> dict[str, Any]:
    """Where `from_pretrained` looks; a directory is never looked up on the network."""
    if Path(path).is_dir():
        return {"local_files_only": True, "trust_remote_code": section.trust_remote_code}
    if not could_be_hub_id(path):
        raise ModelError(not_found(path, "config.json"))
    return {"revision": section.revision, "trust_remote_code": section.trust_remote_code}


def load_tokenizer(section: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer, with an end-of-sequence token, a padding token, and the template of the section if it has one.

    Raises ModelError when there is none, or when it has no end-of-sequence token: answers could never end.
    """
    path = section.tokenizer or section.path
    _no_bars_in_logs()
    source = _source(path, section)
    if section.tokenizer is not None:
        source.pop("revision", None)  # the revision is the model's
    if Path(path).is_dir() and not _holds_tokenizer(Path(path)):
        # transformers would make an empty one from config.json
        raise ModelError(f"{not_found(path, 'tokenizer.json')}; name the tokenizer's directory in model.tokenizer")
    with _explained(path, "tokenizer"):
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path, **source)
        except Exception as error:
            if why := tokenizer_files.damaged(Path(path)):
                raise ModelError(why) from error
            raise
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {path!r} has no eos_token: answers could not end; set it and save again")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if section.chat_template is not None:
        tokenizer.chat_template = _template(section.chat_template)
    return tokenizer


def _template(text: str) -> str:
    if "{" in text:
        return text
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        neither = f"chat_template {text!r} is neither a Jinja template nor a file that can be read"
        raise ModelError(unreachable(text) or neither) from error


def load_model(section: ModelSection, dtype: str | None = None) -> PreTrainedModel:
    """The causal language model with `dtype` weights (default: the section's), on the CPU, in training mode off.

    Raises ModelError, also when the files lack weights that the architecture has: transformers would make
    them up at random.
    """
    _no_bars_in_logs()
    source = _source(section.path, section)
    read_config(section.path, section.revision)
    with _explained(section.path, "weights"):
        import torch
        from transformers import AutoModelForCausalLM

        model, report = AutoModelForCausalLM.from_pretrained(
            section.path,
            dtype=getattr(torch, dtype or section.dtype),
            attn_implementation=section.attn_implementation,
            output_loading_info=True,
            **source,
        )
    made_up = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"])
    if made_up:
        raise ModelError(
            f"the weight files of {section.path!r} do not fit {type(model).__name__}: {len(made_up)} tensors are "
            f"missing or have another shape, the first is {made_up[0]!r}"
        )
    return model


def load_weights(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Put `weights`, by their Hugging Face names, into `model`; a tied output layer may be missing. Raises ModelError
    naming a tensor that is missing, unknown or of another shape."""
    try:
        missing, unknown = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ModelError(f"these weights do not fit {type(model).__name__}: {error}") from error
    lacking = sorted(set(missing) - set(getattr(model, "all_tied_weights_keys", {})))
    if lacking or unknown:
        what = f"{lacking[0]!r} is missing" if lacking else f"it knows no {sorted(unknown)[0]!r}"
        raise ModelError(f"these weights do not fit {type(model).__name__}: {what}")


# --- saving ---------------------------------------------------------------------------------------


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write model and tokenizer as safetensors into `folder`, replacing what is there, in one rename.

    `state_dict` holds the weights where `model` does not (ZeRO 3 shards); default is the model's own. A tied
    output layer is left out: loaders tie it again, and two copies could disagree. Returns `folder`.
    """
    _no_bars_in_logs()
    partial = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        weights = dict(state_dict) if state_dict is not None else model.state_dict()
        for name in getattr(model, "all_tied_weights_keys", {}):
            weights.pop(name, None)
        model.save_pretrained(partial, state_dict=weights)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        _replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _replace(new: Path, folder: Path) -> None:
    """Put `new` where `folder` is; a crash in between leaves the old one beside it, never half of either."""
    old = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
