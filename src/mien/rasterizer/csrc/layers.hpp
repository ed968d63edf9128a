// Runs chains of convolution layers of small networks for one image after another, on the calling thread.
//
// A program is a table of layers. Each computes, for every output pixel, a depthwise 3x3 convolution (or none, or the window
// of a dense convolution), then a 1x1 convolution, the shortcut and the activation, while the pixel is in the cache. Torch
// runs each of these as an operator of its own; the calls and the trips to memory cost it more than the arithmetic.
#pragma once

#include <cstdint>

namespace mien {

constexpr int kPanel = 16;  // channels are padded to multiples of this, whatever the instruction set
inline int64_t padded(int64_t channels) { return (channels + kPanel - 1) / kPanel * kPanel; }

// What a layer does with the pixels around its own before the 1x1 convolution.
enum class Gather : int64_t { pixel, depthwise, dense };

// One row of the program, as mien/perception/fused.py writes it. Buffer 0 holds the input of the chain.
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
constexpr int kBuffers = 4;

// Height and width pixels of `pitch` numbers each, in a frame of zeros one pixel wide.
struct Map {
    float* numbers;
    int64_t height, width, pitch;
    float* pixel(int64_t y, int64_t x) const { return numbers + ((y + 1) * (width + 2) + x + 1) * pitch; }
    int64_t size() const { return (height + 2) * (width + 2) * pitch; }
};

// The map that a layer writes, without its memory.
inline Map output_of(const Layer& layer, const Map& input) {
    return {nullptr, (input.height + layer.stride - 1) / layer.stride, (input.width + layer.stride - 1) / layer.stride,
            layer.groups == 1 ? padded(layer.outputs) : layer.groups * layer.outputs};
}

// Numbers of one tile: the gathered channels of some pixels.
constexpr int64_t kTileNumbers = 8192;
constexpr int kTilePixels = 96, kLeastTilePixels = 12;

inline int64_t tile_pitch(const Layer& layer, const Map& input) {
    return layer.gather == Gather::dense ? layer.kernel * layer.kernel * layer.inputs : input.pitch;
}
inline int64_t tile_pixels(int64_t pitch) {
    const int64_t fit = kTileNumbers / pitch / kLeastTilePixels * kLeastTilePixels;
    return fit < kLeastTilePixels ? kLeastTilePixels : fit > kTilePixels ? kTilePixels : fit;
}

// One layer, compiled once per instruction set (layer_kernels.cpp).
typedef void (*RunLayer)(const Layer&, const float* weights, const Map& input, const Map* shortcut, const Map& output,
                         float* tile);

// The layers in order, for each image.
struct Images {
    int64_t count, height, width, channels;
};
void run_layers(const Layer* layers, int count, const float* weights, const Images& in, const float* input,
                const Images& out, float* output);

}  // namespace mien
