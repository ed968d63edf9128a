"""Rendering of faces, sampling of images and UV maps, and visibility of vertices."""

from mien.rendering.renderer import FaceSurface as FaceSurface
from mien.rendering.renderer import RenderOutput as RenderOutput
from mien.rendering.renderer import VertexDetail as VertexDetail
from mien.rendering.renderer import build_surface as build_surface
from mien.rendering.renderer import draw_texture as draw_texture
from mien.rendering.renderer import render as render
from mien.rendering.sampling import sample_image as sample_image
from mien.rendering.sampling import sample_map as sample_map
from mien.rendering.sampling import sample_map_hyperbolic as sample_map_hyperbolic
from mien.rendering.sampling import sample_nearest as sample_nearest
from mien.rendering.visibility import VISIBILITY_SLACK_M as VISIBILITY_SLACK_M
from mien.rendering.visibility import facing_camera as facing_camera
from mien.rendering.visibility import vertex_visibility as vertex_visibility
from mien.rendering.visibility import visible_vertices as visible_vertices
