"""The soft rasterizer for GPUs: what runs on the device. `gpu.py` launches it; csrc/kernels.cpp is its twin.

    set_up     one lane a triangle: edges, depths and boxes, and the box around every CHUNK triangles
    bin_chunks one program a bin (at most 64 an image): the chunks whose box touches it, in order
    draw       one program a tile of pixels: walks through the chunks of its bin, softly or hard
    pack       one lane a pixel: what the backward pass reads of it, side by side
    push_back  one lane a triangle: walks through the pixels of its box, or, where that is large, all lanes do

Chunks, not triangles, are binned: consecutive triangles of a mesh lie together, and a bin's list then has room for all
chunks at T / CHUNK integers, so that nothing can overflow and no size has to be read back by the host.
"""
# Names end in numbers where C++ would have an array: Triton has tensors of powers of two, and tuples.
# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportReturnType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# ruff: noqa: PLR0915, PLR0917, RUF059

import triton
import triton.language as tl

CHUNK = tl.constexpr(32)
"""Triangles that are binned together; their boxes are tested at once, and the outcome is one word of bits."""
RECORD = tl.constexpr(32)
"""Numbers stored per triangle: 25 of its shape, 3 corners, and what makes it a cache line."""
PIXEL_HEAD = tl.constexpr(5)
"""Numbers stored per pixel for the backward pass, before the channels of the image's gradient."""
MINIMUM_AREA = tl.constexpr(1e-12)  # twice the area, NDC²; as in reference.py
BACKGROUND_DEPTH = tl.constexpr(1e-3)  # as in reference.py


# ------------------------------------------------------------------------------------------------ triangle setup


@triton.jit
def _edge(start_x, start_y, end_x, end_y, winding):
    """Inward normal, distance at the origin, where the ends lie along the edge, and length.

    In float64 until the end, which is the caller's: corners may be far outside the image.
    """
    edge_x = end_x - start_x
    edge_y = end_y - start_y
    length = tl.sqrt(edge_x * edge_x + edge_y * edge_y)
    length = tl.where(length > 0, length, 1.0)  # degenerate triangles are not drawn, but here they are in the way
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
    """First and last pixel between three positions in pixels, and the whole pixel that becomes their origin."""
    low = tl.minimum(p0, tl.minimum(p1, p2))
    high = tl.maximum(p0, tl.maximum(p1, p2))
    first = tl.maximum(tl.ceil(low - reach - 0.5), 0.0)
    last = tl.minimum(tl.floor(high + reach - 0.5), size - 1.0)
    middle = tl.floor(tl.minimum(tl.maximum(0.5 * (low + high), 0.0), size))
    return first, last, middle


