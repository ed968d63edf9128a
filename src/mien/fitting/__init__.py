"""Fitting of the face model to photos: landmarks, light, photometric energy, detail maps."""

from mien.fitting.joint import JointFit as JointFit
from mien.fitting.joint import fit_joint as fit_joint
from mien.fitting.landmarks import align_to_points as align_to_points
from mien.fitting.lids import fit_lids as fit_lids
from mien.fitting.lids import lid_openings as lid_openings
from mien.fitting.lips import close_lips as close_lips
from mien.fitting.maps import DetailSettings as DetailSettings
from mien.fitting.maps import fit_detail as fit_detail
from mien.fitting.photometric import sample_vertex_colours as sample_vertex_colours
from mien.fitting.problem import FitResult as FitResult
from mien.fitting.problem import FitSettings as FitSettings
from mien.fitting.problem import FitTargets as FitTargets
from mien.fitting.problem import Progress as Progress
from mien.fitting.problem import StageTime as StageTime
from mien.fitting.stages import StageClock as StageClock
from mien.fitting.stages import fit as fit
from mien.fitting.stages import fit_points as fit_points
from mien.fitting.stages import fit_prediction as fit_prediction
from mien.fitting.stages import mesh_point_weights as mesh_point_weights
from mien.fitting.stages import trusted_point_weights as trusted_point_weights
from mien.fitting.stages import with_light_and_albedo as with_light_and_albedo
