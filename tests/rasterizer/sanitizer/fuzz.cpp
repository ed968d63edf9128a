// Random and hostile meshes through all kernels, for AddressSanitizer and UndefinedBehaviorSanitizer; build and run with
// tests/rasterizer/sanitizer/run.sh. Everything that ops.py lets through may occur here: any finite position.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "soft_raster.hpp"

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 300;
    std::mt19937 random(1);
    const auto integer = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
    const auto real = [&](double low, double high) { return std::uniform_real_distribution<double>(low, high)(random); };
    const std::string isas = mien::available_isas();
    for (size_t at = 0; at < isas.size();) {
        const size_t end = std::min(isas.find(' ', at), isas.size());
        mien::select_isa(isas.substr(at, end - at).c_str());
        at = end + 1;
        for (int round = 0; round < rounds; ++round) {
            const int images = integer(0, 3), vertices = integer(1, 40), triangles = integer(0, 150);
            const int channels = integer(1, 8), height = integer(1, 40), width = integer(1, 40);
            const bool per_image = integer(0, 1);
            const int wild = integer(0, 3);
            std::vector<float> positions(images * vertices * 3), attributes(images * vertices * channels, 0.5f);
            for (size_t i = 0; i < positions.size(); ++i) {
                positions[i] = static_cast<float>(i % 3 == 2 ? real(wild ? -1 : 1, 6) : real(-1.3, 1.3));
                if (wild == 2 && integer(0, 9) == 0) positions[i] *= static_cast<float>(std::pow(10.0, real(-38, 37)));
                if (wild == 3) positions[i] = std::round(positions[i] * 8) / 8;  // edges through pixel centres
            }
            std::vector<int32_t> corners((per_image ? images : 1) * triangles * 3);
            for (int32_t& corner : corners) corner = integer(0, vertices - 1);
            const std::vector<float> near_depth(images, static_cast<float>(real(1e-3, 2))), far_depth(images, 5.0f);
            const mien::Meshes meshes = {images,         vertices,          triangles,         channels,
                                         positions.data(), corners.data(), per_image,         attributes.data(),
                                         near_depth.data(), far_depth.data()};
            const mien::Settings settings = {height, width, std::pow(10.0, real(-9, 3)), std::pow(10.0, real(-9, 1)),
                                             std::pow(10.0, real(-9, -0.302)), integer(0, 1) == 1, integer(0, 1) == 1, integer(1, 4)};
            const int pixels = images * height * width;
            std::vector<float> image(pixels * channels), alpha(pixels), state(4 * pixels), weights(3 * pixels), depth(pixels);
            std::vector<int32_t> ids(pixels);
            std::vector<float> background(channels, 0.1f), image_grad(pixels * channels, 1.0f), alpha_grad(pixels, 1.0f);
            std::vector<float> positions_grad(positions.size()), attributes_grad(attributes.size());
            const mien::FragmentArrays fragments = {ids.data(), weights.data(), depth.data()};
            mien::hard_forward(meshes, settings, fragments);
            mien::soft_forward(meshes, settings, background.data(), {image.data(), alpha.data(), state.data(), fragments});
            mien::soft_backward(meshes, settings, {image.data(), state.data(), image_grad.data(), alpha_grad.data(),
                                                   positions_grad.data(), attributes_grad.data()});
            for (int i = 0; i < pixels; ++i) {
                if (ids[i] < -1 || ids[i] >= triangles || !(alpha[i] >= -1e-6f && alpha[i] <= 1.000001f)) {
                    std::printf("%s, round %d: id %d, alpha %g\n", mien::current_isa(), round, ids[i], alpha[i]);
                    return 1;
                }
            }
            if (wild != 2) {
                for (const float value : image)
                    if (!std::isfinite(value)) return std::printf("round %d: image not finite\n", round), 1;
            }
        }
        std::printf("%s: %d rounds\n", mien::current_isa(), rounds);
    }
    return 0;
}
