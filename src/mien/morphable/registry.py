"""Finds converted face models by name."""

from __future__ import annotations

import os
from pathlib import Path

from mien.errors import ConfigError
from mien.morphable.formats import FAMILIES

_PLURAL = {"bfm": ("bfm2009", "deep3d", "bfm2017")}
"""Short names that stand for more than one family."""


def models_folder() -> Path:
    """The folder that is searched for converted models: $MIEN_MODELS, or the user's data folder."""
    return Path(os.environ.get("MIEN_MODELS") or Path.home() / ".local" / "share" / "mien" / "models")


def converted_models() -> tuple[Path, ...]:
    """All model files in `models_folder`, sorted; the file name without its ending is the model's name."""
    return tuple(sorted(models_folder().glob("*.safetensors")))


def converted_model_path(name: str) -> str:
    """Resolve the model that a user named to something that `load_model` accepts.

    Args:
        name: Path of a `.safetensors` file, name of a file in `models_folder`, name of a family ("flame", "bfm"), or
            the packaged model's name.

    Returns:
        The path, or the packaged model's name unchanged.

    Raises:
        ConfigError: There is no such model; the message tells how to obtain and convert it.
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
            raise ConfigError(f"{name} is not a .safetensors file; run: mien model convert {name} -o NAME.safetensors")
        known = ", ".join(dict.fromkeys(("mien-face", *by_name, *(f.key for f in FAMILIES), *_PLURAL)))
        raise ConfigError(f"model {name!r} is neither a .safetensors file nor one of {known}")
    target = models_folder() / f"{keys[0]}.safetensors"
    raise ConfigError(
        f"{target} does not exist: obtain {family.files} from {family.page}, then run: "
        f"mien model convert SRC -o {target}"
    )
