"""The morphable face model, its coefficients and its landmarks."""

from mien.morphable.coefficients import FaceCoefficients as FaceCoefficients
from mien.morphable.head import HeadModel as HeadModel
from mien.morphable.head import HeadPart as HeadPart
from mien.morphable.head import load_head as load_head
from mien.morphable.landmarks import landmark_vertices as landmark_vertices
from mien.morphable.model import MorphableModel as MorphableModel
from mien.morphable.model import PartMasks as PartMasks
from mien.morphable.model import load_model as load_model
from mien.morphable.model import save_model as save_model
