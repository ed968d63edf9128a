"""Options that several commands of `mien` share, and the checks of their values.

A value that is wrong by itself is wrong usage: exit code 2, with a message that names the option, the value and what is
allowed. What depends on the content of a file or on the machine is an error of the run: exit code 1.
"""
# ruff: noqa: PLC0415 (heavy packages are imported inside the commands)

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mien.errors import ConfigError

RESOLUTIONS = (224, 512, 1024)
TEXTURE_SIZES = (256, 512, 1024, 2048)


@contextmanager
def wrong_usage(option: str | None = None) -> Iterator[None]:
    """Turn a `ConfigError` into an error of usage, exit code 2.

    Args:
        option: The option whose value is wrong; None if the message names it.
    """
    try:
        yield
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint=option and f"'{option}'") from error


def model_path(name: str) -> str:
    """The argument of `load_model` for a --model: the name of a converted model becomes its path."""
    if name == "mien-face":
        return name  # before the heavy imports
    if not name.endswith(".safetensors"):
        from mien.morphable.registry import converted_model_path

        with wrong_usage():
            return converted_model_path(name)
    return _existing(name)


def network_file(name: str | None) -> str | None:
    """Check that the file of a network exists; the names of the packaged ones are accepted too."""
    if name is None or Path(name).exists():
        return name
    from mien.networks import DEFAULT_DETAIL, DEFAULT_ENCODER

    return name if name in {DEFAULT_ENCODER, DEFAULT_DETAIL} else _existing(name)


def _existing(name: str) -> str:
    if not Path(name).exists():
        raise typer.BadParameter(f"{name}: no such file")
    return name


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise typer.BadParameter(f"{name!r} is not a device; use cpu or cuda")
    return name


def _resolution(side: int) -> int:
    if side not in RESOLUTIONS:
        raise typer.BadParameter(f"{side} is not offered; use {', '.join(map(str, RESOLUTIONS))}")
    return side


def _texture_size(side: int | None) -> int | None:
    if side is not None and side not in TEXTURE_SIZES:
        raise typer.BadParameter(f"{side} is not offered; use {', '.join(map(str, TEXTURE_SIZES))}")
    return side


def _seed(value: int) -> int:
    if not 0 <= value < 2**63:  # the range of torch's generators
        raise typer.BadParameter(f"{value} is out of range; use a number from 0 to 2^63 - 1")
    return value


def _positive(value: float | None) -> float | None:
    """Check that a number is positive and finite; None stays None."""
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"{value:g} is out of range; use a positive number")
    return value


def _position(value: tuple[float, float] | None) -> tuple[float, float] | None:
    """Check that both coordinates are finite; None stays None."""
    if value is not None and not all(map(math.isfinite, value)):
        raise typer.BadParameter(f"{value[0]:g} {value[1]:g} is not a position; use two finite numbers")
    return value


def finite(value: float) -> float:
    """Check that a number is not nan, which passes every comparison of a range."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value:g} is not a number")
    return value


def suffixed(suffix: str) -> Callable[[Path | None], Path | None]:
    """The check that a file to write has the ending of its format."""

    def check(path: Path | None) -> Path | None:
        if path is not None and path.suffix.lower() != suffix:
            raise typer.BadParameter(f"{path} does not end in {suffix}; choose a name that does")
        return path

    return check


class Mode(str, enum.Enum):
    """The choices of --mode."""

    FIT, NET, AUTO = "fit", "net", "auto"


class DetailMode(str, enum.Enum):
    """The choices of --detail-mode."""

    FIT, NET = "fit", "net"


class Scalp(str, enum.Enum):
    """The choices of --scalp."""

    HAIR, SKIN = "hair", "skin"


class GlbMorphs(str, enum.Enum):
    """The choices of --glb."""

    SPARSE, DENSE = "sparse", "dense"


ModelOption = Annotated[
    str, typer.Option("--model", callback=model_path, help="Face model: a name, or the path of a .safetensors file.")
]
DeviceOption = Annotated[
    str, typer.Option(metavar="[cpu|cuda]", callback=_device, help="Device; cuda:1 is the second GPU.")
]
DetailOption = Annotated[
    bool, typer.Option("--detail/--no-detail", help="Whether to make maps of wrinkles and skin colour.")
]
GlbOption = Annotated[
    GlbMorphs,
    typer.Option(
        "--glb",
        metavar="[sparse|dense]",
        help="Morph targets of face.glb. dense: for programs that lose sparse data; 2.4 times the size.",
    ),
]
SeedOption = Annotated[int, typer.Option(callback=_seed, help="Seed; equal seeds give equal results.")]
ResolutionOption = Annotated[
    int, typer.Option(metavar="[224|512|1024]", callback=_resolution, help="Side of the detail maps in texels.")
]
TextureSizeOption = Annotated[
    int | None,
    typer.Option(
        "--texture-size",
        metavar="[256|512|1024|2048]",
        callback=_texture_size,
        help="Side of the texture in texels; head.glb's is up to twice as large. Default: 1024, in mode net 256.",
        show_default=False,
    ),
]
ScalpOption = Annotated[
    Scalp,
    typer.Option(
        "--scalp",
        metavar="[hair|skin]",
        help="Scalp of the head in meshes and pictures. hair: short, in the colour of the photo's. skin: shaved.",
    ),
]
FocalOption = Annotated[
    float | None,
    typer.Option(callback=_positive, help="Focal length in pixels. Default: from EXIF, else for a face 0.8 m away."),
]
PrincipalPointOption = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--principal-point",
        metavar="X Y",
        callback=_position,
        help="Position of the optical axis in pixels, for a crop. Default: the photo's middle.",
    ),
]
ModeOption = Annotated[
    Mode | None,
    typer.Option(
        metavar="[auto|fit|net]",
        help="auto: optimise from the encoder's prediction. fit: optimise without the encoder. net: the encoder and a "
        "short fit to the points. Default: auto, or fit for a face model without an encoder.",
        show_default=False,
    ),
]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        "--encoder", callback=network_file, help="Encoder file of modes net and auto. Default: the packaged one."
    ),
]
DetailModeOption = Annotated[
    DetailMode | None,
    typer.Option(
        "--detail-mode",
        metavar="[fit|net]",
        help="fit: optimise the maps. net: use the detail network. Default: net in mode net, else fit.",
    ),
]
DetailNetworkOption = Annotated[
    str | None,
    typer.Option(callback=network_file, help="Detail network file of --detail-mode net. Default: the packaged one."),
]
ProcessesOption = Annotated[int | None, typer.Option(min=1, help="Number of processes. Default: one per core.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress; only results and errors.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
