// The driver of perception.hpp: memory of the maps, and the copy of the kernels for this machine.
#include "perception.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "soft_raster.hpp"

namespace mien {

#if defined(__x86_64__) || defined(__i386__)
const PerceptionKernels& perception_kernels_sse2();
const PerceptionKernels& perception_kernels_avx2();
const PerceptionKernels& perception_kernels_avx512();
#else
const PerceptionKernels& perception_kernels_baseline();
#endif

namespace {

const PerceptionKernels& perception_kernels() {
#if defined(__x86_64__) || defined(__i386__)
    const char* isa = current_isa();
    if (!std::strcmp(isa, "avx512")) return perception_kernels_avx512();
    return std::strcmp(isa, "avx2") ? perception_kernels_sse2() : perception_kernels_avx2();
#else
    return perception_kernels_baseline();
#endif
}

// Kept from call to call: fresh memory costs more than the layers that use it. The networks of this package need 6 MB.
struct Memory {
    std::vector<std::vector<float>> maps;
    std::vector<float> tile;
};
thread_local Memory kept_memory;

float* at_least(std::vector<float>& memory, int64_t numbers) {
    if (memory.size() < static_cast<size_t>(numbers)) memory.resize(static_cast<size_t>(numbers));
    return memory.data();
}

// Zeros around the map, which earlier maps in the same memory have overwritten.
void clear_frame(const Map& map) {
    const int64_t row = (map.width + 2) * map.pitch;
    std::fill_n(map.numbers, row, 0.0f);
    std::fill_n(map.numbers + (map.height + 1) * row, row, 0.0f);
    for (int64_t y = 0; y < map.height; ++y) {
        std::fill_n(map.pixel(y, -1), map.pitch, 0.0f);
        std::fill_n(map.pixel(y, map.width), map.pitch, 0.0f);
    }
}

void read_image(const Images& images, int64_t image, const Map& map) {
    const float* first = images.numbers + image * images.stride[0];
    for (int64_t y = 0; y < map.height; ++y) {
        for (int64_t x = 0; x < map.width; ++x) {
            const float* from = first + y * images.stride[1] + x * images.stride[2];
            float* to = map.pixel(y, x);
            for (int64_t channel = 0; channel < images.channels; ++channel) to[channel] = from[channel * images.stride[3]];
            std::fill_n(to + images.channels, map.pitch - images.channels, 0.0f);
        }
    }
}

void write_image(const Map& map, int64_t channels, float* output) {
    for (int64_t y = 0; y < map.height; ++y)
        for (int64_t x = 0; x < map.width; ++x, output += channels) std::copy_n(map.pixel(y, x), channels, output);
}

// to[x][y] = from[y][x]
void transpose(const float* from, int64_t size, float* to) {
    constexpr int64_t kBlock = 16;
    for (int64_t top = 0; top < size; top += kBlock)
        for (int64_t left = 0; left < size; left += kBlock)
            for (int64_t x = left; x < std::min(left + kBlock, size); ++x)
                for (int64_t y = top; y < std::min(top + kBlock, size); ++y) to[x * size + y] = from[y * size + x];
}

// Means of 2 radius + 1 rows.
void row_means(const float* from, int64_t size, int64_t radius, float* to) {
    for (int64_t y = 0; y < size; ++y, to += size) {
        const int64_t first = std::max<int64_t>(y - radius, 0), last = std::min(y + radius, size - 1);
        std::copy_n(from + first * size, size, to);
        for (int64_t row = first + 1; row <= last; ++row)
            for (int64_t x = 0; x < size; ++x) to[x] += from[row * size + x];
        const float share = 1.0f / static_cast<float>(last - first + 1);
        for (int64_t x = 0; x < size; ++x) to[x] *= share;
    }
}

}  // namespace

void box_means(const float* values, int64_t size, int64_t radius, int times, float* means) {
    std::vector<float> memory(static_cast<size_t>(2 * size * size));
    float *now = memory.data(), *next = now + size * size;
    std::copy_n(values, size * size, now);
    for (int axis = 0; axis < 2; ++axis) {
        for (int k = 0; k < times; ++k, std::swap(now, next)) row_means(now, size, radius, next);
        transpose(now, size, next);
        std::swap(now, next);
    }
    std::copy_n(now, size * size, means);
}

void run_layers(const Layer* layers, int count, const float* weights, const Images& images, const Result* results,
                int result_count) {
    const PerceptionKernels& kernels = perception_kernels();
    Memory& memory = kept_memory;
    int64_t buffers = 1;
    for (const Layer* layer = layers; layer < layers + count; ++layer) buffers = std::max(buffers, layer->output + 1);
    if (memory.maps.size() < static_cast<size_t>(buffers)) memory.maps.resize(static_cast<size_t>(buffers));
    std::vector<Map> maps(static_cast<size_t>(buffers));
    const auto place = [&](int64_t buffer, Map map) {
        map.numbers = at_least(memory.maps[buffer], map.size());
        clear_frame(map);
        maps[buffer] = map;
    };
    const int64_t pitch = layers[0].gather == Gather::dense ? images.channels : padded(images.channels);
    for (int64_t image = 0; image < images.count; ++image) {
        place(0, {nullptr, images.height, images.width, pitch});
        read_image(images, image, maps[0]);
        for (const Layer* layer = layers; layer < layers + count; ++layer) {
            const Map from = maps[layer->input];
            place(layer->output, output_of(*layer, from));
            const int64_t of_tile = tile_pitch(*layer, from);
            float* tile = at_least(memory.tile, of_tile * tile_pixels(of_tile));
            kernels.run_layer(*layer, weights + layer->weights, from, layer->shortcut < 0 ? nullptr : &maps[layer->shortcut],
                              maps[layer->output], tile);
        }
        for (const Result* result = results; result < results + result_count; ++result) {
            const Map& map = maps[result->buffer];
            write_image(map, result->channels, result->numbers + image * map.height * map.width * result->channels);
        }
    }
}

void sample_window(const Photo& photo, const Window& window, float* colours, float* covered) {
    perception_kernels().sample_window(photo, window, colours, covered);
}

void halve(const Photo& photo, uint8_t* halved) { perception_kernels().halve(photo, halved); }

}  // namespace mien
