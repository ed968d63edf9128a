"""Options that several commands of `mien` share."""
# ruff: noqa: PLC0415 (as in `cli`, heavy imports wait for their command)

from __future__ import annotations

from typing import Annotated

import typer


def model_path(name: str) -> str:
    """What `load_model` reads for a --model: names of converted models stand for their files."""
    if name == "mien-face" or name.endswith(".safetensors"):
        return name  # without the heavy imports
    from mien.morphable.registry import converted_model_path

    return converted_model_path(name)


ModelOption = Annotated[
    str, typer.Option("--model", callback=model_path, help="A model's name, or path of a .safetensors.")
]
