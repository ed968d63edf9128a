// Triangles walk through the pixels that they touch and keep their gradients in registers. A large triangle takes a block
// of pixels at a time; small triangles take one lane each.
#pragma once

#include "pairs.hpp"
#include "setup.hpp"

namespace mien {
namespace MIEN_ISA {
namespace {

// The record of one pixel, or of kLanes pixels side by side: Number is float or Floats. `load(plane)` is the number there.
template <typename Number>
struct PixelHead {
    Number peak_whole, peak_rest, norm, to_alpha, image_pull;
};

template <typename Number, typename Load>
MIEN_INLINE PixelHead<Number> pixel_head(const Frame& frame, const SoftGradients& g, int64_t at, const Load& load) {
    const int64_t pixels = (int64_t)frame.height * frame.width;
    Number pull = {};
    for (int c = 0; c < frame.channels; ++c) pull += load(g.image + c * pixels + at) * load(g.image_grad + c * pixels + at);
    return {load(g.state + kPeakWhole * pixels + at), load(g.state + kPeakRest * pixels + at),
            1.0f / load(g.state + kWeightSum * pixels + at),
            load(g.alpha_grad + at) * load(g.state + kTransmittance * pixels + at), pull};
}

MIEN_INLINE void pack_pixel(const Frame& frame, const SoftGradients& g, int64_t at, int64_t record, float* to) {
    const int64_t pixels = (int64_t)frame.height * frame.width;
    const auto head = pixel_head<float>(frame, g, at, [](const float* from) { return *from; });
    memcpy(to, &head, sizeof(head));
    for (int c = 0; c < frame.channels; ++c) to[kPixelHead + c] = g.image_grad[c * pixels + at];
    for (int64_t k = kPixelHead + frame.channels; k < record; ++k) to[k] = 0;
}

MIEN_INLINE void pack_lanes(const Frame& frame, const SoftGradients& g, int64_t at, int64_t record, float* to) {
    const int64_t pixels = (int64_t)frame.height * frame.width;
    const auto load = [](const float* from) {
        Floats lanes;
        memcpy(&lanes, from, sizeof(lanes));
        return lanes;
    };
    const auto head = pixel_head<Floats>(frame, g, at, load);
    for (int quad = 0; quad < pixel_quads(frame.channels); ++quad) {
        Floats numbers[4];
        for (int k = 0; k < 4; ++k) {
            const int number = 4 * quad + k, channel = number - kPixelHead;
            numbers[k] = channel < 0                ? (&head.peak_whole)[number]
                         : channel < frame.channels ? load(g.image_grad + channel * pixels + at)
                                                    : Floats{};
        }
        store_quads(numbers, to + 4 * quad, record);
    }
}

void pack_rows(const Frame& frame, int first, int end, const SoftGradients& g, float* packed) {
    const int64_t record = int64_t(4) * pixel_quads(frame.channels);
    for (int y = first; y < end; ++y) {
        float* const row = packed + y * packed_row(frame);
        if (y >= frame.height) {
            memset(row, 0, sizeof(float) * packed_row(frame));
            continue;
        }
        const int64_t at = (int64_t)y * frame.width;
        int x = 0;
        for (; x + kLanes <= frame.width; x += kLanes) pack_lanes(frame, g, at + x, record, row + x * record);
        for (; x < frame.width; ++x) pack_pixel(frame, g, at + x, record, row + x * record);
        memset(row + frame.width * record, 0, sizeof(float) * kBlockReach * record);
    }
}

// Channels = 0 means any number; then the sums and attributes are in the scratch memory of the caller.
template <int Channels>
constexpr int kSums = (9 + 3 * Channels + 3) / 4 * 4;  // a multiple of four, for sum_four

// The attributes of one triangle, or of one per lane: those of corner 2, and the steps from there to corners 0 and 1.
template <typename Number>
struct Colours {
    Number *base, *step0, *step1;
};

// Adds the gradients of kLanes pairs of pixel and triangle to `sums`: d loss / d x, y and depth term of the three corners,
// then of their attributes. x and y are relative to the origin of the triangle; the records are at pixels[lane] + offset.
template <int Channels, typename Number>
MIEN_INLINE void add_pairs(const Frame& frame, const Shape<Number>& t, const Number (&inverse_length)[3],
                           const Colours<Number>& colours, Floats x, Floats y, Mask alive, const float* const* pixels,
                           int64_t offset, Floats* scratch, Floats* sums) {
    const int channels = Channels ? Channels : frame.channels;
    const bool linear = is_linear<Channels>(frame);
    Edges e;
    measure(t, x, y, e);
    const Floats distance_sq = nearest_distance_sq(e);
    Mask kept = alive & (e.inside | less(distance_sq, splat(frame.reach_sq)));
    if (!any(kept)) return;
    Surface s;
    interpolate(frame, linear, t, e, s);
    kept = kept & s.in_range;

    Floats in_registers[Channels ? (kPixelHead + Channels + 3) / 4 * 4 : 1];
    Floats* const pixel = Channels ? in_registers : scratch;
    if (Channels && pixel_quads(channels) == 2) load_octets(pixels, offset, pixel);
    else
        for (int quad = 0; quad < pixel_quads(channels); ++quad) load_quads(pixels, offset + 4 * quad, pixel + 4 * quad);
    const Floats peak_whole = pixel[0], peak_rest = pixel[1], norm = pixel[2], to_alpha = pixel[3], image_pull = pixel[4];
    const Floats* const to_image = pixel + kPixelHead;
    Floats *const to_x = sums, *const to_y = sums + 3, *const to_depth_term = sums + 6, *const to_attribute = sums + 9;

    const Coverage cover = coverage(e.inside, distance_sq, frame.inverse_sigma);
    const Floats covered = only(kept, cover.covered);
    const Floats above = (t.zeta_whole - peak_whole) + (zeta_rest(linear, t, s) - peak_rest);
    const Floats softness = exponential(minimum(above, Floats{})) * norm;
    const Floats weight = covered * softness;

    // Inner products of the image's gradient with the attributes: at corner 2, and along the steps to corners 0 and 1.
    const Floats weighted[3] = {weight * s.clamped[0], weight * s.clamped[1], weight * s.clamped[2]};
    Floats at_corner2 = -image_pull, along0 = {}, along1 = {};
    for (int c = 0; c < channels; ++c) {
        at_corner2 += to_image[c] * colours.base[c];
        along0 += to_image[c] * colours.step0[c];
        along1 += to_image[c] * colours.step1[c];
        for (int k = 0; k < 3; ++k) to_attribute[k * channels + c] += weighted[k] * to_image[c];
    }
    // Change of the loss as this pair gains weight in the blend: its colour minus that of the pixel.
    const Floats gain = at_corner2 + s.clamped[0] * along0 + s.clamped[1] * along1;
    const Floats to_zeta = weight * gain;

    // 1. Through the coverage to the distance, and from there to the two ends of the nearest edge.
    const Floats to_log_odds = covered * (softness * gain * cover.uncovered + to_alpha);
    const Floats pull = to_log_odds * (-2.0f * frame.inverse_sigma);
    const Floats signed_pull = select(e.inside, pull, -pull);
    const Mask second = less(e.distance_sq[1], e.distance_sq[0]);
    const Mask third = less(e.distance_sq[2], minimum(e.distance_sq[0], e.distance_sq[1]));
    const auto of_nearest_edge = [&](const auto& of) {
        return select(third, splat(of[2]), select(second, splat(of[1]), splat(of[0])));
    };
    const Floats normal_x = of_nearest_edge(t.normal_x), normal_y = of_nearest_edge(t.normal_y);
    const Floats distance = of_nearest_edge(e.distance);
    const Floats overshoot = t.winding * of_nearest_edge(e.overshoot);
    // Position of the nearest point between the first end (0) and the second end (1) of the edge.
    const Floats from_start = of_nearest_edge(e.along) - of_nearest_edge(t.start_along);
    const Floats fraction = clamp(from_start * of_nearest_edge(inverse_length), Floats{}, splat(1.0f));
    const Floats pull_x = signed_pull * (distance * normal_x + overshoot * normal_y);
    const Floats pull_y = signed_pull * (distance * normal_y - overshoot * normal_x);
    const Floats end_x = pull_x * fraction, end_y = pull_y * fraction;
    // Edge k starts at corner k and ends at corner k + 1.
    const Floats start[2] = {pull_x - end_x, pull_y - end_y};
    const auto add_ends = [&](Floats* to, Floats at_start, Floats at_end) {
        to[0] += select(third, at_end, select(second, Floats{}, at_start));
        to[1] += select(third, Floats{}, select(second, at_start, at_end));
        to[2] += select(third, at_start, select(second, at_end, Floats{}));
    };
    add_ends(to_x, start[0], end_x);
    add_ends(to_y, start[1], end_y);

    // 2. Through the clamped barycentrics (colour and depth) to all three corners. Everything is relative to barycentric 2:
    // they sum to one, and only digits that differ remain. d zeta / d barycentric k is z² times zeta_slope[k] / z of
    // corner 2, or zeta_slope[k] alone if linear_depth.
    const Floats to_depth = linear ? to_zeta : to_zeta * s.z * s.z;
    const Number tail = linear ? one(t.depth_term[2]) : t.depth_term[2];
    const Floats to_clamped0 = weight * along0 + to_depth * (t.zeta_slope[0] * tail);
    const Floats to_clamped1 = weight * along1 + to_depth * (t.zeta_slope[1] * tail);
    const Floats mean = to_clamped0 * s.clamped[0] + to_clamped1 * s.clamped[1];
    const auto free = [&](int k) { return at_most(Floats{}, s.raw[k]) & at_most(s.raw[k], splat(linear ? __builtin_inff() : 1.0f)); };
    const Floats to_raw2 = only(free(2), mean);  // negated
    const Floats to_raw0 = (only(free(0), to_clamped0 - mean) + to_raw2) * s.scale * t.inverse_height[0];
    const Floats to_raw1 = (only(free(1), to_clamped1 - mean) + to_raw2) * s.scale * t.inverse_height[1];
    const Floats slope_x = to_raw0 * t.normal_x[1] + to_raw1 * t.normal_x[2];
    const Floats slope_y = to_raw0 * t.normal_y[1] + to_raw1 * t.normal_y[2];
    for (int k = 0; k < 3; ++k) {
        to_x[k] -= s.raw[k] * slope_x;
        to_y[k] -= s.raw[k] * slope_y;
        to_depth_term[k] += to_depth * s.clamped[k];
    }
}

// From the sums to the gradients of the corners: x y z, channels, of corners 0, 1 and 2. `sum` yields sum number i.
template <typename Sum>
MIEN_INLINE void write_corners(const Frame& frame, bool linear, const Shape<float>& t, int channels, const Sum& sum, float* out) {
    const float per_ndc = (float)frame.pixels_per_ndc;
    for (int k = 0; k < 3; ++k, out += 3 + channels) {
        out[0] = sum(k) * per_ndc;
        out[1] = sum(3 + k) * per_ndc;
        const float per_term = linear ? 1.0f : t.depth_term[k] * t.depth_term[k];
        out[2] = -sum(6 + k) * per_term * (float)frame.zeta_per_depth;
        for (int c = 0; c < channels; ++c) out[3 + c] = sum(9 + k * channels + c);
    }
}

// One triangle against all blocks of pixels in its box.
template <int Channels>
void backward_large(const Frame& frame, const Triangle& t, const Box& box, const float* packed, float* corners,
                    float* scratch) {
    const int channels = Channels ? Channels : frame.channels;
    const int sum_count = (9 + 3 * channels + 3) / 4 * 4;
    const int64_t row_size = packed_row(frame), record = int64_t(4) * pixel_quads(channels);
    Floats in_registers[Channels ? kSums<Channels> : 1];
    Floats* const sums = Channels ? in_registers : (Floats*)scratch;
    Floats* const pixel = sums + sum_count;
    float small[Channels ? kSums<Channels> + 3 * Channels : 1];
    float* const totals = Channels ? small : scratch + (int64_t)kLanes * (sum_count + record);
    const Colours<float> colours = {totals + sum_count, totals + sum_count + channels, totals + sum_count + 2 * channels};
    for (int c = 0; c < channels; ++c) {
        colours.base[c] = frame.attributes[(int64_t)t.corner[2] * channels + c];
        colours.step0[c] = frame.attributes[(int64_t)t.corner[0] * channels + c] - colours.base[c];
        colours.step1[c] = frame.attributes[(int64_t)t.corner[1] * channels + c] - colours.base[c];
    }
    float inverse_length[3];
    for (int k = 0; k < 3; ++k) inverse_length[k] = 1.0f / (t.end_along[k] - t.start_along[k]);
    const Lattice within = lattice();
    const Mask all = at_most(Floats{}, Floats{});
    for (int i = 0; i < sum_count; ++i) sums[i] = Floats{};
    for (int y = box.top; y <= box.bottom; y += kBlockRows) {
        for (int x = box.left; x <= box.right; x += kBlockColumns) {
            const float* pixels[kLanes];
            for (int lane = 0; lane < kLanes; ++lane)
                pixels[lane] = packed + (y + lane / kBlockColumns) * row_size + (x + lane % kBlockColumns) * record;
            add_pairs<Channels>(frame, t, inverse_length, colours, within.x + ((float)x - t.origin_x),
                                within.y + ((float)y - t.origin_y), all, pixels, 0, pixel, sums);
        }
    }
    for (int i = 0; i < sum_count; i += 4) sum_four(sums + i, totals + i);
    write_corners(frame, is_linear<Channels>(frame), t, channels, [&](int i) { return totals[i]; }, corners);
}

// kLanes triangles at once, all walking through the pixels of their own boxes in the same steps, row by row. There is no sum
// over lanes, and a triangle of a few pixels does not leave most lanes idle. The boxes should be of similar size, and no
// larger than kBlockReach, so that the steps of smaller boxes end in the margin of `packed`.
template <int Channels>
void backward_small(const Frame& frame, const Triangle* triangles, const Box* boxes, const int* chosen, int count,
                    const float* packed, int first, float* corners, float* scratch) {
    const int channels = Channels ? Channels : frame.channels;
    const int sum_count = 9 + 3 * channels;
    const int64_t row_size = packed_row(frame), record = int64_t(4) * pixel_quads(channels);
    Floats in_registers[Channels ? 9 + 6 * Channels : 1];
    Floats* const sums = Channels ? in_registers : (Floats*)scratch;
    const Colours<Floats> colours = {sums + sum_count, sums + sum_count + channels, sums + sum_count + 2 * channels};
    Floats* const pixel = sums + sum_count + 3 * channels;

    const Triangle* of_lane[kLanes];
    const float *first_pixel[kLanes], *numbers_of[kLanes];
    Floats left, top, wide, tall;
    int most_columns = 0, most_rows = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
        const int i = chosen[lesser(lane, count - 1)];
        const Triangle& t = *(of_lane[lane] = &triangles[i]);
        numbers_of[lane] = t.normal_x;
        const Box& box = boxes[i];
        const int columns = box.right - box.left + 1, rows = box.bottom - box.top + 1;
        first_pixel[lane] = packed + box.top * row_size + box.left * record;
        left[lane] = (float)box.left - t.origin_x + 0.5f;
        top[lane] = (float)box.top - t.origin_y + 0.5f;
        wide[lane] = (float)columns;
        tall[lane] = (float)rows;
        most_columns = greater(most_columns, columns);
        most_rows = greater(most_rows, rows);
        for (int c = 0; c < channels; ++c) {
            const float base = frame.attributes[(int64_t)t.corner[2] * channels + c];
            colours.base[c][lane] = base;
            colours.step0[c][lane] = frame.attributes[(int64_t)t.corner[0] * channels + c] - base;
            colours.step1[c][lane] = frame.attributes[(int64_t)t.corner[1] * channels + c] - base;
        }
    }
    alignas(sizeof(Floats)) Floats numbers[(kShapeNumbers + 3) / 4 * 4];
    for (int i = 0; i < kShapeNumbers; i += 4) {
        load_quads(numbers_of, i, numbers + i);
    }
    Shape<Floats> t;
    memcpy(&t, numbers, sizeof(t));
    Floats inverse_length[3];
    for (int k = 0; k < 3; ++k) inverse_length[k] = 1.0f / (t.end_along[k] - t.start_along[k]);

