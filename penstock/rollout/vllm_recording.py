"""What a vLLM model's own `load_weights` does with the tensors of a checkpoint: which part of which goes where.

The engine fuses some, pads some, and takes a share of each where it has several processes; only the model knows. It is
watched once, at the level of single operations, and says what it could not follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import TorchDispatchMode

Named = list[tuple[str, torch.Tensor]]
Place = tuple[torch.nn.Module, str]
"""A tensor of the model: its layer, and its name there."""


class NotRepeatable(Exception):
    """A load that cannot be done again from what was seen of it, and why."""


@dataclass(frozen=True)
class View:
    """Elements of a tensor, by their distance from its first."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.as_strided(self.size, self.stride, tensor.storage_offset() + self.offset)


@dataclass(frozen=True)
class Piece:
    """A part of a checkpoint's tensor, and where in the model's it goes."""

    source: str
    taken: View
    placed: View


@dataclass
class Seen:
    """What happened to one of the model's tensors."""

    whole: torch.Tensor
    """As it is before the layer prepares it: on the meta device, but for what vLLM leaves alone, such as biases."""
    pieces: dict[Piece, None] = field(default_factory=dict)
    filled: dict[View, None] = field(default_factory=dict)
    """Set to a constant: padding."""
    others: list[str] = field(default_factory=list)
    """Anything else that wrote to it."""

    def repeat(self, whole: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the pieces of a checkpoint's tensors into `whole`."""
        for piece in self.pieces:
            piece.placed.of(whole).copy_(piece.taken.of(tensors[piece.source]))


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch says nothing of its types
    """Watches `load_weights` after `initialize_layerwise_reload`, which has put tensors without memory into the layers.

    The engine loads every tensor twice: into those, to count when a layer is whole, and then into fresh memory, which
    the layer prepares. The first is what is seen here; the second goes the same way, and is nobody's known place."""

    def __init__(self, model: torch.nn.Module, tensors: Named) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: dict[Place, Seen] = {}
        self.others: list[str] = []
        """What wrote to the checkpoint's own tensors."""
        self.tensors = tensors
        self._given = {_storage(tensor) for _, tensor in tensors}
        self._places: dict[int, Place] = {}
        for layer in model.modules():
            named = {**dict(layer.named_parameters(recurse=False)), **dict(layer.named_buffers(recurse=False))}
            for name, tensor in named.items():
                if not isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
                    self._know((layer, name), tensor)

    def _know(self, place: Place, tensor: torch.Tensor) -> None:
        self.seen[place] = Seen(tensor)
        same = self._places.setdefault(_storage(tensor), place)
        if same != place:
            for each in (same, place):
                self.seen[each].others.append("another tensor in the same memory")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for target in _written(func, args, kwargs or {}):
            storage = _storage(target)
            if storage in self._places:
                self._note(func, target, args)
            elif storage in self._given:
                self.others.append(func._schema.name)
        return func(*args, **(kwargs or {}))

    def _note(self, func: Any, target: torch.Tensor, args: Any) -> None:
        seen, name = self.seen[self._places[_storage(target)]], func._schema.name
        placed = view_of(target, target.storage_offset() - seen.whole.storage_offset())
        if name == "aten::copy_":
            taken = args[1]
            if _storage(taken) == _storage(target) and _whence(taken) == _whence(target):
                return  # what a layer keeps as it is, it copies to itself
            piece = self._piece(taken, placed)
            if piece is not None:
                seen.pieces[piece] = None
                return
        elif name in ("aten::fill_", "aten::zero_"):
            seen.filled[placed] = None
            return
        seen.others.append(name)

    def _piece(self, taken: torch.Tensor, placed: View) -> Piece | None:
        """None for a copy of what is no part of one of the checkpoint's tensors as it is."""
        if taken.is_meta or taken.shape != placed.size:
            return None
        found = []
        for name, source in self.tensors:
            start = taken.data_ptr() - source.data_ptr()
            if 0 <= start < max(1, source.nbytes) and taken.dtype == source.dtype and source.is_contiguous():
                found.append(Piece(name, view_of(taken, start // source.itemsize), placed))
        return found[0] if len(found) == 1 else None

    def must_be_complete(self) -> None:
        """Every tensor of the checkpoint was seen on its way, and none was changed on it. Raises NotRepeatable."""
        if self.others:
            raise NotRepeatable(f"the tensors given were written by {', '.join(sorted(set(self.others)))}")
        used = {piece.source for seen in self.seen.values() for piece in seen.pieces}
        lost = [name for name, _ in self.tensors if name not in used]
        if lost:
            raise NotRepeatable(f"where {lost[0]} went was not seen")


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors that an operation writes to."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            yield from (each for each in (value if isinstance(value, list) else [value]) if each is not None)


def view_of(tensor: torch.Tensor, offset: int | torch.SymInt) -> View:
    """Its elements, `offset` from the first of what it lies in."""
    return View(tuple(tensor.shape), tensor.stride(), int(offset))


def _whence(tensor: torch.Tensor) -> View:
    """Within its memory."""
    return view_of(tensor, tensor.storage_offset())


def _storage(tensor: torch.Tensor) -> int:
    return cast(int, tensor.untyped_storage()._cdata)
