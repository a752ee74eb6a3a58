"""Where the parameters lie in a flat vector."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Parameter:
    """One tensor's place: coordinates ``offset`` to ``offset + size`` of the vector, in C order."""

    name: str
    shape: tuple[int, ...]
    offset: int = 0

    @cached_property
    def size(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)

    @cached_property
    def slice(self) -> slice:
        """The tensor's coordinates in the vector."""
        return slice(self.offset, self.offset + self.size)

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape as rows and columns: the first axis against all others (a convolution's usual view)."""
        rows = self.shape[0] if self.shape else 1
        return rows, self.size // rows if rows else 0


@dataclass(frozen=True)
class Layout:
    """Parameters that lie one behind the other in a flat vector of ``size`` coordinates."""

    parameters: tuple[Parameter, ...]

    @classmethod
    def of(cls, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> Layout:
        """Lay out tensors, given as (name, shape), in this order."""
        parameters, offset = [], 0
        for name, shape in shapes:
            parameters.append(Parameter(name, tuple(int(n) for n in shape), offset))
            offset += parameters[-1].size
        return cls(tuple(parameters))

    @classmethod
    def flat(cls, size: int, name: str = "vector") -> Layout:
        """Lay out one tensor of one axis."""
        return cls.of([(name, (size,))])

    @cached_property
    def size(self) -> int:
        """Number of coordinates of the vector."""
        return sum(parameter.size for parameter in self.parameters)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The parameters' names."""
        return tuple(parameter.name for parameter in self.parameters)

    @cached_property
    def nonempty(self) -> tuple[Parameter, ...]:
        """The parameters that have coordinates."""
        return tuple(parameter for parameter in self.parameters if parameter.size)