    for (int i = 0; i < sum_count; ++i) sums[i] = Floats{};
    for (int row = 0; row < most_rows; ++row) {
        const Mask in_row = less(splat((float)row), tall);
        const Floats y = top + (float)row;
        for (int column = 0; column < most_columns; ++column) {
            const Mask alive = in_row & less(splat((float)column), wide);
            add_pairs<Channels>(frame, t, inverse_length, colours, left + (float)column, y, alive, first_pixel,
                                row * row_size + column * record, pixel, sums);
        }
    }
    for (int lane = 0; lane < count; ++lane) {
        const Triangle& one = *of_lane[lane];
        write_corners(frame, is_linear<Channels>(frame), one, channels, [&](int i) { return sums[i][lane]; },
                      corners + (int64_t)(one.id - first) * 3 * (3 + channels));
    }
}

// Boxes of up to this many pixels go through backward_small; from 24 to 200 the time is almost the same.
constexpr int kSmallBox = 96;
constexpr int kChunk = 512;  // number of triangles that are sorted by size together; they stay in the L2 cache

// A number for each width and height of a small box, in the order of backward_small; 0 for large boxes.
constexpr int kSizes = (kBlockReach + 1) * (kBlockReach + 1);
MIEN_INLINE int size_of(const Box& box) {
    const int wide = box.right - box.left + 1, tall = box.bottom - box.top + 1;
    return (wide * tall <= kSmallBox) & (wide <= kBlockReach) & (tall <= kBlockReach) ? tall * (kBlockReach + 1) + wide : 0;
}

template <int Channels>
void backward(const Frame& frame, int first, int end, const float* packed, float* corners, float* scratch) {
    const int gradient_size = 3 * (3 + (Channels ? Channels : frame.channels));
    memset(corners, 0, sizeof(float) * (end - first) * gradient_size);
    Triangle triangles[kChunk];
    Box boxes[kChunk];
    int chosen[kChunk], start[kSizes + 1];
    for (int chunk = first; chunk < end; chunk += kChunk) {
        const int drawn = prepare(frame, chunk, lesser(chunk + kChunk, end), triangles, boxes);
        // Counting sort by size: start[n + 1] first counts the boxes of size n, then start[n] is their first position.
        memset(start, 0, sizeof(start));
        for (int i = 0; i < drawn; ++i) {
            const int size = size_of(boxes[i]);
            if (size) ++start[size + 1];
            else
                backward_large<Channels>(frame, triangles[i], boxes[i], packed,
                                         corners + (int64_t)(triangles[i].id - first) * gradient_size, scratch);
        }
        for (int size = 1; size < kSizes; ++size) start[size + 1] += start[size];
        const int small = start[kSizes];
        for (int i = 0; i < drawn; ++i) {
            const int size = size_of(boxes[i]);
            if (size) chosen[start[size]++] = i;
        }
        for (int i = 0; i < small; i += kLanes)
            backward_small<Channels>(frame, triangles, boxes, chosen + i, lesser(kLanes, small - i), packed, first, corners,
                                     scratch);
    }
}

void backward_for(const Frame& frame, int first, int end, const float* packed, float* corners, float* scratch) {
    switch (frame.linear_depth ? 0 : frame.channels) {
        case 1: return backward<1>(frame, first, end, packed, corners, scratch);
        case 3: return backward<3>(frame, first, end, packed, corners, scratch);
        case 4: return backward<4>(frame, first, end, packed, corners, scratch);
        case 6: return backward<6>(frame, first, end, packed, corners, scratch);
        default: return backward<0>(frame, first, end, packed, corners, scratch);
    }
}

}  // namespace
}  // namespace MIEN_ISA
}  // namespace mien
