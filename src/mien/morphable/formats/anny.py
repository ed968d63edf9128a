"""anny's description of a person as JSON: its phenotypes, alone or in the file that its demonstration writes.

Either an object of names and numbers, or {"phenotype_kwargs": {...}, "local_changes_kwargs": {...}, "facial_actions":
{...}, "pose_parameters": ...}. The pose belongs to the body and is passed over; local changes and facial actions are
refused, since the face would lack what the file asks for.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mien.errors import ConfigError, FormatError
from mien.morphable.formats.limits import file_size
from mien.morphable.phenotypes import Phenotype

_LARGEST_JSON = 1 << 20
_FAR = 1e9
"""Far outside every scale; whole numbers beyond floating point end here."""
_PHENOTYPES = "phenotype_kwargs"
_UNREAD = ("local_changes_kwargs", "facial_actions")
_BODY = ("pose_parameters", "pose_parameterization")


def read_phenotype(path: Path) -> Phenotype:
    """Read a phenotype; names that are left out have anny's default 0.5; raises FormatError."""
    if file_size(path) > _LARGEST_JSON:
        raise FormatError(f"{path}: larger than {_LARGEST_JSON} bytes; expected a few numbers")
    try:
        stored = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: no JSON ({error}); expected an object of phenotypes and numbers") from error
    values = _phenotypes(stored, path)
    if not isinstance(values, dict):
        raise FormatError(f"{path}: holds a {type(values).__name__}; expected an object of phenotypes and numbers")
    try:
        return Phenotype.of({name: _number(value) for name, value in values.items()})
    except ConfigError as error:
        raise FormatError(f"{path}: {error}") from error


def _phenotypes(stored: Any, path: Path) -> Any:
    """What holds the numbers; FormatError for parts of a whole file that the face could not follow."""
    if not isinstance(stored, dict) or _PHENOTYPES not in stored:
        return stored
    unread = [name for name in _UNREAD if stored.get(name)]
    unread += sorted(set(stored) - {_PHENOTYPES, *_UNREAD, *_BODY})
    if unread:
        raise FormatError(f"{path}: also holds {', '.join(unread)}; expected phenotypes alone, so take these out")
    return stored[_PHENOTYPES]


def _number(value: Any) -> float:
    """A number, or the only one of a batch of one, as anny's tensors are; NaN, which no scale allows, for all else."""
    single: Any = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(single, bool) or not isinstance(single, (int, float)) or not -_FAR < single < _FAR:
        return math.nan
    return float(single)
