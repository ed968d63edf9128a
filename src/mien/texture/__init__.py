"""Images in UV space: unwrapping of photos, detail maps, and completion of textures."""

from mien.texture.atlas import TexelAtlas as TexelAtlas
from mien.texture.complete import CompletedTexture as CompletedTexture
from mien.texture.complete import complete_texture as complete_texture
from mien.texture.fill import pull_push as pull_push
from mien.texture.maps import DetailMaps as DetailMaps
from mien.texture.maps import along_normal as along_normal
from mien.texture.maps import vertex_detail as vertex_detail
from mien.texture.parts import TexelMasks as TexelMasks
from mien.texture.parts import TexelParts as TexelParts
from mien.texture.scalp import hair_colour as hair_colour
from mien.texture.skin_colour import biweight as biweight
from mien.texture.skin_colour import colour_ratio as colour_ratio
from mien.texture.skin_colour import length as length
from mien.texture.skin_colour import skin_deviations as skin_deviations
from mien.texture.surface import DisplacedNormals as DisplacedNormals
from mien.texture.surface import TexelFace as TexelFace
from mien.texture.surface import texel_face as texel_face
from mien.texture.unwrap import Unwrapped as Unwrapped
from mien.texture.unwrap import unwrap_photo as unwrap_photo
from mien.texture.views import TextureView as TextureView
from mien.texture.views import merge_views as merge_views
