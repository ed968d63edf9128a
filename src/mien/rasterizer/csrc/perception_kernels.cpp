// The arithmetic of perception.hpp. Compiled once per instruction set; simd.hpp explains the rules for that.
#include "perception.hpp"

#include "simd.hpp"

namespace mien {
namespace MIEN_ISA {
namespace {

constexpr int kVectors = kPanel / kLanes;  // of one panel

// Pixels and panels whose sums stay in registers together: 24 of 32 registers, 12 of 16, 8 of 16.
#if defined(__AVX512F__)
constexpr int kPixels = 12, kPanels = 2;
#elif defined(__AVX2__)
constexpr int kPixels = 6, kPanels = 1;
#else
constexpr int kPixels = 2, kPanels = 1;
#endif

MIEN_INLINE Floats load(const float* from) {
    Floats values;
    memcpy(&values, from, sizeof values);
    return values;
}
MIEN_INLINE void store(float* to, Floats values) { memcpy(to, &values, sizeof values); }

// Where the pixels of a tile are in the output and in the shortcut.
struct Places {
    float* output[kTilePixels];
    const float* shortcut[kTilePixels];
};

// What follows the matrix product, for the channels of one group.
struct Finish {
    const float* bias;
    const float* slopes;
    int64_t shortcut_channels;  // 0 for none
    int64_t row;                // numbers from a pixel of the shortcut to the one below; 0 if it is not pooled
    int64_t pitch;              // ... to the one beside
};

MIEN_INLINE Floats shortcut_at(const Finish& finish, const float* first) {
    const Floats value = load(first);
    if (!finish.row) return value;
    const Floats above = maximum(value, load(first + finish.pitch));
    return maximum(above, maximum(load(first + finish.row), load(first + finish.row + finish.pitch)));
}

// Pixels [0, Pixels) times Panels panels of the weights, with all that follows.
template <int Pixels, int Panels>
MIEN_INLINE void multiply(const float* tile, int64_t pitch, int64_t inputs, const float* panels, const Finish& finish,
                          float* const* outputs, const float* const* shortcuts, int64_t channel, int64_t output_channel,
                          int64_t shortcut_channel) {
    constexpr int kColumns = Panels * kVectors;
    Floats sums[Pixels][kColumns];
#pragma GCC unroll 16
    for (int column = 0; column < kColumns; ++column) {
        const Floats bias = load(finish.bias + channel + column * kLanes);
#pragma GCC unroll 16
        for (int pixel = 0; pixel < Pixels; ++pixel) sums[pixel][column] = bias;
    }
    for (int64_t k = 0; k < inputs; ++k) {
        Floats weights[kColumns];
#pragma GCC unroll 16
        for (int column = 0; column < kColumns; ++column)
            weights[column] = load(panels + ((column / kVectors) * inputs + k) * kPanel + column % kVectors * kLanes);
#pragma GCC unroll 16
        for (int pixel = 0; pixel < Pixels; ++pixel) {
            const Floats value = splat(tile[pixel * pitch + k]);
#pragma GCC unroll 16
            for (int column = 0; column < kColumns; ++column) sums[pixel][column] += value * weights[column];
        }
    }
#pragma GCC unroll 16
    for (int column = 0; column < kColumns; ++column) {
        const int64_t own = channel + column * kLanes;
        const Floats slopes = load(finish.slopes + own);
        const bool has_shortcut = own < finish.shortcut_channels;
#pragma GCC unroll 16
        for (int pixel = 0; pixel < Pixels; ++pixel) {
            Floats value = sums[pixel][column];
            if (has_shortcut) value += shortcut_at(finish, shortcuts[pixel] + shortcut_channel + own);
            value = maximum(value, Floats{}) + slopes * minimum(value, Floats{});
            store(outputs[pixel] + output_channel + own, value);
        }
    }
}

template <int Panels>
void multiply_pixels(const float* tile, int64_t pitch, int64_t inputs, const float* panels, const Finish& finish,
                     const Places& places, int pixels, int64_t channel, int64_t output_channel, int64_t shortcut_channel) {
    int pixel = 0;
#define MIEN_MULTIPLY(count)                                                                                           \
    for (; pixel + count <= pixels; pixel += count)                                                                    \
    multiply<count, Panels>(tile + pixel * pitch, pitch, inputs, panels, finish, places.output + pixel,                \
                            places.shortcut + pixel, channel, output_channel, shortcut_channel)
    MIEN_MULTIPLY(kPixels);
    if (kPixels > 4) MIEN_MULTIPLY(4);
    MIEN_MULTIPLY(1);
#undef MIEN_MULTIPLY
}

// `count` pixels of one row of the depthwise convolution.
template <int Stride>
MIEN_INLINE void depthwise_row(const Map& input, const float* weights, int64_t y, int64_t x, int64_t count, float* tile) {
    const int64_t pitch = input.pitch, row = (input.width + 2) * pitch;
    // With 'SAME' padding, windows of stride 1 are centred, and those of stride 2 begin at their pixel.
    const float* corner = input.pixel(y * Stride, x * Stride) - (Stride == 1 ? row + pitch : 0);
    for (int64_t channel = 0; channel < pitch; channel += kLanes) {
        Floats taps[9];
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; ++tap) taps[tap] = load(weights + tap * pitch + channel);
        const float* from = corner + channel;
        float* to = tile + channel;
        for (int64_t pixel = 0; pixel < count; ++pixel, from += Stride * pitch, to += pitch) {
            Floats sums[3];
#pragma GCC unroll 3
            for (int line = 0; line < 3; ++line) {
                sums[line] = load(from + line * row) * taps[3 * line];
                sums[line] += load(from + line * row + pitch) * taps[3 * line + 1];
                sums[line] += load(from + line * row + 2 * pitch) * taps[3 * line + 2];
            }
            store(to, sums[0] + sums[1] + sums[2]);
        }
    }
}

// The window of a dense convolution with 'SAME' padding, as one row of numbers.
void dense_window(const Layer& layer, const Map& input, int64_t y, int64_t x, float* to) {
    const int64_t inputs = layer.inputs, kernel = layer.kernel;
    const auto before = [&](int64_t size) {
        const int64_t total = ((size + layer.stride - 1) / layer.stride - 1) * layer.stride + kernel - size;
        return total > 0 ? total / 2 : 0;
    };
    const int64_t top = y * layer.stride - before(input.height), left = x * layer.stride - before(input.width);
    const bool whole = left >= 0 && left + kernel <= input.width;
    for (int64_t row = top; row < top + kernel; ++row) {
        if (whole && row >= 0 && row < input.height) {
            const float* from = input.pixel(row, left);
            for (int64_t number = 0; number < kernel * inputs; ++number) *to++ = from[number];
            continue;
        }
        for (int64_t column = left; column < left + kernel; ++column, to += inputs) {
            const bool inside = row >= 0 && row < input.height && column >= 0 && column < input.width;
            const float* from = inside ? input.pixel(row, column) : nullptr;
            for (int64_t channel = 0; channel < inputs; ++channel) to[channel] = inside ? from[channel] : 0.0f;
        }
    }
}

void gather(const Layer& layer, const float* weights, const Map& input, int64_t y, int64_t x, int64_t count,
            int64_t pitch, float* tile) {
    if (layer.gather == Gather::depthwise) {
        if (layer.stride == 1)
            depthwise_row<1>(input, weights, y, x, count, tile);
        else
            depthwise_row<2>(input, weights, y, x, count, tile);
    } else if (layer.gather == Gather::dense) {
        for (int64_t pixel = 0; pixel < count; ++pixel) dense_window(layer, input, y, x + pixel, tile + pixel * pitch);
    } else {
        memcpy(tile, input.pixel(y, x), sizeof(float) * count * pitch);
    }
}

// The shortcut plus the input at twice its size: each new pixel lies a quarter of a pixel from the nearest old one.
void add_upsampled(const Map& input, const Map& shortcut, const Map& output) {
    const auto within = [](int64_t x, int64_t size) { return x < 0 ? 0 : x < size ? x : size - 1; };
    for (int64_t y = 0; y < output.height; ++y) {
        const int64_t near_y = y / 2, far_y = within(near_y + (y % 2 ? 1 : -1), input.height);
        for (int64_t x = 0; x < output.width; ++x) {
            const int64_t near_x = x / 2, far_x = within(near_x + (x % 2 ? 1 : -1), input.width);
            const float *near_near = input.pixel(near_y, near_x), *near_far = input.pixel(near_y, far_x);
            const float *far_near = input.pixel(far_y, near_x), *far_far = input.pixel(far_y, far_x);
            const float* added = shortcut.pixel(y, x);
            float* to = output.pixel(y, x);
            for (int64_t channel = 0; channel < output.pitch; channel += kLanes) {
                const Floats near_row = 0.75f * load(near_near + channel) + 0.25f * load(near_far + channel);
                const Floats far_row = 0.75f * load(far_near + channel) + 0.25f * load(far_far + channel);
                store(to + channel, load(added + channel) + (0.75f * near_row + 0.25f * far_row));
            }
        }
    }
}

void run_layer(const Layer& layer, const float* weights, const Map& input, const Map* shortcut, const Map& output,
               float* tile) {
    if (layer.gather == Gather::upsampled) return add_upsampled(input, *shortcut, output);
    const int64_t pitch = tile_pitch(layer, input), channels = output.pitch / layer.groups;
    const float* panels = weights + (layer.gather == Gather::depthwise ? 9 * input.pitch : 0);
    const int64_t inputs = layer.gather == Gather::dense ? pitch : layer.inputs, group_weights = inputs * channels;
    const float* bias = panels + layer.groups * group_weights;
    const bool pooled = shortcut && shortcut->height > output.height;
    Finish finish = {};
    if (shortcut) {
        finish.shortcut_channels = shortcut->pitch / layer.groups;
        if (finish.shortcut_channels > channels) finish.shortcut_channels = channels;
        finish.row = pooled ? (shortcut->width + 2) * shortcut->pitch : 0;
        finish.pitch = shortcut->pitch;
    }
    const int64_t all = output.height * output.width, most = tile_pixels(pitch);
    Places places;
    for (int64_t first = 0; first < all; first += most) {
        const int pixels = (int)(all - first < most ? all - first : most);
        for (int pixel = 0; pixel < pixels;) {
            const int64_t y = (first + pixel) / output.width, x = (first + pixel) % output.width;
            const int64_t count = output.width - x < pixels - pixel ? output.width - x : pixels - pixel;
            gather(layer, weights, input, y, x, count, pitch, tile + pixel * pitch);
            for (int64_t k = 0; k < count; ++k) {
                places.output[pixel + k] = output.pixel(y, x + k);
                if (shortcut) places.shortcut[pixel + k] = pooled ? shortcut->pixel(2 * y, 2 * (x + k)) : shortcut->pixel(y, x + k);
            }
            pixel += (int)count;
        }
        for (int64_t group = 0; group < layer.groups; ++group) {
            finish.bias = bias + group * channels;
            finish.slopes = finish.bias + output.pitch;
            const float* own = panels + group * group_weights;
            const float* from = tile + group * layer.inputs;
            const int64_t to = group * channels, skip = shortcut ? group * (shortcut->pitch / layer.groups) : 0;
            int64_t channel = 0;
            for (; channel + kPanels * kPanel <= channels; channel += kPanels * kPanel)
                multiply_pixels<kPanels>(from, pitch, inputs, own + channel * inputs, finish, places, pixels, channel, to, skip);
            for (; channel < channels; channel += kPanel)
                multiply_pixels<1>(from, pitch, inputs, own + channel * inputs, finish, places, pixels, channel, to, skip);
        }
    }
}

// The four pixels around each position; the lowest three bytes of each number are the colours.
struct Corners {
    int32_t bits[4][kLanes];
};

// Where all are inside, each row's two pixels are read at once, with two bytes of what follows.
MIEN_INLINE void inner_corners(const Photo& photo, const int32_t* left, const int32_t* top, Corners& corners) {
    const int64_t row = photo.width * 3;
    for (int lane = 0; lane < kLanes; ++lane) {
        const uint8_t* first = photo.pixels + top[lane] * row + left[lane] * 3;
        uint64_t above, below;
        memcpy(&above, first, 8);
        memcpy(&below, first + row, 8);
        corners.bits[0][lane] = (int32_t)above;
        corners.bits[1][lane] = (int32_t)(above >> 24);
        corners.bits[2][lane] = (int32_t)below;
        corners.bits[3][lane] = (int32_t)(below >> 24);
    }
}

// Black outside the photo.
void outer_corners(const Photo& photo, const int32_t* left, const int32_t* top, Corners& corners) {
    for (int lane = 0; lane < kLanes; ++lane) {
        for (int corner = 0; corner < 4; ++corner) {
            const int64_t x = (int64_t)left[lane] + corner % 2, y = (int64_t)top[lane] + corner / 2;
            const bool inside = x >= 0 && x < photo.width && y >= 0 && y < photo.height;
            const uint8_t* first = inside ? photo.pixels + (y * photo.width + x) * 3 : nullptr;
            corners.bits[corner][lane] = inside ? first[0] | first[1] << 8 | first[2] << 16 : 0;
        }
    }
}

MIEN_INLINE Floats channel_of(const int32_t* corner, int channel) {
    Ints bits;
    memcpy(&bits, corner, sizeof bits);
    return __builtin_convertvector((bits >> (8 * channel)) & splat(255), Floats);
}

// The whole number at or below; |x| is far below 2^31.
MIEN_INLINE Floats floor_of(Floats x) {
    const Floats whole = __builtin_convertvector(__builtin_convertvector(x, Ints), Floats);
    return select(less(x, whole), whole - 1.0f, whole);
}

// How much of a pixel's width around `x` lies between 0 and `size`, 0 to 1.
MIEN_INLINE Floats share_inside(Floats x, float size) {
    return clamp(minimum(x + 1.0f, splat(size) - x), splat(0.0f), splat(1.0f));
}

void sample_window(const Photo& photo, const Window& window, float* colours, float* covered) {
    const double* map = window.photo_from_window;
    const int64_t plane = window.size * window.size;
    const Floats last_x = splat((float)(photo.width - 1)), last_y = splat((float)(photo.height - 1)), far = splat(1e6f);
    Floats steps;
    for (int lane = 0; lane < kLanes; ++lane) steps[lane] = (float)lane;
    for (int64_t row = 0; row < window.size; ++row) {
        for (int64_t column = 0; column < window.size; column += kLanes) {
            // Positions from pixel centre to pixel centre.
            const double x0 = map[0] * (column + 0.5) + map[1] * (row + 0.5) + map[2] - 0.5;
            const double y0 = map[3] * (column + 0.5) + map[4] * (row + 0.5) + map[5] - 0.5;
            Floats x = clamp((float)x0 + steps * (float)map[0], -far, far);
            Floats y = clamp((float)y0 + steps * (float)map[3], -far, far);
            const Floats share = share_inside(x, (float)photo.width) * share_inside(y, (float)photo.height);
            if (window.continued) {
                x = clamp(x, splat(0.0f), last_x);
                y = clamp(y, splat(0.0f), last_y);
            }
            const Floats left = floor_of(x), top = floor_of(y), right_share = x - left, lower_share = y - top;
            const Mask outer = less(left, splat(0.0f)) | less(top, splat(0.0f)) | less(last_x, left + 1.0f) |
                               less(last_y, top + 2.0f);
            const Ints columns = __builtin_convertvector(left, Ints), rows = __builtin_convertvector(top, Ints);
            Corners corners;
            if (any(outer))
                outer_corners(photo, (const int32_t*)&columns, (const int32_t*)&rows, corners);
            else
                inner_corners(photo, (const int32_t*)&columns, (const int32_t*)&rows, corners);
            Floats sums[3];
            for (int channel = 0; channel < 3; ++channel) {
                const Floats above_left = channel_of(corners.bits[0], channel), below_left = channel_of(corners.bits[2], channel);
                const Floats above = above_left + right_share * (channel_of(corners.bits[1], channel) - above_left);
                const Floats below = below_left + right_share * (channel_of(corners.bits[3], channel) - below_left);
                sums[channel] = above + lower_share * (below - above);
            }
            const int64_t to = row * window.size + column;
            const int lanes = (int)(window.size - column < kLanes ? window.size - column : kLanes);
            for (int channel = 0; channel < 3; ++channel) {
                const Floats colour = sums[channel] * (1.0f / 255.0f);
                memcpy(colours + channel * plane + to, &colour, sizeof(float) * lanes);
            }
            memcpy(covered + to, &share, sizeof(float) * lanes);
        }
    }
}

// Rounded means of two by two pixels, or of those there are at the right and lower edge.
void halve(const Photo& photo, uint8_t* halved) {
    const int64_t row = photo.width * 3, whole = photo.width / 2;
    for (int64_t y = 0; y < photo.height; y += 2) {
        const uint8_t* above = photo.pixels + y * row;
        const uint8_t* below = y + 1 < photo.height ? above + row : above;
        for (int64_t x = 0; x < whole; ++x, above += 6, below += 6, halved += 3)
            for (int channel = 0; channel < 3; ++channel)
                halved[channel] = (uint8_t)((above[channel] + above[channel + 3] + below[channel] + below[channel + 3] + 2) >> 2);
        if (photo.width % 2)
            for (int channel = 0; channel < 3; ++channel) *halved++ = (uint8_t)((above[channel] + below[channel] + 1) >> 1);
    }
}

}  // namespace
}  // namespace MIEN_ISA

#define MIEN_JOINED_(a, b) a##b
#define MIEN_JOINED(a, b) MIEN_JOINED_(a, b)

const PerceptionKernels& MIEN_JOINED(perception_kernels_, MIEN_ISA)() {
    static const PerceptionKernels kernels = {MIEN_ISA::run_layer, MIEN_ISA::sample_window, MIEN_ISA::halve};
    return kernels;
}

}  // namespace mien
