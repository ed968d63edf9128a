"""Prepares triangles and sorts them into bins of the image, as in csrc/setup.hpp."""
# Numbered names stand for the arrays of the C++ code: Triton has only tensors with powers of two, and tuples.
# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportReturnType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# ruff: noqa: PLR0915, PLR0917, RUF059

import triton
import triton.language as tl

CHUNK = tl.constexpr(32)
"""Triangles per chunk; their boxes are tested together, and the result is one 32-bit word."""
RECORD = tl.constexpr(32)
"""Numbers stored per triangle: 25 of its shape, 3 corners, origin, and padding to a cache line."""
MINIMUM_AREA = tl.constexpr(1e-12)  # twice the area, NDC²; as in reference.py


@triton.jit
def _edge(start_x, start_y, end_x, end_y, winding):
    """Inward normal, distance at the origin, where the ends lie along the edge, and length.

    Computed in float64, the dtype of the arguments, because corners may be far outside the image.
    """
    edge_x = end_x - start_x
    edge_y = end_y - start_y
    length = tl.sqrt(edge_x * edge_x + edge_y * edge_y)
    length = tl.where(length > 0, length, 1.0)  # avoids a division by zero; degenerate triangles are not visible
    along_x = edge_x / length
    along_y = edge_y / length
    return (
        (-winding * along_y).to(tl.float32),
        (winding * along_x).to(tl.float32),
        (winding * (along_y * start_x - along_x * start_y)).to(tl.float32),
        (along_x * start_x + along_y * start_y).to(tl.float32),
        (along_x * end_x + along_y * end_y).to(tl.float32),
        length,
    )


@triton.jit
def _span(p0, p1, p2, size, reach):
    """First and last pixel between three positions in pixels, and the pixel that becomes their origin."""
    low = tl.minimum(p0, tl.minimum(p1, p2))
    high = tl.maximum(p0, tl.maximum(p1, p2))
    first = tl.maximum(tl.ceil(low - reach - 0.5), 0.0)
    last = tl.minimum(tl.floor(high + reach - 0.5), size - 1.0)
    middle = tl.floor(tl.minimum(tl.maximum(0.5 * (low + high), 0.0), size))
    return first, last, middle


@triton.jit
def triangle_shapes(
    positions, corners, t, triangles, vertices, near, far, gamma, height, width, reach,
    CULL: tl.constexpr, LINEAR: tl.constexpr,
):  # fmt: skip
    """Shape, corners, box and visibility of the triangles `t`; see Shape and Triangle in csrc/kernels.hpp.

    A triangle with an index out of range or a position that is not finite is not visible.
    """
    exists = t < triangles
    c0 = tl.load(corners + 3 * t, mask=exists, other=0)
    c1 = tl.load(corners + 3 * t + 1, mask=exists, other=0)
    c2 = tl.load(corners + 3 * t + 2, mask=exists, other=0)
    exists &= (c0 >= 0) & (c1 >= 0) & (c2 >= 0) & (c0 < vertices) & (c1 < vertices) & (c2 < vertices)
    x0 = tl.load(positions + 3 * c0, mask=exists, other=0.0).to(tl.float64)
    y0 = tl.load(positions + 3 * c0 + 1, mask=exists, other=0.0).to(tl.float64)
    z0 = tl.load(positions + 3 * c0 + 2, mask=exists, other=1.0).to(tl.float64)
    x1 = tl.load(positions + 3 * c1, mask=exists, other=0.0).to(tl.float64)
    y1 = tl.load(positions + 3 * c1 + 1, mask=exists, other=1.0).to(tl.float64)
    z1 = tl.load(positions + 3 * c1 + 2, mask=exists, other=1.0).to(tl.float64)
    x2 = tl.load(positions + 3 * c2, mask=exists, other=1.0).to(tl.float64)
    y2 = tl.load(positions + 3 * c2 + 1, mask=exists, other=0.0).to(tl.float64)
    z2 = tl.load(positions + 3 * c2 + 2, mask=exists, other=1.0).to(tl.float64)
    sizes = tl.abs(x0) + tl.abs(y0) + tl.abs(z0) + tl.abs(x1) + tl.abs(y1) + tl.abs(z1)
    exists &= sizes + tl.abs(x2) + tl.abs(y2) + tl.abs(z2) < 1e40  # also false for NaN

    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    winding = tl.where(area > 0, 1.0, -1.0)
    seen = -area if CULL else tl.abs(area)
    nearest = tl.minimum(z0, tl.minimum(z1, z2))
    visible = exists & (seen > MINIMUM_AREA) & (nearest >= near) & (nearest <= far)

    per_ndc = 0.5 * tl.minimum(height, width).to(tl.float64)
    x0 = x0 * per_ndc + 0.5 * width
    x1 = x1 * per_ndc + 0.5 * width
    x2 = x2 * per_ndc + 0.5 * width
    y0 = y0 * per_ndc + 0.5 * height
    y1 = y1 * per_ndc + 0.5 * height
    y2 = y2 * per_ndc + 0.5 * height
    left, right, origin_x = _span(x0, x1, x2, width, reach)
    top, bottom, origin_y = _span(y0, y1, y2, height, reach)
    visible &= (left <= right) & (top <= bottom)
    # Triangles that are not visible get finite numbers and an empty box.
    area = tl.where(visible, area, 1.0)
    left = tl.where(visible, left, 32767.0).to(tl.int32)
    top = tl.where(visible, top, 32767.0).to(tl.int32)
    right = tl.where(visible, right, -1.0).to(tl.int32)
    bottom = tl.where(visible, bottom, -1.0).to(tl.int32)

    x0 -= origin_x
    x1 -= origin_x
    x2 -= origin_x
    y0 -= origin_y
    y1 -= origin_y
    y2 -= origin_y
    nx0, ny0, d0, start0, end0, l0 = _edge(x0, y0, x1, y1, winding)
    nx1, ny1, d1, start1, end1, l1 = _edge(x1, y1, x2, y2, winding)
    nx2, ny2, d2, start2, end2, l2 = _edge(x2, y2, x0, y0, winding)
    per_height = 1.0 / (tl.abs(area) * per_ndc * per_ndc)

    zeta_per_depth = 1.0 / ((far - near) * gamma)
    slope0 = ((z2 - z0) * zeta_per_depth).to(tl.float32)
    slope1 = ((z2 - z1) * zeta_per_depth).to(tl.float32)
    # The quantity that is linear on the screen: 1 / z, or z in PyTorch3D's definition.
    s0 = tl.where(visible, z0, 1.0).to(tl.float32)
    s1 = tl.where(visible, z1, 1.0).to(tl.float32)
    s2 = tl.where(visible, z2, 1.0).to(tl.float32)
    if not LINEAR:
        s0 = 1.0 / s0
        s1 = 1.0 / s1
        s2 = 1.0 / s2
        slope0 *= s0
        slope1 *= s1
    zeta = (far - z2) * zeta_per_depth
    whole = tl.floor(zeta).to(tl.float32)
    rest = (zeta - whole).to(tl.float32)
    shape = (
        nx0, nx1, nx2, ny0, ny1, ny2, d0, d1, d2, start0, start1, start2, end0, end1, end2,
        (l1 * per_height).to(tl.float32), (l2 * per_height).to(tl.float32), winding,
        s0, s1, s2, slope0, slope1, whole, rest,
    )  # fmt: skip
    return shape, (c0, c1, c2), (left, right, top, bottom), (origin_x.to(tl.float32), origin_y.to(tl.float32))


