"""The soft rasterizer on GPUs: the Triton kernels. `gpu.py` launches them; csrc/kernels.cpp is the CPU version.

    set_up     one lane per triangle: edges, depths and boxes, and the box around every CHUNK triangles
    bin_chunks one program per bin (at most 64 per image): the chunks whose box touches it, in order
    draw       one program per tile of pixels: walks through the chunks of its bin, softly or hard
    pack       one lane per pixel: collects the numbers that the backward pass reads
    push_back  one lane per triangle: walks through the pixels of its box; all lanes share a large box

Chunks, not triangles, are binned, because consecutive triangles of a mesh lie together. The list of a bin has T / CHUNK
integers, enough for all chunks, so that it cannot overflow and the host does not have to read any size back.
"""

from mien.rasterizer.triton.backward import PIXEL_HEAD as PIXEL_HEAD
from mien.rasterizer.triton.backward import pack as pack
from mien.rasterizer.triton.backward import push_back as push_back
from mien.rasterizer.triton.forward import draw as draw
from mien.rasterizer.triton.setup import CHUNK as CHUNK
from mien.rasterizer.triton.setup import RECORD as RECORD
from mien.rasterizer.triton.setup import bin_chunks as bin_chunks
from mien.rasterizer.triton.setup import set_up as set_up
