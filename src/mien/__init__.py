"""mien: one photograph in, a 3D human face out, and the networks that do it.

>>> import mien
>>> faces = mien.Reconstructor()("photo.jpg")
"""

from mien.camera import Camera as Camera
from mien.camera import Pose as Pose
from mien.errors import AssetError as AssetError
from mien.errors import FormatError as FormatError
from mien.errors import ImageError as ImageError
from mien.errors import MienError as MienError
from mien.errors import NoFaceFound as NoFaceFound
from mien.export import write_reconstruction as write_reconstruction
from mien.fitting import FitSettings as FitSettings
from mien.fitting import FitTargets as FitTargets
from mien.fitting import fit as fit
from mien.morphable import FaceCoefficients as FaceCoefficients
from mien.morphable import MorphableModel as MorphableModel
from mien.morphable import load_model as load_model
from mien.photo import Photo as Photo
from mien.photo import read_photo as read_photo
from mien.reconstruct import Reconstructor as Reconstructor
from mien.reconstruction import Reconstruction as Reconstruction
from mien.rendering import RenderOutput as RenderOutput
from mien.rendering import render as render

__version__ = "0.1.0"
