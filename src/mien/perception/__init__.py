"""What is in the photo: faces, their landmarks, their skin, and who they look like."""

from mien.perception.alignment import Crop as Crop
from mien.perception.alignment import face_crop as face_crop
from mien.perception.facemesh import FaceMesh as FaceMesh
from mien.perception.identity import SAME_PERSON_DISTANCE as SAME_PERSON_DISTANCE
from mien.perception.identity import IdentityNetwork as IdentityNetwork
from mien.perception.observation import DetectedFace as DetectedFace
from mien.perception.observation import FaceObservation as FaceObservation
from mien.perception.observe import Perception as Perception
from mien.perception.observe import find_points as find_points
from mien.perception.skin import FaceParts as FaceParts
from mien.perception.skin import face_mask as face_mask
from mien.perception.skin import face_parts as face_parts
