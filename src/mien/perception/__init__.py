"""Finds the faces of a photo: boxes, landmarks, crops, skin masks and identity vectors."""

from mien.perception.crops import Crop as Crop
from mien.perception.crops import face_crop as face_crop
from mien.perception.detector import FaceDetector as FaceDetector
from mien.perception.detector import detect_landmarks468 as detect_landmarks468
from mien.perception.face_detection import FaceBox as FaceBox
from mien.perception.face_detection import FaceDetection as FaceDetection
from mien.perception.facemesh import FaceMesh as FaceMesh
from mien.perception.focal_prior import typical_focal_px as typical_focal_px
from mien.perception.pins import Pin as Pin
from mien.perception.pins import pinned as pinned
from mien.perception.recognition import SAME_PERSON_DISTANCE as SAME_PERSON_DISTANCE
from mien.perception.recognition import IdentityNetwork as IdentityNetwork
from mien.perception.same_person import find_person as find_person
from mien.perception.skin_mask import FaceParts as FaceParts
from mien.perception.skin_mask import face_mask as face_mask
from mien.perception.skin_mask import face_parts as face_parts
