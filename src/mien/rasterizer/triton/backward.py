"""The backward pass: triangles walk through the pixels that they touch, as in csrc/backward.hpp."""
# Numbered names stand for the arrays of the C++ code: Triton has only tensors with powers of two, and tuples.
# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportReturnType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# ruff: noqa: PLR0915, PLR0917

import triton
import triton.language as tl

from mien.rasterizer.triton.pairs import coverage, edge_distance, interpolate, zeta_rest
from mien.rasterizer.triton.setup import triangle_shapes

PIXEL_HEAD = tl.constexpr(5)
"""Numbers stored per pixel for the backward pass, before the channels of the image's gradient."""


@triton.jit(do_not_specialize=["first", "end"])
def pack(
    image_in, state, image_grad, alpha_grad, packed, pixels, channels, first, end, count,
    CHANNELS: tl.constexpr, RECORD_SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes `packed` (B,pixels,RECORD_SIZE), see kPixelHead in csrc/kernels.hpp, for the channels `first` to `end`.

    The gradient of alpha goes with the first channels.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = at < count
    image = at // pixels
    planes = state + image * 3 * pixels + at
    out = packed + at * RECORD_SIZE
    tl.store(out, tl.load(planes + pixels, mask=exists), mask=exists)
    tl.store(out + 1, tl.load(planes + 2 * pixels, mask=exists), mask=exists)
    tl.store(out + 2, 1.0 / tl.load(planes + 3 * pixels, mask=exists, other=1.0), mask=exists)
    to_alpha = tl.load(alpha_grad + at, mask=exists) * tl.load(planes, mask=exists)
    tl.store(out + 3, tl.where(first == 0, to_alpha, 0.0), mask=exists)
    slot = tl.arange(0, CHANNELS)
    plane = (image * (channels - 1) * pixels + at)[:, None] + (first + slot)[None, :] * pixels
    in_use = exists[:, None] & (first + slot < end)[None, :]
    gradient = tl.load(image_grad + plane, mask=in_use, other=0.0)
    tl.store(out + 4, tl.sum(gradient * tl.load(image_in + plane, mask=in_use, other=0.0), 1), mask=exists)
    tl.store(out[:, None] + PIXEL_HEAD + slot[None, :], gradient, mask=in_use)


@triton.jit
def _nearest_of(second, third, of0, of1, of2):
    return tl.where(third, of2, tl.where(second, of1, of0))


@triton.jit
def _pair_gradients(
    shape, base, step0, step1, x, y, alive, pixel, slot, in_use, far, reach_sq, inverse_sigma,
    LINEAR: tl.constexpr,
):  # fmt: skip
    """d loss / d x, y and depth term of the three corners, nine numbers per pair, then of their attributes."""
    distance0, along0, over0, sq0 = edge_distance(shape, 0, x, y)
    distance1, along1, over1, sq1 = edge_distance(shape, 1, x, y)
    distance2, along2, over2, sq2 = edge_distance(shape, 2, x, y)
    inside = tl.minimum(distance0, tl.minimum(distance1, distance2)) >= 0
    distance_sq = tl.minimum(sq0, tl.minimum(sq1, sq2))
    raw0, raw1, raw2, b0, b1, b2, scale, z = interpolate(shape, distance1, distance2, LINEAR)
    kept = alive & (inside | (distance_sq < reach_sq)) & (z <= far)

    covered, uncovered = coverage(inside, distance_sq, inverse_sigma)
    covered = tl.where(kept, covered, 0.0)
    rest = zeta_rest(shape, b0, b1, z, LINEAR)
    peak_whole = tl.load(pixel, mask=kept, other=0.0)
    peak_rest = tl.load(pixel + 1, mask=kept, other=0.0)
    above = (shape[23] - peak_whole) + (rest - peak_rest)
    softness = tl.exp(tl.minimum(above, 0.0)) * tl.load(pixel + 2, mask=kept, other=0.0)
    weight = covered * softness

    to_image = tl.load(pixel[:, None] + PIXEL_HEAD + slot[None, :], mask=kept[:, None] & in_use[None, :], other=0.0)
    pull0 = tl.sum(to_image * step0, 1)
    pull1 = tl.sum(to_image * step1, 1)
    # Change of the loss as this pair gains weight in the blend: its colour minus that of the pixel.
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


@triton.jit(do_not_specialize=["first", "end", "height", "width"])
def push_back(
    positions, corners, attributes, near, far, packed, positions_grad, attributes_grad,
    triangles, vertices, corner_stride, channels, first, end, gamma, height, width, reach, reach_sq, inverse_sigma,
    CULL: tl.constexpr, LINEAR: tl.constexpr, CHANNELS: tl.constexpr, RECORD_SIZE: tl.constexpr,
    LANES: tl.constexpr, SMALL_BOX: tl.constexpr,
):  # fmt: skip
    """Adds the contribution of the channels `first` to `end` of LANES triangles to the gradients of their vertices.

    Gradients are sums over channels, so that passes over a few channels add up; more do not fit into the registers.
    """
    image = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, LANES)
    t = tl.program_id(0) * LANES + lane
    near_depth = tl.load(near + image)
    far_depth = tl.load(far + image)
    shape, corner, box, origin = triangle_shapes(
        positions + image * vertices * 3, corners + image * corner_stride, t, triangles, vertices,
        near_depth.to(tl.float64), far_depth.to(tl.float64), gamma, height, width, reach, CULL, LINEAR,
    )  # fmt: skip
    left, right, top, bottom = box
    visible = right >= left
    c0 = tl.where(visible, corner[0], 0).to(tl.int64)
    c1 = tl.where(visible, corner[1], 0).to(tl.int64)
    c2 = tl.where(visible, corner[2], 0).to(tl.int64)
    slot = tl.arange(0, CHANNELS)
    channel = first + slot
    in_use = channel < end
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
            pixel, slot, in_use, far_depth, reach_sq, inverse_sigma, LINEAR,
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

    # Large boxes, one triangle after another: all lanes walk through its pixels, and its own lane gets the sums.
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
                    its_y + row.to(tl.float32) + 0.5, alive, pixel, slot, in_use, far_depth, reach_sq,
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
