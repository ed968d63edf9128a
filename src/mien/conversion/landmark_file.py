"""Landmarks as lines of text, and where converted models lie."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from mien.errors import ConfigError, FormatError
from mien.morphable.formats import FAMILIES, SourceModel
from mien.morphable.formats.limits import file_size

_LARGEST = 1 << 16
_PLURAL = {"bfm": ("bfm2009", "deep3d", "bfm2017")}
"""Short names that stand for more than one family."""


def with_landmarks(model: SourceModel, path: Path | None) -> SourceModel:
    """The model with the landmarks of a text file in place of its own; binary embeddings were read with the model."""
    if path is None or path.suffix in (".npy", ".pkl"):
        return model
    return replace(model, landmarks=read_landmarks(path, vertices=len(model.mean)))


def read_landmarks(path: Path, *, vertices: int) -> dict[int, int]:
    """Lines of 'iBUG-number vertex', both from 0; '#' begins a remark. FormatError for anything else."""
    if file_size(path) > _LARGEST:
        raise FormatError(f"{path}: larger than {_LARGEST} bytes; expected up to 68 lines of two numbers")
    found: dict[int, int] = {}
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        is_pair = len(words) == 2 and all(word.isascii() and word.isdigit() and len(word) < 10 for word in words)
        if not is_pair or int(words[0]) >= 68 or int(words[1]) >= vertices:
            raise FormatError(f"{path}: line {number} is {line!r}; expected 0 to 67 and a vertex below {vertices}")
        found[int(words[0])] = int(words[1])
    return found


def models_folder() -> Path:
    """Where converted models are looked for by name: $MIEN_MODELS, or the user's data folder."""
    return Path(os.environ.get("MIEN_MODELS") or Path.home() / ".local" / "share" / "mien" / "models")


def converted_models() -> tuple[Path, ...]:
    """Files of the models that can be given by name."""
    return tuple(sorted(models_folder().glob("*.safetensors")))


def converted_model_path(name: str) -> str:
    """The path of a converted model given as a path or by name, as a family's or a file's; the packaged model's name
    stays. ConfigError says how to get a missing one.
    """
    if name.endswith(".safetensors") or name == "mien-face":
        return name
    keys = _PLURAL.get(name, (name,))
    by_name = {path.stem: path for path in converted_models()}
    existing = next((by_name[key] for key in keys if key in by_name), None)
    if existing is not None:
        return str(existing)
    family = next((f for f in FAMILIES if f.key == keys[0]), None)
    if family is None:
        if Path(name).exists():
            raise ConfigError(f"{name}: is no .safetensors file; run: mien model convert {name} -o NAME.safetensors")
        known = ", ".join(dict.fromkeys(("mien-face", *by_name, *(f.key for f in FAMILIES), *_PLURAL)))
        raise ConfigError(f"{name!r} is neither a .safetensors file nor one of {known}")
    place = models_folder() / f"{keys[0]}.safetensors"
    raise ConfigError(
        f"there is no {place}: obtain {family.files} from {family.page}, then run: mien model convert SRC -o {place}"
    )
