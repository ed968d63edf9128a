"""Rotations, meshes, similarity transforms and closest points: functions of tensors alone."""

from mien.geometry.closest import Surface as Surface
from mien.geometry.closest import SurfacePoints as SurfacePoints
from mien.geometry.closest import closest_barycentrics as closest_barycentrics
from mien.geometry.closest import normal_distances as normal_distances
from mien.geometry.matching import Matcher as Matcher
from mien.geometry.matching import Matches as Matches
from mien.geometry.matching import nearest as nearest
from mien.geometry.meshes import boundary_vertices as boundary_vertices
from mien.geometry.meshes import submesh as submesh
from mien.geometry.meshes import triangle_normals as triangle_normals
from mien.geometry.meshes import unique_edges as unique_edges
from mien.geometry.meshes import vertex_areas as vertex_areas
from mien.geometry.meshes import vertex_normals as vertex_normals
from mien.geometry.rotations import compose_rotations as compose_rotations
from mien.geometry.rotations import cross_matrix as cross_matrix
from mien.geometry.rotations import left_jacobian as left_jacobian
from mien.geometry.rotations import rotmat_to_rotvec as rotmat_to_rotvec
from mien.geometry.rotations import rotvec_to_rotmat as rotvec_to_rotmat
from mien.geometry.similarity import Similarity as Similarity
from mien.geometry.similarity import align_points as align_points
from mien.geometry.similarity import remove_similarity as remove_similarity
