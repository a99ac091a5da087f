"""Our tensors by the names and shapes that a family has on disk, and back.

E experts; the first dimension of a linear map is its output
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from llm.config.errors import Refused

if TYPE_CHECKING:
    from torch import Tensor, nn

    from llm.hf.folder import Weights


@dataclass(frozen=True)
class Name:
    """A row of a family's table: a tensor on disk, and what it holds of ours.

    theirs: `{i}` stands for a layer, `{j}` for an expert
    ours: one parameter, or several that lie one behind the other on disk, along their outputs.
        With `{j}` it is that expert's part of the stacked matrices.
    turned: the matrix on disk is the transpose
    """

    theirs: str
    ours: tuple[str, ...]
    turned: bool = False


@dataclass(frozen=True)
class _Place:
    """One tensor on disk: parameters of ours, one expert of them perhaps."""

    ours: tuple[str, ...]
    expert: int | None
    turned: bool


class Layout:
    """How the parameters of one model lie on disk.

    Args:
        names: the family's table
        model: ours; the meta device will do
    Raises:
        Refused: the model has a tensor that the family has not
    """

    def __init__(self, names: tuple[Name, ...], model: "nn.Module"):
        self.ours = dict(model.state_dict(keep_vars=True))
        self.places: dict[str, _Place] = {}
        layers = {name.split(".")[1] for name in self.ours if name.startswith("blocks.")}
        for name in names:
            for i in sorted(layers, key=int) if "{i}" in name.theirs else [""]:
                self._add(name, i)
        held = {ours for place in self.places.values() for ours in place.ours}
        for ours in self.ours:
            if ours not in held:
                raise Refused(f"no tensor of the family holds {ours}")

    def _add(self, name: Name, i: str) -> None:
        ours = tuple(text.replace("{i}", i) for text in name.ours)
        if not all(text in self.ours for text in ours):
            return
        theirs = name.theirs.replace("{i}", i)
        if "{j}" not in theirs:
            self.places[theirs] = _Place(ours, None, name.turned)
            return
        for j in range(self.ours[ours[0]].shape[0]):
            self.places[theirs.replace("{j}", str(j))] = _Place(ours, j, name.turned)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of each tensor on disk."""
        found = {}
        for theirs, place in self.places.items():
            shapes = [tuple(self.ours[name].shape) for name in place.ours]
            if place.expert is not None:
                shapes = [shape[1:] for shape in shapes]
            shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
            found[theirs] = shape[::-1] if place.turned else shape
        return found

    def to_disk(self) -> Iterator[tuple[str, "Tensor"]]:
        """Each tensor as it lies on disk."""
        for theirs, place in self.places.items():
            parts = [self.ours[name].detach() for name in place.ours]
            if place.expert is not None:
                parts = [part[place.expert] for part in parts]
            whole = torch.cat(parts) if len(parts) > 1 else parts[0]
            yield theirs, whole.T if place.turned else whole

    @torch.no_grad()
    def from_disk(self, tensors: "Mapping[str, Tensor] | Weights") -> None:
        """Fill the parameters; the tensors have been found to fit."""
        for theirs, place in self.places.items():
            whole = tensors[theirs].T if place.turned else tensors[theirs]
            parts = [self.ours[name] for name in place.ours]
            if place.expert is not None:
                parts = [part[place.expert] for part in parts]
            pieces = whole.split([part.shape[0] for part in parts]) if len(parts) > 1 else [whole]
            for part, piece in zip(parts, pieces, strict=True):
                part.copy_(piece)


def check(found: Mapping[str, tuple[int, ...]], layout: Layout, where: object) -> None:
    """Refuse the first tensor that is missing, of another shape, or one too many."""
    wanted = layout.shapes()
    for name, shape in wanted.items():
        if name not in found:
            raise Refused(f"{where}: the tensor {name} is missing")
        if found[name] != shape:
            raise Refused(f"{where}: {name} has the shape {found[name]}, and {shape} is needed")
    for name in found:
        if name not in wanted:
            raise Refused(f"{where}: the tensor {name} has no place in this architecture")
