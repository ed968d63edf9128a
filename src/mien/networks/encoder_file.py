"""The file of an encoder, and the packaged one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mien.assets import asset_path, load_metadata
from mien.morphable import MorphableModel
from mien.morphable.revisions import is_made_for
from mien.networks.encoder import FaceEncoder, RefinerStart
from mien.networks.weights_file import NetworkKind

DEFAULT_ENCODER = "encoder-lite0.safetensors"
"""Name of the packaged encoder."""


@dataclass(frozen=True)
class EncoderHeader:
    """What an encoder's file says of its architecture, the arguments of `FaceEncoder`."""

    backbone: str
    image_size: int
    points: bool
    refiner: bool = False
    """Missing in the first files of mien 0.1."""
    refine_from: RefinerStart = "prediction"
    """Missing in files of mien 0.1 and 0.2."""


FILE = NetworkKind("mien-encoder-2", "encoder", EncoderHeader)


def save_encoder(encoder: FaceEncoder, path: Path, *, notes: dict[str, str]) -> None:
    """Write an encoder for `load_encoder`.

    Args:
        encoder: Its weights are rounded to float16.
        path: File to write.
        notes: Further entries of the file's header.
    """
    settings = EncoderHeader(
        encoder.backbone_name,
        encoder.image_size,
        points=encoder.points is not None,
        refiner=encoder.refiner is not None,
        refine_from=encoder.refine_from,
    )
    FILE.save(encoder, path, model_hash=encoder.model_hash, settings=settings, notes=notes)


def load_encoder(model: MorphableModel, name_or_path: str | Path = DEFAULT_ENCODER) -> FaceEncoder:
    """Load the packaged encoder, or a file that `mien train coarse` wrote, in evaluation mode.

    Args:
        model: The face model that the encoder was trained with.
        name_or_path: `DEFAULT_ENCODER`, or a path; files of mien 0.1 are read too.

    Raises:
        FormatError: The file is damaged or of another kind.
        ModelMismatch: The encoder was trained with another face model; its coefficients belong to another basis.
        AssetError: The packaged file is missing.
    """
    path = asset_path(DEFAULT_ENCODER) if str(name_or_path) == DEFAULT_ENCODER else Path(name_or_path)
    return FILE.load(
        path,
        model=model,
        build=lambda header: FaceEncoder(
            header.backbone,
            model,
            image_size=header.image_size,
            points=header.points,
            refiner=header.refiner,
            refine_from=header.refine_from,
        ),
    )


def has_packaged_encoder(model: MorphableModel) -> bool:
    """Whether the packaged encoder was made for a face model.

    Args:
        model: The face model.

    Raises:
        AssetError: The packaged file is missing or damaged.
    """
    return is_made_for(load_metadata(DEFAULT_ENCODER)["model_hash"], model.fingerprint)
