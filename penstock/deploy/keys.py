"""What keys a run file may have: walks the declared types, finds the nearest right name for a wrong one."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from penstock.deploy.yaml_source import KeyPath
from penstock.services.settings import Section


def dotted(path: Sequence[str | int]) -> str:
    """A key path as people write it: `data.sources.train`."""
    return ".".join(map(str, path))


def _element(annotation: Any, key: str | int) -> Any:
    """The type below `annotation` at `key`, or None where the type ends."""
    if annotation is Any:
        return Any
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        return _element(arguments[0], key)
    if origin in (typing.Union, types.UnionType):
        below = (_element(argument, key) for argument in arguments)
        return next((b for b in below if b is not None), None)
    if origin is not None and arguments and issubclass(origin, Mapping):
        return arguments[1]
    if origin is not None and arguments and issubclass(origin, Sequence) and isinstance(key, int):
        return arguments[0]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and key in annotation.model_fields:
        return annotation.model_fields[str(key)].annotation
    return None


def type_at(root: type[BaseModel], path: Sequence[str | int]) -> Any:
    """The declared type at `path`, or None where the path leaves what is declared."""
    here: Any = root
    for key in path:
        here = _element(here, key)
        if here is None:
            return None
    return here


def open_at(root: type[BaseModel], path: Sequence[str | int]) -> bool:
    """Whether `path` lies in a field that may hold a section of the user's own, whose keys are not known here."""
    here: Any = root
    for key in path[:-1]:
        fields = [s.model_fields[str(key)] for s in direct_sections(here) if key in s.model_fields]
        if any(isinstance(f.json_schema_extra, dict) and "own_too" in f.json_schema_extra for f in fields):
            return True
        here = _element(here, key)
    return False


def sections_at(root: type[BaseModel], path: Sequence[str | int]) -> Iterator[type[BaseModel]]:
    """The sections that may be written at `path`; where one may stand for a list of one, that one."""
    here = type_at(root, path)
    yield from direct_sections(_element(here, 0) if is_list(here) else here)


def names_at(root: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that the sections at `path` have."""
    return sorted({name for section in sections_at(root, path) for name in section.model_fields})


def why_left_out(root: type[BaseModel], path: Sequence[str | int]) -> str:
    """Why a key that people look for at `path` is not there on purpose; empty where nothing was said about it."""
    sections = sections_at(root, path[:-1])
    texts = (s.left_out.get(str(path[-1]), "") for s in sections if issubclass(s, Section))
    return next((text for text in texts if text), "")


def direct_sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that `annotation` itself may be, not those inside its containers."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        for argument in typing.get_args(annotation):
            yield from direct_sections(argument)


def all_keys(root: type[BaseModel], prefix: KeyPath = ()) -> Iterator[str]:
    """Every key path that needs no name of the user's own."""
    for name, info in root.model_fields.items():
        yield dotted((*prefix, name))
        for section in direct_sections(info.annotation):
            yield from all_keys(section, (*prefix, name))


ELSEWHERE: Mapping[str, str] = {
    "lr": "learner.learning_rate",
    "batch_size": "learner.groups_per_step",
    "train_batch_size": "learner.groups_per_step",
    "ppo_mini_batch_size": "learner.mini_batches",
    "ppo_epochs": "learner.epochs",
    "num_iterations": "learner.epochs",
    "grad_clip": "learner.max_grad_norm",
    "n": "rollout.group_size",
    "rollout_n": "rollout.group_size",
    "num_generations": "rollout.group_size",
    "num_workers": "rollout.workers",
    "max_new_tokens": "rollout.sampling.max_tokens",
    "max_completion_length": "rollout.sampling.max_tokens",
    "max_response_length": "rollout.sampling.max_tokens",
    "max_prompt_length": "data.max_prompt_tokens",
    "beta": "algorithm.kl.coefficient",
    "kl_coef": "algorithm.kl.coefficient",
    "epsilon": "algorithm.objective.clip_low",
    "cliprange": "algorithm.objective.clip_low",
    "clip_ratio": "algorithm.objective.clip_low",
    "epsilon_high": "algorithm.objective.clip_high",
    "entropy_coef": "algorithm.entropy_coefficient",
    "max_staleness": "staleness.max_lag",
    "max_steps": "limits.steps",
    "total_steps": "limits.steps",
    "save_steps": "checkpoints.every",
    "output_dir": "runs_dir",
    "model_name_or_path": "model.path",
    "reward_funcs": "reward.rules",
    "gpu_memory_utilization": "engine.memory_share",
    "tensor_parallel_size": "engine.tensor_parallel",
}
"""What keys are called in run files of other libraries, and here."""


def nearest_key(root: type[BaseModel], path: Sequence[str | int]) -> str:
    """The existing key path that was probably meant: the same name elsewhere, else one of almost that name beside it or
    one section below, or one that begins with it; empty when nothing comes near. Names that are merely alike in
    sections that have nothing to do with it mislead."""
    wrong, whole = str(path[-1]), dotted(path)
    if known := ELSEWHERE.get(wrong):
        beside = known.rpartition(".")[2]
        return dotted((*path[:-1], beside)) if beside in names_at(root, path[:-1]) else known
    if otherwise := _in_another_case(root, path):
        return otherwise
    keys = [key for key in all_keys(root) if key != whole]
    by_name: dict[str, list[str]] = {}
    for key in keys:
        by_name.setdefault(key.rsplit(".", 1)[-1], []).append(key)

    def likeliest(name: str) -> str:
        """Of the keys with this name the one most like the path, or the outermost where only a name was given."""
        if len(path) == 1:
            return min(by_name[name], key=lambda key: key.count("."))
        return max(by_name[name], key=lambda key: difflib.SequenceMatcher(None, key, whole).ratio())

    longer = _longer(root, path)
    if wrong in by_name and not (longer and likeliest(wrong).partition(".")[0] != path[0]):
        return likeliest(wrong)
    return longer or _almost(root, path)


def _in_another_case(root: type[BaseModel], path: Sequence[str | int]) -> str:
    """The path itself where only capitals, or `-` for `_`, keep it from being one."""
    here: KeyPath = ()
    for part in path:
        names = names_at(root, here)
        like = [name for name in names if name == str(part).casefold().replace("-", "_")]
        here = (*here, part if part in names or not like else like[0])
    return dotted(here) if here != tuple(path) and type_at(root, here) is not None else ""


def _longer(root: type[BaseModel], path: Sequence[str | int]) -> str:
    """The first declared key beside `path` whose name begins with its name: `keep_last` for `keep`."""
    for section in sections_at(root, path[:-1]):
        for name in section.model_fields:
            if name.startswith(f"{path[-1]}_"):
                return dotted((*path[:-1], name))
    return ""


def _almost(root: type[BaseModel], path: Sequence[str | int]) -> str:
    """The key of almost this name beside `path`, or in a section there where the two are as good as the same."""
    wrong, around = str(path[-1]), tuple(path[:-1])
    siblings = difflib.get_close_matches(wrong, names_at(root, around), n=1, cutoff=0.65)
    below = {
        name: (*around, section, name)
        for section in names_at(root, around)
        for name in names_at(root, (*around, section))
        if around
    }
    deeper = difflib.get_close_matches(wrong, below, n=1, cutoff=0.85)
    if deeper and (not siblings or _likeness(wrong, deeper[0]) > _likeness(wrong, siblings[0])):
        return dotted(below[deeper[0]])
    return dotted((*around, siblings[0])) if siblings else ""


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def is_list(annotation: Any) -> bool:
    """True for a type whose entries are reached by index."""
    origin = typing.get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Sequence)
