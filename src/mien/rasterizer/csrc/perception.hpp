// What finds faces in a photo: windows of the photo, and chains of layers of small networks, on the calling thread.
//
// A program is a table of layers. Each computes, for every output pixel, a depthwise 3x3 convolution (or none, or the window
// of a dense convolution), then a 1x1 convolution, the shortcut and the activation, while the pixel is in the cache. Torch
// runs each of these as an operator of its own; the calls and the trips to memory cost it more than the arithmetic.
#pragma once

#include <cstdint>

namespace mien {

constexpr int kPanel = 16;  // channels are padded to multiples of this, whatever the instruction set
static inline int64_t padded(int64_t channels) { return (channels + kPanel - 1) / kPanel * kPanel; }

// What a layer does before the 1x1 convolution. `upsampled` has no convolution: it adds the shortcut to twice the size of
// its input, interpolated bilinearly.
enum class Gather : int64_t { pixel, depthwise, dense, upsampled };

// One row of the program, as mien/perception/fused.py writes it. Buffer 0 holds the input.
struct Layer {
    int64_t input, output;   // buffers
    int64_t shortcut;        // buffer that is added before the activation, max-pooled if it is twice as large; -1 for none
    Gather gather;
    int64_t kernel, stride;  // of the gathered window
    int64_t groups;
    int64_t inputs, outputs; // channels of each group; with several groups, multiples of kPanel
    int64_t weights;         // first number of: depthwise weights (9 C), panels (C / 16, inputs, 16), bias and slopes (C)
};
constexpr int kLayerNumbers = sizeof(Layer) / sizeof(int64_t);

// Height and width pixels of `pitch` numbers each, in a frame of zeros one pixel wide.
struct Map {
    float* numbers;
    int64_t height, width, pitch;
    // Always inlined: the linker would merge the copies of different instruction sets; see simd.hpp.
    __attribute__((always_inline)) float* pixel(int64_t y, int64_t x) const { return numbers + ((y + 1) * (width + 2) + x + 1) * pitch; }
    __attribute__((always_inline)) int64_t size() const { return (height + 2) * (width + 2) * pitch; }
};

// The map that a layer writes, without its memory.
static inline Map output_of(const Layer& layer, const Map& input) {
    if (layer.gather == Gather::upsampled) return {nullptr, 2 * input.height, 2 * input.width, input.pitch};
    return {nullptr, (input.height + layer.stride - 1) / layer.stride, (input.width + layer.stride - 1) / layer.stride,
            layer.groups == 1 ? padded(layer.outputs) : layer.groups * layer.outputs};
}

// Numbers of one tile: the gathered channels of some pixels.
constexpr int64_t kTileNumbers = 8192;
constexpr int kTilePixels = 96, kLeastTilePixels = 12;

static inline int64_t tile_pitch(const Layer& layer, const Map& input) {
    return layer.gather == Gather::dense ? layer.kernel * layer.kernel * layer.inputs : input.pitch;
}
static inline int64_t tile_pixels(int64_t pitch) {
    const int64_t fit = kTileNumbers / pitch / kLeastTilePixels * kLeastTilePixels;
    return fit < kLeastTilePixels ? kLeastTilePixels : fit > kTilePixels ? kTilePixels : fit;
}

// A photo of bytes, three per pixel, and the affine map from pixels of a square window to pixels of the photo.
struct Photo {
    const uint8_t* pixels;
    int64_t height, width;
};
struct Window {
    double photo_from_window[6];
    int64_t size;
    bool continued;  // outside the photo are its last pixels, otherwise black
};

// Compiled once per instruction set (perception_kernels.cpp).
struct PerceptionKernels {
    void (*run_layer)(const Layer&, const float* weights, const Map& input, const Map* shortcut, const Map& output,
                      float* tile);
    // Bilinear colours in [0, 1] (3 size size), and the share of each pixel that the photo covers (size size).
    void (*sample_window)(const Photo&, const Window&, float* colours, float* covered);
    // A photo of half the size, each pixel the rounded mean of four; odd sizes are rounded up.
    void (*halve)(const Photo&, uint8_t* halved);
};

// Images of C channels, of which the numbers are `stride` apart.
struct Images {
    const float* numbers;
    int64_t count, height, width, channels;
    int64_t stride[4];
};
// A map that is copied out: B H W C.
struct Result {
    int64_t buffer, channels;
    float* numbers;
};
// The layers in order, for each image.
void run_layers(const Layer* layers, int count, const float* weights, const Images& images, const Result* results,
                int result_count);
void sample_window(const Photo& photo, const Window& window, float* colours, float* covered);
void halve(const Photo& photo, uint8_t* halved);
// Means of squares of 2 radius + 1 pixels, `times` in a row; at the edges, of the pixels that there are (size size).
void box_means(const float* values, int64_t size, int64_t radius, int times, float* means);

}  // namespace mien
