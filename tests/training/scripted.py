"""A random generator that returns what a test wants."""

from __future__ import annotations

from typing import Any

import numpy as np


class ScriptedRng(np.random.Generator):
    """Returns given values in order of the calls, kind by kind; an exhausted kind returns its last value.

    Args:
        random: Results of `random()`.
        uniform: Results of `uniform`, as shares of the way from low to high.
        normal: Results of `normal`, in standard deviations.
        integers: Results of `integers`, before they are limited to the range.
    """

    def __init__(
        self,
        *,
        random: tuple[float, ...] = (0.99,),
        uniform: tuple[float, ...] = (0.5,),
        normal: tuple[float, ...] = (0.0,),
        integers: tuple[int, ...] = (0,),
    ) -> None:
        super().__init__(np.random.PCG64(0))
        self._values = {"random": [*random], "uniform": [*uniform], "normal": [*normal], "integers": [*integers]}

    def spawn(self, n_children: int) -> list[np.random.Generator]:
        """Generators without a script of their own: `random()` gives 0.99."""
        return [ScriptedRng() for _ in range(n_children)]

    def _next(self, kind: str) -> Any:
        values = self._values[kind]
        return values.pop(0) if len(values) > 1 else values[0]

    def random(self, size: Any = None, **_: Any) -> Any:
        value = self._next("random")
        return value if size is None else np.full(size, value)

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        value = low + (high - low) * self._next("uniform")
        return value if size is None else np.full(size, value)

    def normal(self, loc: Any = 0.0, scale: Any = 1.0, size: Any = None) -> Any:
        value = loc + np.asarray(scale) * self._next("normal")
        return np.full(size, value) if size is not None else (float(value) if np.ndim(value) == 0 else value)

    def integers(self, low: Any, high: Any = None, **_: Any) -> Any:
        first, end = (0, low) if high is None else (low, high)
        return min(max(self._next("integers"), first), end - 1)
