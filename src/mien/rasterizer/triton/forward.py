"""The forward pass: tiles of pixels walk through the triangles of their bin, as in csrc/forward.hpp."""
# Numbered names stand for the arrays of the C++ code: Triton has only tensors with powers of two, and tuples.
# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportReturnType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# ruff: noqa: PLR0915, PLR0917, RUF059

import triton
import triton.language as tl

from mien.rasterizer.triton.pairs import coverage, edge_distance, interpolate, zeta_rest
from mien.rasterizer.triton.setup import CHUNK, RECORD, boxes_touch

BACKGROUND_DEPTH = tl.constexpr(1e-3)  # as in reference.py


@triton.jit(do_not_specialize=["height", "width"])
def draw(
    records, boxes, chunk_boxes, counts, lists, attributes, far, background,
    image_out, alpha_out, ids_out, barycentrics_out, depth_out, state_out,
    triangles, vertices, chunks, bins, bin_columns, bin_size, channels, height, width, reach_sq, inverse_sigma, gamma,
    SOFT: tl.constexpr, LINEAR: tl.constexpr, CHANNELS: tl.constexpr,
    TILE_WIDTH: tl.constexpr, TILE_HEIGHT: tl.constexpr,
):  # fmt: skip
    """Rasterizes one tile of pixels of one image. CHANNELS is `channels` rounded up to a power of two."""
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
        # The softmax starts with the background: weight 1 at its own depth.
        zeta = BACKGROUND_DEPTH / tl.full((), gamma, tl.float64)
        background_whole = tl.floor(zeta).to(tl.float32)
        peak_whole = tl.zeros(lane.shape, tl.float32) + background_whole
        peak_rest = tl.zeros(lane.shape, tl.float32) + (zeta - background_whole).to(tl.float32)
        weights = tl.full(lane.shape, 1.0, tl.float32)
        transmittance = tl.full(lane.shape, 1.0, tl.float32)
        behind = tl.load(background + channel, mask=channel < channels, other=0.0)
        colour = tl.zeros((TILE_WIDTH * TILE_HEIGHT, CHANNELS), tl.float32) + behind[None, :]

    # A tile lies within one bin, because the size of a bin is a multiple of that of a tile.
    place = image * bins + (top // bin_size) * bin_columns + left // bin_size
    for index in range(0, tl.load(counts + place)):
        chunk = tl.load(lists + place * chunks + index)
        chunk_box = tl.load(chunk_boxes + image * chunks + chunk)
        if boxes_touch(chunk_box, left, left + TILE_WIDTH - 1, top, top + TILE_HEIGHT - 1):
            first = chunk * CHUNK
            t = first + tl.arange(0, CHUNK)
            box = tl.load(boxes + image * triangles + t, mask=t < triangles, other=32767)  # a box that touches no pixel
            touches = boxes_touch(box, left, left + TILE_WIDTH - 1, top, top + TILE_HEIGHT - 1)
            waiting = tl.sum(touches.to(tl.int64) << tl.arange(0, CHUNK).to(tl.int64), 0)
            while waiting != 0:
                lowest = waiting & -waiting
                waiting ^= lowest
                # Number of trailing zeros, from the exponent of the float.
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
                distance0, along0, over0, sq0 = edge_distance(shape, 0, x, y)
                distance1, along1, over1, sq1 = edge_distance(shape, 1, x, y)
                distance2, along2, over2, sq2 = edge_distance(shape, 2, x, y)
                inside = tl.minimum(distance0, tl.minimum(distance1, distance2)) >= 0
                distance_sq = tl.minimum(sq0, tl.minimum(sq1, sq2))
                raw0, raw1, raw2, b0, b1, b2, scale, z = interpolate(shape, distance1, distance2, LINEAR)
                in_range = z <= far_depth

                nearer = inside & in_range & (z < hard_z)
                hard_z = tl.where(nearer, z, hard_z)
                hard_id = tl.where(nearer, t_now.to(tl.int32), hard_id)
                hard0 = tl.where(nearer, b0 if LINEAR else b0 * shape[18] * z, hard0)
                hard1 = tl.where(nearer, b1 if LINEAR else b1 * shape[19] * z, hard1)
                if SOFT:
                    kept = (inside | (distance_sq < reach_sq)) & in_range
                    covered, uncovered = coverage(inside, distance_sq, inverse_sigma)
                    transmittance *= tl.where(kept, uncovered, 1.0)
                    rest = zeta_rest(shape, b0, b1, z, LINEAR)
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
        state = state_out + image * 3 * pixels + pixel  # 4 planes per image; `pixel` already counts one
        tl.store(state, transmittance, mask=exists)
        tl.store(state + pixels, peak_whole, mask=exists)
        tl.store(state + 2 * pixels, peak_rest, mask=exists)
        tl.store(state + 3 * pixels, weights, mask=exists)
        plane = image_out + image * (channels - 1) * pixels + pixel[:, None] + channel[None, :] * pixels
        tl.store(plane, colour / weights[:, None], mask=exists[:, None] & (channel < channels)[None, :])
