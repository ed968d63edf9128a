"""Options that several commands of `mien` share."""
# ruff: noqa: PLC0415 (heavy packages are imported inside the commands)

from __future__ import annotations

import enum
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


class Mode(str, enum.Enum):
    """The choices of --mode."""

    FIT, NET, AUTO = "fit", "net", "auto"


class DetailMode(str, enum.Enum):
    """The choices of --detail-mode."""

    FIT, NET = "fit", "net"


class GlbMorphs(str, enum.Enum):
    """The choices of --glb."""

    SPARSE, DENSE = "sparse", "dense"


DeviceOption = Annotated[str, typer.Option(help="Device: cpu or cuda.")]
DetailOption = Annotated[
    bool, typer.Option("--detail/--no-detail", help="Whether to make maps of wrinkles and skin colour.")
]
GlbOption = Annotated[
    GlbMorphs,
    typer.Option(
        "--glb", help="Morph targets of face.glb. dense: for programs that lose sparse data; 2.4 times the size."
    ),
]
SeedOption = Annotated[int, typer.Option(help="Seed; equal seeds give equal results.")]
ModeOption = Annotated[
    Mode,
    typer.Option(help="fit: optimise. net: use the encoder alone. auto: optimise from the encoder's prediction."),
]
EncoderOption = Annotated[
    str | None, typer.Option("--encoder", help="Encoder file of modes net and auto. Default: the packaged one.")
]
DetailModeOption = Annotated[
    DetailMode | None,
    typer.Option(
        "--detail-mode", help="fit: optimise the maps. net: use the detail network. Default: fit in mode fit, else net."
    ),
]
DetailNetworkOption = Annotated[
    str | None, typer.Option(help="Detail network file of --detail-mode net. Default: the packaged one.")
]
