"""The soft rasterizer for GPUs: what runs on the device. `gpu.py` launches it; csrc/kernels.cpp is its twin.

    set_up     one lane a triangle: edges, depths and boxes, and the box around every CHUNK triangles
    bin_chunks one program a bin (at most 64 an image): the chunks whose box touches it, in order
    draw       one program a tile of pixels: walks through the chunks of its bin, softly or hard
    pack       one lane a pixel: what the backward pass reads of it, side by side
    push_back  one lane a triangle: walks through the pixels of its box, or, where that is large, all lanes do

Chunks, not triangles, are binned: consecutive triangles of a mesh lie together, and a bin's list then has room for all
chunks at T / CHUNK integers, so that nothing can overflow and no size has to be read back by the host.
"""

from mien.rasterizer.triton.backward import PIXEL_HEAD as PIXEL_HEAD
from mien.rasterizer.triton.backward import pack as pack
from mien.rasterizer.triton.backward import push_back as push_back
from mien.rasterizer.triton.forward import draw as draw
from mien.rasterizer.triton.setup import CHUNK as CHUNK
from mien.rasterizer.triton.setup import RECORD as RECORD
from mien.rasterizer.triton.setup import bin_chunks as bin_chunks
from mien.rasterizer.triton.setup import set_up as set_up
