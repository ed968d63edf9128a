"""The linear face model: identity, expression and albedo as coefficient vectors (eq. 1 and 2)."""

from mien.morphable.coefficients import FaceCoefficients as FaceCoefficients
from mien.morphable.model import MorphableModel as MorphableModel
from mien.morphable.model import PartMasks as PartMasks
from mien.morphable.model import load_model as load_model
from mien.morphable.model import save_model as save_model
