"""3D human faces from photos, and the networks that reconstruct them.

>>> import mien
>>> face = mien.Reconstructor()("photo.jpg")[0]
>>> face.vertices, face.blendshapes["jawOpen"]
>>> face.save("out", parts="head")

`Reconstructor` makes faces of photos, `Reconstruction` is one face, and `track` follows those of a video. `load_model`,
`render` and `fit` are the parts below, for PyTorch.

Importing mien sets the environment variable MKL_CBWR to "AUTO", unless it is set already. MKL reads it at its first
matrix product, so import mien before you compute with torch. Without it, on some Xeons, the last bits of a sum depend
on memory addresses and on the load of the processor, and the same photo gives slightly different faces. Set MKL_CBWR
yourself to choose otherwise.

On Linux, importing mien also sets GOMP_SPINCOUNT, unless it or OMP_WAIT_POLICY is set already: torch's threads then
wait for each other for microseconds, not for a millisecond, in a busy loop. On a processor that other programs use too,
this saves most of the processor time. Torch reads the variable when it is loaded, so import mien before torch;
otherwise `Reconstructor` and `fit` warn with `mien.errors.TorchImportedFirst` where it matters.

Nothing else is changed; torch is imported when the first name of mien is used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from typing import TYPE_CHECKING, Any

from mien.threads import share_processors

if TYPE_CHECKING:
    from mien.camera import Camera as Camera
    from mien.camera import Pose as Pose
    from mien.errors import AssetError as AssetError
    from mien.errors import FormatError as FormatError
    from mien.errors import ImageError as ImageError
    from mien.errors import MienError as MienError
    from mien.errors import NoFaceFound as NoFaceFound
    from mien.export import write_reconstruction as write_reconstruction
    from mien.export import write_turntable as write_turntable
    from mien.fitting import FitSettings as FitSettings
    from mien.fitting import FitTargets as FitTargets
    from mien.fitting import fit as fit
    from mien.io.photo import Photo as Photo
    from mien.io.photo import read_photo as read_photo
    from mien.morphable import FaceCoefficients as FaceCoefficients
    from mien.morphable import MorphableModel as MorphableModel
    from mien.morphable import load_model as load_model
    from mien.pipeline import Reconstructor as Reconstructor
    from mien.rendering import RenderOutput as RenderOutput
    from mien.rendering import render as render
    from mien.result import Reconstruction as Reconstruction
    from mien.tracking import Track as Track
    from mien.tracking import track as track

# For reproducible sums, see above.
os.environ.setdefault("MKL_CBWR", "AUTO")
share_processors(os.environ)

__version__ = importlib.metadata.version("mien")

_HOMES = {
    "Camera": "mien.camera",
    "Pose": "mien.camera",
    "AssetError": "mien.errors",
    "FormatError": "mien.errors",
    "ImageError": "mien.errors",
    "MienError": "mien.errors",
    "NoFaceFound": "mien.errors",
    "write_reconstruction": "mien.export",
    "write_turntable": "mien.export",
    "FitSettings": "mien.fitting",
    "FitTargets": "mien.fitting",
    "fit": "mien.fitting",
    "FaceCoefficients": "mien.morphable",
    "MorphableModel": "mien.morphable",
    "load_model": "mien.morphable",
    "Photo": "mien.io.photo",
    "read_photo": "mien.io.photo",
    "Reconstructor": "mien.pipeline",
    "Reconstruction": "mien.result",
    "Track": "mien.tracking",
    "track": "mien.tracking",
    "RenderOutput": "mien.rendering",
    "render": "mien.rendering",
}
"""The module of each public name, which is imported at the first use: torch takes a second, and `mien --help` does not
need it."""

__all__ = [*sorted(_HOMES), "__version__"]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
