"""anny's description of a person as JSON: phenotypes alone, or the file that anny's demo writes.

Either an object of names and numbers, or {"phenotype_kwargs": {...}, "local_changes_kwargs": {...}, "facial_actions":
{...}, "pose_parameters": ...}. The pose belongs to the body and is ignored. Local changes and facial actions are an
error, because the resulting face would not show them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mien.errors import ConfigError, FormatError
from mien.io.reading import MAX_SETTINGS_BYTES, read_json
from mien.morphable.phenotypes import Phenotype

_FAR = 1e9
"""Far outside every scale; larger integers might not convert to float."""
_PHENOTYPES = "phenotype_kwargs"
_UNREAD = ("local_changes_kwargs", "facial_actions")
_BODY = ("pose_parameters", "pose_parameterization")


def read_phenotype(path: Path) -> Phenotype:
    """Read a phenotype; missing names take anny's default 0.5; raises FormatError."""
    advice = "expected an object of phenotypes and numbers"
    values = _phenotypes(read_json(path, dict[str, Any], limit=MAX_SETTINGS_BYTES, advice=advice), path)
    if not isinstance(values, dict):
        raise FormatError(f"{path}: holds a {type(values).__name__}; expected an object of phenotypes and numbers")
    try:
        return Phenotype.of({name: _number(value) for name, value in values.items()})
    except ConfigError as error:
        raise FormatError(f"{path}: {error}") from error


def _phenotypes(stored: dict[str, Any], path: Path) -> Any:
    """The object of phenotypes; FormatError if the file also holds parts that the face cannot show."""
    if _PHENOTYPES not in stored:
        return stored
    unread = [name for name in _UNREAD if stored.get(name)]
    unread += sorted(set(stored) - {_PHENOTYPES, *_UNREAD, *_BODY})
    if unread:
        raise FormatError(f"{path}: also holds {', '.join(unread)}, which are not supported; remove them")
    return stored[_PHENOTYPES]


def _number(value: Any) -> float:
    """The number, also from a list of one as anny writes tensors; NaN, which every scale refuses, for other values."""
    single: Any = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(single, bool) or not isinstance(single, (int, float)) or not -_FAR < single < _FAR:
        return math.nan
    return float(single)
