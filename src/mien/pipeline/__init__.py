"""From a photo to a list of results."""

from mien.pipeline.inputs import ObservedFace as ObservedFace
from mien.pipeline.inputs import ObservedFaces as ObservedFaces
from mien.pipeline.reconstructor import Reconstructor as Reconstructor
