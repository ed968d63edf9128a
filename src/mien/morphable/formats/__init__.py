"""Readers of published face models, one module per format; docs/formats.md lists formats and where to obtain files.

Every reader returns a `SourceModel` in mien's units and conventions, never executes code from a file, and raises
FormatError for content that does not follow the format.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mien.errors import ConfigError, FormatError
from mien.io.npz import NpzReader
from mien.morphable.formats import bfm2009, deep3d, flame, ict, surrey
from mien.morphable.formats.bfm2017 import read_bfm2017
from mien.morphable.formats.generic import read_generic
from mien.morphable.formats.source import SkinningArrays as SkinningArrays
from mien.morphable.formats.source import SourceModel as SourceModel


@dataclass(frozen=True)
class Family:
    """A family of face models that can be read."""

    key: str
    """Short name, used on the command line."""
    title: str
    """Full name."""
    files: str
    """Files or folder that `mien model convert` expects."""
    page: str
    """Where users obtain the files."""
    terms: str
    """Licence terms in brief."""


FAMILIES = (
    Family(
        "bfm2009",
        "Basel Face Model 2009, with FaceWarehouse expressions",
        "folder with 01_MorphableModel.mat [Exp_Pca.bin, std_exp.txt, BFM_exp_idx.mat, BFM_front_idx.mat]",
        "https://faces.dmi.unibas.ch/bfm/ (form); https://github.com/Juyong/3DFace for the expressions",
        "non-commercial research, by registration",
    ),
    Family(
        "deep3d",
        "Deep3DFaceRecon's front of the Basel Face Model 2009",
        "BFM_model_front.mat",
        "https://github.com/sicxu/Deep3DFaceRecon_pytorch (made from the files above)",
        "as the Basel Face Model 2009",
    ),
    Family(
        "bfm2017",
        "Basel Face Model 2017 and 2019, full head and face12",
        "model2017-1_bfm_nomouth.h5, model2017-1_face12_nomouth.h5, model2019_fullHead.h5, model2019_face12.h5",
        "https://faces.dmi.unibas.ch/bfm/bfm2017.html and bfm2019.html (form)",
        "non-commercial research, by registration",
    ),
    Family(
        "flame",
        "FLAME 2020 and 2023",
        "generic_model.pkl, FLAME2023.pkl or an .npz of the same keys [--landmarks landmark_embedding.npy]",
        "https://flame.is.tue.mpg.de (form)",
        "2020 non-commercial; FLAME 2023 Open CC-BY-4.0",
    ),
    Family(
        "ict",
        "ICT-FaceKit",
        "folder FaceXModel, or an .npz of its arrays",
        "https://github.com/ICT-VGL/ICT-FaceKit",
        "MIT",
    ),
    Family(
        "surrey",
        "Surrey Face Model and other eos models",
        "sfm_shape_3448.bin [--blendshapes expression_blendshapes_3448.bin]",
        "https://github.com/patrikhuber/eos (share/)",
        "non-commercial",
    ),
    Family("generic", "Any linear face model", ".npz of docs/formats.md", "your own arrays", "yours"),
)


def family(key: str) -> Family:
    """The family with the given key.

    Raises:
        ConfigError: The key is unknown.
    """
    found = next((f for f in FAMILIES if f.key == key), None)
    if found is None:
        raise ConfigError(f"{key!r} is not a family of face models; use one of: {', '.join(f.key for f in FAMILIES)}")
    return found


def read_model(
    path: Path, *, landmarks: Path | None = None, blendshapes: Path | None = None, front: bool = False
) -> SourceModel:
    """Read a file or folder of any family, recognized by name and content.

    Args:
        path: The file or folder.
        landmarks: FLAME landmark embedding (`.npy` or `.pkl`).
        blendshapes: eos blendshape file.
        front: Reduce the Basel Face Model 2009 to Deep3D's vertices.

    Returns:
        The model as its file has it; missing parts stay missing.

    Raises:
        FormatError: The file does not follow its format.
        ConfigError: An option belongs to another family.
        BackendUnavailable: The file needs h5py, which is not installed.
    """
    key = detect(path)
    for name, given, owner in (
        ("landmarks", landmarks is not None and landmarks.suffix in (".npy", ".pkl"), "flame"),
        ("blendshapes", blendshapes is not None, "surrey"),
        ("front", front, "bfm2009"),
    ):
        if given and key != owner:
            raise ConfigError(f"{path}: is of the family {key}; --{name} is an option of the family {owner}")
    if key == "bfm2009":
        return bfm2009.read_bfm2009(path, front=front)
    if key == "flame":
        return flame.read_flame(path, landmarks=landmarks)
    if key == "surrey":
        return surrey.read_surrey(path, blendshapes=blendshapes)
    readers = {"deep3d": deep3d.read_deep3d, "bfm2017": read_bfm2017, "ict": ict.read_ict, "generic": read_generic}
    return readers[key](path)


def detect(path: Path) -> str:
    """The key of the family that a file or folder belongs to.

    Raises:
        FormatError: It belongs to no known family.
    """
    if path.is_dir():
        if (path / bfm2009.MODEL_FILE).is_file():
            return "bfm2009"
        if (path / ict.NEUTRAL_FILE).is_file():
            return "ict"
        raise FormatError(f"{path}: holds neither {bfm2009.MODEL_FILE} nor {ict.NEUTRAL_FILE}; expected one of them")
    if not path.is_file():
        raise FormatError(f"{path}: no such file or folder")
    if path.suffix == ".mat":
        return "bfm2009" if path.name == bfm2009.MODEL_FILE else "deep3d"
    if path.suffix == ".npz":
        names = NpzReader(path).names
        return "flame" if "v_template" in names else "ict" if "identity_deltas" in names else "generic"
    kinds = {".h5": "bfm2017", ".hdf5": "bfm2017", ".pkl": "flame", ".bin": "surrey"}
    if path.suffix not in kinds:
        raise FormatError(f"{path}: {path.suffix!r} is an unknown file ending; expected .mat, .h5, .pkl, .npz or .bin")
    return kinds[path.suffix]
