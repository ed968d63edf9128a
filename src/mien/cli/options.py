"""Options that several commands of `mien` share."""
# ruff: noqa: PLC0415 (heavy packages are imported inside the commands)

from __future__ import annotations

from typing import Annotated

import typer


def model_path(name: str) -> str:
    """The argument of `load_model` for a --model: the name of a converted model becomes its path."""
    if name == "mien-face" or name.endswith(".safetensors"):
        return name  # before the heavy imports
    from mien.morphable.registry import converted_model_path

    return converted_model_path(name)


ModelOption = Annotated[
    str, typer.Option("--model", callback=model_path, help="Face model: a name, or the path of a .safetensors file.")
]
