"""Converted face models that can be given by name."""

from __future__ import annotations

import os
from pathlib import Path

from mien.errors import ConfigError
from mien.morphable.formats import FAMILIES

_PLURAL = {"bfm": ("bfm2009", "deep3d", "bfm2017")}
"""Short names that stand for more than one family."""


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
