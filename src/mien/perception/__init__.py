"""Faces of a photo: boxes, landmarks, crops, skin masks and recognition features."""

from mien.perception.crops import Crop as Crop
from mien.perception.crops import face_crop as face_crop
from mien.perception.detector import Perception as Perception
from mien.perception.detector import find_points as find_points
from mien.perception.face_detection import DetectedFace as DetectedFace
from mien.perception.face_detection import FaceObservation as FaceObservation
from mien.perception.facemesh import FaceMesh as FaceMesh
from mien.perception.recognition import SAME_PERSON_DISTANCE as SAME_PERSON_DISTANCE
from mien.perception.recognition import IdentityNetwork as IdentityNetwork
from mien.perception.skin_mask import FaceParts as FaceParts
from mien.perception.skin_mask import face_mask as face_mask
from mien.perception.skin_mask import face_parts as face_parts
