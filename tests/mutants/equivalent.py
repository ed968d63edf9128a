"""Mutants that change nothing a test could see, each reviewed by hand: at most one in twenty of a sample."""

from __future__ import annotations

from typing import NamedTuple

MOST = 0.05
"""Of a sample."""


class Equivalent(NamedTuple):
    """One mutant, by its text, so that other changes of the file do not matter."""

    module: str
    """Path below src/mien."""
    function: str
    before: str
    after: str
    reason: str


EQUIVALENT: list[Equivalent] = []