@triton.jit
def _shapes(positions, corners, t, triangles, vertices, near, far, gamma, height, width, reach, CULL: tl.constexpr,
            LINEAR: tl.constexpr):  # fmt: skip
    """Shape, corners, box and visibility of the triangles `t`; see Shape and Triangle in csrc/kernels.hpp.

    A corner that is no vertex, or a position that is not finite, makes a triangle invisible.
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
    exists &= sizes + tl.abs(x2) + tl.abs(y2) + tl.abs(z2) < 1e40  # false for NaN, too

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
    # What is not visible gets a harmless shape, and an empty box.
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
    # What is linear on the screen: 1 / z, or by PyTorch3D's definition z.
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
    """Four pixel numbers of 15 bits in one word; an empty box becomes one that nothing touches."""
    empty = (right < left) | (bottom < top)
    high = tl.where(empty, 0, right).to(tl.int64) << 16 | tl.where(empty, 0, bottom).to(tl.int64) << 48
    return high | tl.where(empty, 32767, left).to(tl.int64) | tl.where(empty, 32767, top).to(tl.int64) << 32


@triton.jit
def _touches(box, left, right, top, bottom):
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
    """Writes `records` (B,T,RECORD), `boxes` (B,T) and `chunk_boxes` (B,chunks); one program a chunk and image."""
    chunk = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    t = chunk * CHUNK + tl.arange(0, CHUNK)
    exists = t < triangles
    shape, corner, box, origin = _shapes(
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
    """Writes the chunks that touch each bin to `lists` (B,bins,chunks), in order, and how many to `counts` (B,bins)."""
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
        touches = exists & _touches(box, left, left + bin_size - 1, top, top + bin_size - 1)
        position = found + tl.cumsum(touches.to(tl.int32), 0) - 1
        tl.store(lists + place * chunks + position, chunk, mask=touches)
        found += tl.sum(touches.to(tl.int32), 0)
    tl.store(counts + place, found)


# ------------------------------------------------------------------------------------ pairs of triangle and pixel
# Numbers of the shape and of the pixel may each be scalars or tensors, so these serve one triangle against many pixels
# as well as many triangles, each against a pixel of its own.


@triton.jit
def _edge_distance(shape, k: tl.constexpr, x, y):
    """Distance to the line of edge k, position along it, by how much that lies beyond its ends, squared distance."""
    distance = x * shape[k] + (y * shape[3 + k] + shape[6 + k])
    along = shape[17] * (x * shape[3 + k] - y * shape[k])
    overshoot = along - tl.minimum(tl.maximum(along, shape[9 + k]), shape[12 + k])
    return distance, along, overshoot, distance * distance + overshoot * overshoot


@triton.jit
def _interpolate(shape, distance1, distance2, LINEAR: tl.constexpr):
    """Barycentrics raw, and clamped and divided by their sum; one over that sum; the depth."""
    raw0 = distance1 * shape[15]
    raw1 = distance2 * shape[16]
    raw2 = 1.0 - raw0 - raw1
    b0 = tl.maximum(raw0, 0.0)
    b1 = tl.maximum(raw1, 0.0)
    b2 = tl.maximum(raw2, 0.0)
    if not LINEAR:
        b0 = tl.minimum(b0, 1.0)
        b1 = tl.minimum(b1, 1.0)
        b2 = tl.minimum(b2, 1.0)
    scale = 1.0 / (b0 + b1 + b2)
    b0 *= scale
    b1 *= scale
    b2 *= scale
    z = b0 * shape[18] + b1 * shape[19] + b2 * shape[20]
    if not LINEAR:
        z = 1.0 / z
    return raw0, raw1, raw2, b0, b1, b2, scale, z


@triton.jit
def _zeta_rest(shape, b0, b1, z, LINEAR: tl.constexpr):
    slope = b0 * shape[21] + b1 * shape[22]
    if not LINEAR:
        slope *= z
    return slope + shape[24]


@triton.jit
def _coverage(inside, distance_sq, inverse_sigma):
    """D, and 1 - D with all its digits."""
    odds_against = tl.exp(tl.minimum(tl.where(inside, -distance_sq, distance_sq) * inverse_sigma, 87.0))
    covered = 1.0 / (1.0 + odds_against)
    return covered, odds_against * covered


# ------------------------------------------------------------------------------------------------------- forward


@triton.jit(do_not_specialize=["height", "width"])
def draw(
    records, boxes, chunk_boxes, counts, lists, attributes, far, background,
    image_out, alpha_out, ids_out, barycentrics_out, depth_out, state_out,
    triangles, vertices, chunks, bins, bin_columns, bin_size, channels, height, width, reach_sq, inverse_sigma, gamma,
    SOFT: tl.constexpr, LINEAR: tl.constexpr, CHANNELS: tl.constexpr,
    TILE_WIDTH: tl.constexpr, TILE_HEIGHT: tl.constexpr,
):  # fmt: skip
    """Draws one tile of pixels of one image. CHANNELS is the power of two that holds `channels`."""
    tile_columns = tl.cdiv(width, TILE_WIDTH)
    left = (tl.program_id(0) % tile_columns) * TILE_WIDTH
    top = (tl.program_id(0) // tile_columns) * TILE_HEIGHT
    image = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, TILE_WIDTH * TILE_HEIGHT)
    column = left + lane % TILE_WIDTH
    row = top + lane // TILE_WIDTH
    channel = tl.arange(0, CHANNELS)
    far_depth = tl.load(far + image)

    hard_z = tl.full(lane.shape, float("inf"), tl.float32)
    hard_id = tl.full(lane.shape, -1, tl.int32)
    hard0 = tl.zeros(lane.shape, tl.float32)
    hard1 = tl.zeros(lane.shape, tl.float32)
    if SOFT:
        # The background opens the softmax: weight 1 at its own depth.
        zeta = BACKGROUND_DEPTH / tl.full((), gamma, tl.float64)
        background_whole = tl.floor(zeta).to(tl.float32)
        peak_whole = tl.zeros(lane.shape, tl.float32) + background_whole
        peak_rest = tl.zeros(lane.shape, tl.float32) + (zeta - background_whole).to(tl.float32)
        weights = tl.full(lane.shape, 1.0, tl.float32)
        transmittance = tl.full(lane.shape, 1.0, tl.float32)
        behind = tl.load(background + channel, mask=channel < channels, other=0.0)
        colour = tl.zeros((TILE_WIDTH * TILE_HEIGHT, CHANNELS), tl.float32) + behind[None, :]

    # A tile lies within one bin, as bins are multiples of tiles.
    place = image * bins + (top // bin_size) * bin_columns + left // bin_size
    for index in range(0, tl.load(counts + place)):
        chunk = tl.load(lists + place * chunks + index)
        chunk_box = tl.load(chunk_boxes + image * chunks + chunk)
        if _touches(chunk_box, left, left + TILE_WIDTH - 1, top, top + TILE_HEIGHT - 1):
            first = chunk * CHUNK
            t = first + tl.arange(0, CHUNK)
            box = tl.load(boxes + image * triangles + t, mask=t < triangles, other=32767)  # one that nothing touches
            touches = _touches(box, left, left + TILE_WIDTH - 1, top, top + TILE_HEIGHT - 1)
            waiting = tl.sum(touches.to(tl.int64) << tl.arange(0, CHUNK).to(tl.int64), 0)
            while waiting != 0:
                lowest = waiting & -waiting
                waiting ^= lowest
                # The number of its zeros, read off the exponent of the float.
                t_now = first + (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
                record = records + (image * triangles + t_now) * RECORD
                nx0 = tl.load(record)
                nx1 = tl.load(record + 1)
                nx2 = tl.load(record + 2)
                ny0 = tl.load(record + 3)
                ny1 = tl.load(record + 4)
                ny2 = tl.load(record + 5)
                shape = (
                    nx0, nx1, nx2, ny0, ny1, ny2,
                    tl.load(record + 6), tl.load(record + 7), tl.load(record + 8), tl.load(record + 9),
                    tl.load(record + 10), tl.load(record + 11), tl.load(record + 12), tl.load(record + 13),
                    tl.load(record + 14), tl.load(record + 15), tl.load(record + 16), tl.load(record + 17),
                    tl.load(record + 18), tl.load(record + 19), tl.load(record + 20), tl.load(record + 21),
                    tl.load(record + 22), tl.load(record + 23), tl.load(record + 24),
                )  # fmt: skip
                # Whole numbers first: their difference is exact.
                x = (column.to(tl.float32) - tl.load(record + 28)) + 0.5
                y = (row.to(tl.float32) - tl.load(record + 29)) + 0.5
                distance0, along0, over0, sq0 = _edge_distance(shape, 0, x, y)
                distance1, along1, over1, sq1 = _edge_distance(shape, 1, x, y)
                distance2, along2, over2, sq2 = _edge_distance(shape, 2, x, y)
                inside = tl.minimum(distance0, tl.minimum(distance1, distance2)) >= 0
                distance_sq = tl.minimum(sq0, tl.minimum(sq1, sq2))
                raw0, raw1, raw2, b0, b1, b2, scale, z = _interpolate(shape, distance1, distance2, LINEAR)
                in_range = z <= far_depth

                nearer = inside & in_range & (z < hard_z)
                hard_z = tl.where(nearer, z, hard_z)
                hard_id = tl.where(nearer, t_now.to(tl.int32), hard_id)
                hard0 = tl.where(nearer, b0 if LINEAR else b0 * shape[18] * z, hard0)
                hard1 = tl.where(nearer, b1 if LINEAR else b1 * shape[19] * z, hard1)
                if SOFT:
                    kept = (inside | (distance_sq < reach_sq)) & in_range
                    covered, uncovered = _coverage(inside, distance_sq, inverse_sigma)
                    transmittance *= tl.where(kept, uncovered, 1.0)
                    rest = _zeta_rest(shape, b0, b1, z, LINEAR)
                    above = (shape[23] - peak_whole) + (rest - peak_rest)
                    rises = kept & (above > 0)
                    fade = tl.exp(tl.minimum(above, -above))
                    keep = tl.where(rises, fade, 1.0)
                    weight = tl.where(kept, covered * tl.where(rises, 1.0, fade), 0.0)
                    peak_whole = tl.where(rises, shape[23], peak_whole)
                    peak_rest = tl.where(rises, rest, peak_rest)
                    weights = weights * keep + weight
                    colours = attributes + image * vertices * channels + channel
                    in_use = channel < channels
                    c0 = tl.load(record + 25).to(tl.int32, bitcast=True)
                    c1 = tl.load(record + 26).to(tl.int32, bitcast=True)
                    c2 = tl.load(record + 27).to(tl.int32, bitcast=True)
                    colour0 = tl.load(colours + c0.to(tl.int64) * channels, mask=in_use, other=0.0)
                    colour1 = tl.load(colours + c1.to(tl.int64) * channels, mask=in_use, other=0.0)
                    colour2 = tl.load(colours + c2.to(tl.int64) * channels, mask=in_use, other=0.0)
                    colour = (
                        colour * keep[:, None]
                        + (weight * b0)[:, None] * colour0[None, :]
                        + (weight * b1)[:, None] * colour1[None, :]
                        + (weight * b2)[:, None] * colour2[None, :]
                    )

    exists = (column < width) & (row < height)
    pixels = height.to(tl.int64) * width
    pixel = image * pixels + row.to(tl.int64) * width + column
    hit = hard_id >= 0
    tl.store(ids_out + pixel, hard_id, mask=exists)
    tl.store(depth_out + pixel, tl.where(hit, hard_z, 0.0), mask=exists)
    tl.store(barycentrics_out + 3 * pixel, hard0, mask=exists)
    tl.store(barycentrics_out + 3 * pixel + 1, hard1, mask=exists)
    tl.store(barycentrics_out + 3 * pixel + 2, tl.where(hit, tl.maximum(1.0 - hard0 - hard1, 0.0), 0.0), mask=exists)
    if SOFT:
        tl.store(alpha_out + pixel, 1.0 - transmittance, mask=exists)
        state = state_out + image * 3 * pixels + pixel  # 4 planes an image, of which `pixel` has counted one
        tl.store(state, transmittance, mask=exists)
        tl.store(state + pixels, peak_whole, mask=exists)
        tl.store(state + 2 * pixels, peak_rest, mask=exists)
        tl.store(state + 3 * pixels, weights, mask=exists)
        plane = image_out + image * (channels - 1) * pixels + pixel[:, None] + channel[None, :] * pixels
        tl.store(plane, colour / weights[:, None], mask=exists[:, None] & (channel < channels)[None, :])


# ------------------------------------------------------------------------------------------------------ backward


@triton.jit
def pack(
    image_in, state, image_grad, alpha_grad, packed, pixels, channels, count,
    CHANNELS: tl.constexpr, RECORD_SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes `packed` (B,pixels,RECORD_SIZE): see kPixelHead in csrc/kernels.hpp."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = at < count
    image = at // pixels
    planes = state + image * 3 * pixels + at
    out = packed + at * RECORD_SIZE
    tl.store(out, tl.load(planes + pixels, mask=exists), mask=exists)
    tl.store(out + 1, tl.load(planes + 2 * pixels, mask=exists), mask=exists)
    tl.store(out + 2, 1.0 / tl.load(planes + 3 * pixels, mask=exists, other=1.0), mask=exists)
    to_alpha = tl.load(alpha_grad + at, mask=exists) * tl.load(planes, mask=exists)
    tl.store(out + 3, to_alpha, mask=exists)
    channel = tl.arange(0, CHANNELS)
    plane = (image * (channels - 1) * pixels + at)[:, None] + channel[None, :] * pixels
    in_use = exists[:, None] & (channel < channels)[None, :]
    gradient = tl.load(image_grad + plane, mask=in_use, other=0.0)
    tl.store(out + 4, tl.sum(gradient * tl.load(image_in + plane, mask=in_use, other=0.0), 1), mask=exists)
    tl.store(out[:, None] + PIXEL_HEAD + channel[None, :], gradient, mask=in_use)


@triton.jit
def _nearest_of(second, third, of0, of1, of2):
    return tl.where(third, of2, tl.where(second, of1, of0))


@triton.jit
def _pair_gradients(
    shape, base, step0, step1, x, y, alive, pixel, channel, in_use, far, reach_sq, inverse_sigma,
    LINEAR: tl.constexpr,
):  # fmt: skip
    """d loss / d x, y and depth term of the three corners, nine numbers a pair, then of their attributes."""
    distance0, along0, over0, sq0 = _edge_distance(shape, 0, x, y)
    distance1, along1, over1, sq1 = _edge_distance(shape, 1, x, y)
    distance2, along2, over2, sq2 = _edge_distance(shape, 2, x, y)
    inside = tl.minimum(distance0, tl.minimum(distance1, distance2)) >= 0
    distance_sq = tl.minimum(sq0, tl.minimum(sq1, sq2))
    raw0, raw1, raw2, b0, b1, b2, scale, z = _interpolate(shape, distance1, distance2, LINEAR)
    kept = alive & (inside | (distance_sq < reach_sq)) & (z <= far)

    covered, uncovered = _coverage(inside, distance_sq, inverse_sigma)
    covered = tl.where(kept, covered, 0.0)
    rest = _zeta_rest(shape, b0, b1, z, LINEAR)
    peak_whole = tl.load(pixel, mask=kept, other=0.0)
    peak_rest = tl.load(pixel + 1, mask=kept, other=0.0)
    above = (shape[23] - peak_whole) + (rest - peak_rest)
    softness = tl.exp(tl.minimum(above, 0.0)) * tl.load(pixel + 2, mask=kept, other=0.0)
    weight = covered * softness

    to_image = tl.load(pixel[:, None] + PIXEL_HEAD + channel[None, :], mask=kept[:, None] & in_use[None, :], other=0.0)
    pull0 = tl.sum(to_image * step0, 1)
    pull1 = tl.sum(to_image * step1, 1)
    # How much the loss rises if this pair gains weight in the blend: its colour less the pixel's.
    gain = tl.sum(to_image * base, 1) - tl.load(pixel + 4, mask=kept, other=0.0) + b0 * pull0 + b1 * pull1

    # 1. Through the coverage to the distance, and from there to the two ends of the nearest edge.
    to_log_odds = covered * (softness * gain * uncovered + tl.load(pixel + 3, mask=kept, other=0.0))
    pull = to_log_odds * (-2.0 * inverse_sigma)
    pull = tl.where(inside, pull, -pull)
    second = sq1 < sq0
    third = sq2 < tl.minimum(sq0, sq1)
    normal_x = _nearest_of(second, third, shape[0], shape[1], shape[2])
    normal_y = _nearest_of(second, third, shape[3], shape[4], shape[5])
    distance = _nearest_of(second, third, distance0, distance1, distance2)
    overshoot = shape[17] * _nearest_of(second, third, over0, over1, over2)
    along = _nearest_of(second, third, along0, along1, along2)
    start = _nearest_of(second, third, shape[9], shape[10], shape[11])
    end = _nearest_of(second, third, shape[12], shape[13], shape[14])
    fraction = tl.minimum(tl.maximum((along - start) / (end - start), 0.0), 1.0)
    pull_x = pull * (distance * normal_x + overshoot * normal_y)
    pull_y = pull * (distance * normal_y - overshoot * normal_x)
    end_x = pull_x * fraction
    end_y = pull_y * fraction
    start_x = pull_x - end_x
    start_y = pull_y - end_y

    # 2. Through the clamped barycentrics (colour and depth) to all three corners, relative to barycentric 2.
    to_depth = weight * gain
    tail = 1.0
    if not LINEAR:
        to_depth *= z * z
        tail = shape[20]
    to_clamped0 = weight * pull0 + to_depth * (shape[21] * tail)
    to_clamped1 = weight * pull1 + to_depth * (shape[22] * tail)
    mean = to_clamped0 * b0 + to_clamped1 * b1
    highest = float("inf") if LINEAR else 1.0
    to_raw2 = tl.where((raw2 >= 0) & (raw2 <= highest), mean, 0.0)  # negated
    to_raw0 = tl.where((raw0 >= 0) & (raw0 <= highest), to_clamped0 - mean, 0.0) + to_raw2
    to_raw1 = tl.where((raw1 >= 0) & (raw1 <= highest), to_clamped1 - mean, 0.0) + to_raw2
    to_raw0 *= scale * shape[15]
    to_raw1 *= scale * shape[16]
    slope_x = to_raw0 * shape[1] + to_raw1 * shape[2]
    slope_y = to_raw0 * shape[4] + to_raw1 * shape[5]
    # Edge k starts at corner k and ends at corner k + 1.
    return (
        _nearest_of(second, third, start_x, 0.0, end_x) - raw0 * slope_x,
        _nearest_of(second, third, end_x, start_x, 0.0) - raw1 * slope_x,
        _nearest_of(second, third, 0.0, end_x, start_x) - raw2 * slope_x,
        _nearest_of(second, third, start_y, 0.0, end_y) - raw0 * slope_y,
        _nearest_of(second, third, end_y, start_y, 0.0) - raw1 * slope_y,
        _nearest_of(second, third, 0.0, end_y, start_y) - raw2 * slope_y,
        to_depth * b0,
        to_depth * b1,
        to_depth * b2,
        (weight * b0)[:, None] * to_image,
        (weight * b1)[:, None] * to_image,
        (weight * b2)[:, None] * to_image,
    )


@triton.jit
def _add_corner(
    positions_grad, attributes_grad, corner, channels, channel, mask, in_use, x, y, depth, attribute,
):  # fmt: skip
    """Adds the gradients of one corner of several triangles to its vertices."""
    tl.atomic_add(positions_grad + 3 * corner, x, mask=mask, sem="relaxed")
    tl.atomic_add(positions_grad + 3 * corner + 1, y, mask=mask, sem="relaxed")
    tl.atomic_add(positions_grad + 3 * corner + 2, depth, mask=mask, sem="relaxed")
    out = attributes_grad + corner[:, None] * channels + channel[None, :]
    tl.atomic_add(out, attribute, mask=mask[:, None] & in_use[None, :], sem="relaxed")


@triton.jit(do_not_specialize=["height", "width"])
def push_back(
    positions, corners, attributes, near, far, packed, positions_grad, attributes_grad,
    triangles, vertices, corner_stride, channels, gamma, height, width, reach, reach_sq, inverse_sigma,
    CULL: tl.constexpr, LINEAR: tl.constexpr, CHANNELS: tl.constexpr, RECORD_SIZE: tl.constexpr,
    LANES: tl.constexpr, SMALL_BOX: tl.constexpr,
):  # fmt: skip
    """Adds the gradients of LANES triangles of one image to those of their vertices."""
    image = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, LANES)
    t = tl.program_id(0) * LANES + lane
    near_depth = tl.load(near + image)
    far_depth = tl.load(far + image)
    shape, corner, box, origin = _shapes(
        positions + image * vertices * 3, corners + image * corner_stride, t, triangles, vertices,
        near_depth.to(tl.float64), far_depth.to(tl.float64), gamma, height, width, reach, CULL, LINEAR,
    )  # fmt: skip
    left, right, top, bottom = box
    visible = right >= left
    c0 = tl.where(visible, corner[0], 0).to(tl.int64)
    c1 = tl.where(visible, corner[1], 0).to(tl.int64)
    c2 = tl.where(visible, corner[2], 0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    in_use = channel < channels
    colours = attributes + image * vertices * channels + channel[None, :]
    base = tl.load(colours + c2[:, None] * channels, mask=in_use[None, :], other=0.0)
    step0 = tl.load(colours + c0[:, None] * channels, mask=in_use[None, :], other=0.0) - base
    step1 = tl.load(colours + c1[:, None] * channels, mask=in_use[None, :], other=0.0) - base

    wide = tl.where(visible, right - left + 1, 1)
    size = tl.where(visible, wide * (bottom - top + 1), 0)
    small = tl.where(size <= SMALL_BOX, size, 0)
    first_pixel = packed + image * height.to(tl.int64) * width * RECORD_SIZE
    x_left = left.to(tl.float32) - origin[0]
    y_top = top.to(tl.float32) - origin[1]
    x0 = tl.zeros((LANES,), tl.float32)
    x1 = tl.zeros((LANES,), tl.float32)
    x2 = tl.zeros((LANES,), tl.float32)
    y0 = tl.zeros((LANES,), tl.float32)
    y1 = tl.zeros((LANES,), tl.float32)
    y2 = tl.zeros((LANES,), tl.float32)
    d0 = tl.zeros((LANES,), tl.float32)
    d1 = tl.zeros((LANES,), tl.float32)
    d2 = tl.zeros((LANES,), tl.float32)
    colour0 = tl.zeros((LANES, CHANNELS), tl.float32)
    colour1 = tl.zeros((LANES, CHANNELS), tl.float32)
    colour2 = tl.zeros((LANES, CHANNELS), tl.float32)
    for step in range(0, tl.max(small, 0)):
        alive = step < small
        column = step % wide
        row = step // wide
        pixel = first_pixel + ((top + row).to(tl.int64) * width + left + column) * RECORD_SIZE
        g = _pair_gradients(
            shape, base, step0, step1, x_left + column.to(tl.float32) + 0.5, y_top + row.to(tl.float32) + 0.5, alive,
            pixel, channel, in_use, far_depth, reach_sq, inverse_sigma, LINEAR,
        )  # fmt: skip
        x0 += g[0]
        x1 += g[1]
        x2 += g[2]
        y0 += g[3]
        y1 += g[4]
        y2 += g[5]
        d0 += g[6]
        d1 += g[7]
        d2 += g[8]
        colour0 += g[9]
        colour1 += g[10]
        colour2 += g[11]

    # Large boxes, one triangle after the other: all lanes walk through its pixels, and their sums go to its lane.
    for mine in range(0, LANES):
        here = lane == mine
        pixels = tl.sum(tl.where(here, size, 0), 0)
        if pixels > SMALL_BOX:
            its = ()
            for k in tl.static_range(25):
                its = its + (tl.sum(tl.where(here, shape[k], 0.0), 0),)  # noqa: RUF005
            its_base = tl.sum(tl.where(here[:, None], base, 0.0), 0)[None, :]
            its_step0 = tl.sum(tl.where(here[:, None], step0, 0.0), 0)[None, :]
            its_step1 = tl.sum(tl.where(here[:, None], step1, 0.0), 0)[None, :]
            its_left = tl.sum(tl.where(here, left, 0), 0)
            its_top = tl.sum(tl.where(here, top, 0), 0)
            its_wide = tl.sum(tl.where(here, wide, 0), 0)
            its_x = tl.sum(tl.where(here, x_left, 0.0), 0)
            its_y = tl.sum(tl.where(here, y_top, 0.0), 0)
            for step in range(0, pixels, LANES):
                at = step + lane
                alive = at < pixels
                column = at % its_wide
                row = at // its_wide
                pixel = first_pixel + ((its_top + row).to(tl.int64) * width + its_left + column) * RECORD_SIZE
                g = _pair_gradients(
                    its, its_base, its_step0, its_step1, its_x + column.to(tl.float32) + 0.5,
                    its_y + row.to(tl.float32) + 0.5, alive, pixel, channel, in_use, far_depth, reach_sq,
                    inverse_sigma, LINEAR,
                )  # fmt: skip
                x0 += tl.where(here, tl.sum(g[0], 0), 0.0)
                x1 += tl.where(here, tl.sum(g[1], 0), 0.0)
                x2 += tl.where(here, tl.sum(g[2], 0), 0.0)
                y0 += tl.where(here, tl.sum(g[3], 0), 0.0)
                y1 += tl.where(here, tl.sum(g[4], 0), 0.0)
                y2 += tl.where(here, tl.sum(g[5], 0), 0.0)
                d0 += tl.where(here, tl.sum(g[6], 0), 0.0)
                d1 += tl.where(here, tl.sum(g[7], 0), 0.0)
                d2 += tl.where(here, tl.sum(g[8], 0), 0.0)
                colour0 += tl.where(here[:, None], tl.sum(g[9], 0)[None, :], 0.0)
                colour1 += tl.where(here[:, None], tl.sum(g[10], 0)[None, :], 0.0)
                colour2 += tl.where(here[:, None], tl.sum(g[11], 0)[None, :], 0.0)

    per_ndc = 0.5 * tl.minimum(height, width).to(tl.float32)
    per_depth = -(1.0 / ((far_depth.to(tl.float64) - near_depth.to(tl.float64)) * gamma)).to(tl.float32)
    if not LINEAR:
        d0 *= shape[18] * shape[18]
        d1 *= shape[19] * shape[19]
        d2 *= shape[20] * shape[20]
    to_positions = positions_grad + image * vertices * 3
    to_attributes = attributes_grad + image * vertices * channels
    _add_corner(
        to_positions, to_attributes, c0, channels, channel, visible, in_use,
        x0 * per_ndc, y0 * per_ndc, d0 * per_depth, colour0,
    )  # fmt: skip
    _add_corner(
        to_positions, to_attributes, c1, channels, channel, visible, in_use,
        x1 * per_ndc, y1 * per_ndc, d1 * per_depth, colour1,
    )  # fmt: skip
    _add_corner(
        to_positions, to_attributes, c2, channels, channel, visible, in_use,
        x2 * per_ndc, y2 * per_ndc, d2 * per_depth, colour2,
    )  # fmt: skip
