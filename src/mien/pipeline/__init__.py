"""From a photo to a list of results: inputs, coefficients, textures."""

from mien.pipeline.inputs import FaceInput as FaceInput
from mien.pipeline.inputs import PhotoInputs as PhotoInputs
from mien.pipeline.reconstructor import Reconstructor as Reconstructor