@triton.jit
def _packed_box(left, right, top, bottom):
    """Four pixel numbers of 15 bits in one word; an empty box becomes a box that touches no pixel."""
    empty = (right < left) | (bottom < top)
    high = tl.where(empty, 0, right).to(tl.int64) << 16 | tl.where(empty, 0, bottom).to(tl.int64) << 48
    return high | tl.where(empty, 32767, left).to(tl.int64) | tl.where(empty, 32767, top).to(tl.int64) << 32


@triton.jit
def boxes_touch(box, left, right, top, bottom):
    """Whether packed boxes and a rectangle of pixels have pixels in common."""
    box_left = box & 32767
    box_right = (box >> 16) & 32767
    box_top = (box >> 32) & 32767
    box_bottom = (box >> 48) & 32767
    return (box_left <= right) & (box_right >= left) & (box_top <= bottom) & (box_bottom >= top)


@triton.jit(do_not_specialize=["height", "width"])
def set_up(
    positions, corners, near, far, records, boxes, chunk_boxes,
    triangles, vertices, corner_stride, gamma, height, width, reach, CULL: tl.constexpr, LINEAR: tl.constexpr,
):  # fmt: skip
    """Writes `records` (B,T,RECORD), `boxes` (B,T) and `chunk_boxes` (B,chunks); one program per chunk and image."""
    chunk = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    t = chunk * CHUNK + tl.arange(0, CHUNK)
    exists = t < triangles
    shape, corner, box, origin = triangle_shapes(
        positions + image * vertices * 3, corners + image * corner_stride, t, triangles, vertices,
        tl.load(near + image).to(tl.float64), tl.load(far + image).to(tl.float64), gamma, height, width, reach, CULL,
        LINEAR,
    )  # fmt: skip
    left, right, top, bottom = box
    tl.store(boxes + image * triangles + t, _packed_box(left, right, top, bottom), mask=exists)
    whole = _packed_box(tl.min(left, 0), tl.max(right, 0), tl.min(top, 0), tl.max(bottom, 0))
    tl.store(chunk_boxes + image * tl.num_programs(0) + chunk, whole)
    record = records + (image * triangles + t) * RECORD
    for k in tl.static_range(25):
        tl.store(record + k, shape[k], mask=exists)
    for k in tl.static_range(3):
        tl.store(record + 25 + k, corner[k].to(tl.float32, bitcast=True), mask=exists)
    tl.store(record + 28, origin[0], mask=exists)
    tl.store(record + 29, origin[1], mask=exists)


@triton.jit
def bin_chunks(chunk_boxes, counts, lists, chunks, columns, bin_size, BLOCK: tl.constexpr):
    """Writes the chunks that touch each bin to `lists` (B,bins,chunks), in order, and their number to `counts`."""
    this = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    left = (this % columns) * bin_size
    top = (this // columns) * bin_size
    place = image * tl.num_programs(0) + this
    found = 0
    for first in range(0, chunks, BLOCK):
        chunk = first + tl.arange(0, BLOCK)
        exists = chunk < chunks
        box = tl.load(chunk_boxes + image * chunks + chunk, mask=exists, other=0)
        touches = exists & boxes_touch(box, left, left + bin_size - 1, top, top + bin_size - 1)
        position = found + tl.cumsum(touches.to(tl.int32), 0) - 1
        tl.store(lists + place * chunks + position, chunk, mask=touches)
        found += tl.sum(touches.to(tl.int32), 0)
    tl.store(counts + place, found)
