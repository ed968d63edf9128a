// The driver: divides the work into tasks, sorts triangles into blocks, and calls the kernels of the best instruction set.
//
// With at least as many images as threads every image is one task; otherwise the threads share each image, one image
// after another. The result is the same to the last bit.
#include "soft_raster.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "parallel.hpp"
#include "sorting.hpp"
#include "workspace.hpp"

namespace mien {
namespace {

// ---------------------------------------------------------------------------------------------- instruction sets

std::vector<const Kernels*> find_kernels() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__) || defined(__i386__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
        found.push_back(&kernels_avx512());
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&kernels_avx2());
    found.push_back(&kernels_sse2());
#else
    found.push_back(&kernels_baseline());
#endif
    return found;
}

const std::vector<const Kernels*>& runnable_kernels() {
    static const std::vector<const Kernels*> kernels = find_kernels();
    return kernels;
}

std::atomic<const Kernels*> selected{nullptr};

const Kernels& kernels() {
    const Kernels* chosen = selected.load();
    return chosen ? *chosen : *runnable_kernels().front();
}

// ---------------------------------------------------------------------------------------------------- one image

Frame frame_of(const Meshes& meshes, const Settings& settings, int image, bool soft) {
    Frame frame{};
    frame.height = settings.height;
    frame.width = settings.width;
    frame.pixels_per_ndc = 0.5 * std::min(settings.height, settings.width);
    const double pixel_sigma = settings.sigma * frame.pixels_per_ndc * frame.pixels_per_ndc;
    const double reach_sq = soft ? std::max(std::log(1 / settings.dist_eps - 1) * pixel_sigma, 0.0) : 0.0;
    frame.reach = std::sqrt(reach_sq);
    frame.reach_sq = static_cast<float>(reach_sq);
    frame.near_depth = meshes.near_depth[image];
    frame.far_depth = meshes.far_depth[image];
    if (soft) {
        constexpr double kBackgroundDepth = 1e-3;  // as in reference.py
        frame.inverse_sigma = static_cast<float>(1 / pixel_sigma);
        frame.zeta_per_depth = 1 / ((frame.far_depth - frame.near_depth) * settings.gamma);
        const double zeta = kBackgroundDepth / settings.gamma;
        frame.background_whole = static_cast<float>(std::floor(zeta));
        frame.background_rest = static_cast<float>(zeta - frame.background_whole);
    }
    frame.cull_backfaces = settings.cull_backfaces;
    frame.linear_depth = settings.linear_depth;
    frame.vertices = meshes.vertices;
    frame.channels = meshes.channels;
    const int64_t b = image;
    frame.positions = meshes.positions + b * meshes.vertices * 3;
    frame.corners = meshes.corners + (meshes.corners_per_image ? b * meshes.triangles * 3 : 0);
    frame.attributes = meshes.attributes ? meshes.attributes + b * meshes.vertices * meshes.channels : nullptr;
    return frame;
}

FragmentArrays fragments_of(const FragmentArrays& all, const Settings& settings, int image) {
    const int64_t first = static_cast<int64_t>(image) * settings.height * settings.width;
    return {all.triangle_ids + first, all.barycentrics + 3 * first, all.depth + first};
}

// Prepares all triangles of one image.
void prepare_triangles(const Kernels& isa, const Frame& frame, int triangles, Team& team, PreparedTriangles& out) {
    const int pieces = pieces_of(triangles);
    Triangle* const prepared = out.triangles.at_least(triangles);
    Box* const boxes = out.boxes.at_least(triangles);
    int* const drawn = out.drawn.at_least(pieces);
    team.parallel_for(pieces, [&](int piece, int) {
        const int first = piece * kPiece;
        drawn[piece] = isa.prepare(frame, first, std::min(first + kPiece, triangles), prepared + first, boxes + first);
    });
}

// ---------------------------------------------------------------------------------------------------- all images

// Calls draw(image, frame, band, scratch) for bands that cover every image.
template <typename Draw>
void draw_bands(const Kernels& isa, const Meshes& meshes, const Settings& settings, bool soft, const Draw& draw) {
    const int threads = std::max(settings.threads, 1);
    BorrowedWorkspace workspace(threads);
    const Region whole = {0, (settings.height + isa.block_rows - 1) / isa.block_rows, 0,
                          (settings.width + (1 << kColumnShift) - 1) >> kColumnShift};
    const int64_t budget = std::clamp<int64_t>(2LL * meshes.triangles, list_budget.load(), INT32_MAX / 2);
    const auto scratch_of = [&](int worker) {
        return workspace->scratch[worker].at_least(scratch_size(meshes.channels));
    };
    const auto for_each_region = [&](const Frame& frame, Team& team, int worker, const auto& body) {
        PreparedTriangles& prepared = workspace->prepared[worker];
        prepare_triangles(isa, frame, meshes.triangles, team, prepared);
        const Sorting sorting(prepared, meshes.triangles, team.threads(), isa.block_rows);
        for_each_sorted(sorting, whole, budget, team, workspace->sorted[worker], body);
    };
    Team::run(threads, [&](Team& team) {
        if (meshes.images >= threads) {
            team.parallel_for(meshes.images, [&](int image, int worker) {
                Team alone;
                const Frame frame = frame_of(meshes, settings, image, soft);
                for_each_region(frame, alone, worker,
                                [&](const Band& band) { draw(image, frame, band, scratch_of(worker)); });
            });
            return;
        }
        for (int image = 0; image < meshes.images; ++image) {
            const Frame frame = frame_of(meshes, settings, image, soft);
            for_each_region(frame, team, 0, [&](const Band& region) {
                const int rows = region.end_row - region.first_row;
                const int bands = std::min(rows, 32 * threads);  // many, because objects fill the middle of an image
                team.parallel_for(bands, [&](int index, int worker) {
                    Band band = region;
                    band.first_row += static_cast<int>(static_cast<int64_t>(rows) * index / bands);
                    band.end_row = region.first_row + static_cast<int>(static_cast<int64_t>(rows) * (index + 1) / bands);
                    draw(image, frame, band, scratch_of(worker));
                });
            });
        }
    });
}

void clear_gradients(const SoftGradients& of_image, int channels, int low, int high) {
    const int64_t count = high - low;
    std::memset(of_image.positions_grad + int64_t(3) * low, 0, sizeof(float) * 3 * count);
    std::memset(of_image.attributes_grad + int64_t(channels) * low, 0, sizeof(float) * channels * count);
}

// Adds the gradients of the triangles [first, end) to those of their corners among the vertices [low, high), in the order
// of the triangles for every range.
void scatter(const Frame& frame, int first, int end, int low, int high, const float* gradient, float* positions_grad,
             float* attributes_grad) {
    for (int64_t corner = 3LL * first; corner < 3LL * end; ++corner, gradient += 3 + frame.channels) {
        const int64_t vertex = frame.corners[corner];
        if (vertex < low || vertex >= high) continue;
        for (int i = 0; i < 3; ++i) positions_grad[vertex * 3 + i] += gradient[i];
        float* const attribute = attributes_grad + vertex * frame.channels;
        for (int c = 0; c < frame.channels; ++c) attribute[c] += gradient[3 + c];
    }
}

SoftGradients gradients_of(const SoftGradients& all, const Meshes& meshes, const Settings& settings, int image) {
    const int64_t b = image, pixels = static_cast<int64_t>(settings.height) * settings.width;
    SoftGradients one = all;
    one.image += b * meshes.channels * pixels;
    one.image_grad += b * meshes.channels * pixels;
    one.alpha_grad += b * pixels;
    one.state += b * kStatePlanes * pixels;
    one.positions_grad += b * meshes.vertices * 3;
    one.attributes_grad += b * meshes.vertices * meshes.channels;
    return one;
}

}  // namespace

// ------------------------------------------------------------------------------------------------ public functions

void soft_forward(const Meshes& meshes, const Settings& settings, const float* background, const SoftArrays& out) {
    const int64_t pixels = static_cast<int64_t>(settings.height) * settings.width;
    const Kernels& isa = kernels();
    draw_bands(isa, meshes, settings, true, [&](int image, const Frame& frame, const Band& band, float* scratch) {
        const int64_t b = image;
        const SoftPlanes planes = {out.image + b * meshes.channels * pixels, out.alpha + b * pixels,
                                   out.state + b * kStatePlanes * pixels,
                                   fragments_of(out.fragments, settings, image)};
        isa.soft_band(frame, band, background, planes, scratch);
    });
}

void hard_forward(const Meshes& meshes, const Settings& settings, const FragmentArrays& out) {
    const Kernels& isa = kernels();
    draw_bands(isa, meshes, settings, false, [&](int image, const Frame& frame, const Band& band, float*) {
        isa.hard_band(frame, band, fragments_of(out, settings, image));
    });
}

void soft_backward(const Meshes& meshes, const Settings& settings, const SoftGradients& all) {
    const int threads = std::max(settings.threads, 1);
    if (meshes.vertices == 0) return;
    const Kernels& isa = kernels();
    BorrowedWorkspace workspace(threads);
    const auto scratch_of = [&](int worker) {
        return workspace->scratch[worker].at_least(scratch_size(meshes.channels));
    };
    const size_t corner_size = 3 * (3 + static_cast<size_t>(meshes.channels));
    Team::run(threads, [&](Team& team) {
        if (meshes.images >= threads) {
            team.parallel_for(meshes.images, [&](int image, int worker) {
                const Frame frame = frame_of(meshes, settings, image, true);
                const SoftGradients one = gradients_of(all, meshes, settings, image);
                float* const pixels = workspace->packed[worker].at_least(packed_size(frame));
                float* const corners = workspace->corners[worker].at_least(kPiece * corner_size);
                clear_gradients(one, meshes.channels, 0, meshes.vertices);
                isa.pack_rows(frame, 0, frame.height + kBlockReach, one, pixels);
                for (int first = 0; first < meshes.triangles; first += kPiece) {
                    const int end = std::min(first + kPiece, meshes.triangles);
                    isa.backward(frame, first, end, pixels, corners, scratch_of(worker));
                    scatter(frame, first, end, 0, meshes.vertices, corners, one.positions_grad, one.attributes_grad);
                }
            });
            return;
        }
        for (int image = 0; image < meshes.images; ++image) {
            const Frame frame = frame_of(meshes, settings, image, true);
            const SoftGradients one = gradients_of(all, meshes, settings, image);
            float* const pixels = workspace->packed[0].at_least(packed_size(frame));
            float* const corners = workspace->corners[0].at_least(meshes.triangles * corner_size);
            const int rows = frame.height + kBlockReach;
            team.parallel_for(threads, [&](int part, int) {
                isa.pack_rows(frame, static_cast<int>(int64_t(rows) * part / threads),
                              static_cast<int>(int64_t(rows) * (part + 1) / threads), one, pixels);
            });
            team.parallel_for(pieces_of(meshes.triangles), [&](int piece, int worker) {
                const int first = piece * kPiece, end = std::min(first + kPiece, meshes.triangles);
                isa.backward(frame, first, end, pixels, corners + first * corner_size, scratch_of(worker));
            });
            team.parallel_for(threads, [&](int part, int) {
                const int64_t v = meshes.vertices;
                const int low = static_cast<int>(v * part / threads), high = static_cast<int>(v * (part + 1) / threads);
                clear_gradients(one, meshes.channels, low, high);  // by the thread that adds to it
                scatter(frame, 0, meshes.triangles, low, high, corners, one.positions_grad, one.attributes_grad);
            });
        }
    });
}

int64_t count_pairs(const Meshes& meshes, const Settings& settings) {
    const Kernels& isa = kernels();
    int64_t pairs = 0;
    for (int image = 0; image < meshes.images; ++image)
        pairs += isa.count_pairs(frame_of(meshes, settings, image, true), 0, meshes.triangles);
    return pairs;
}

Contents scan(const Meshes& meshes) {
    const auto all_finite = [](const float* numbers, int64_t count) {
        uint32_t found = 0;
        for (int64_t i = 0; i < count; ++i) {
            uint32_t bits;
            std::memcpy(&bits, numbers + i, sizeof(bits));
            found |= (bits & 0x7f800000u) == 0x7f800000u;
        }
        return found == 0;
    };
    const int64_t vertices = int64_t(meshes.images) * meshes.vertices;
    const int64_t corners = int64_t(3) * meshes.triangles * (meshes.corners_per_image ? meshes.images : 1);
    uint32_t signs = 0;  // of the corners, and of their distances to the last vertex
    for (int64_t i = 0; i < corners; ++i) {
        const uint32_t corner = static_cast<uint32_t>(meshes.corners[i]);
        signs |= corner | (static_cast<uint32_t>(meshes.vertices) - 1u - corner);
    }
    int crosses = 0;
    for (int64_t image = 0; image < meshes.images; ++image) {
        const float* const z = meshes.positions + image * meshes.vertices * 3 + 2;
        for (int64_t i = 0; i < meshes.vertices; ++i) crosses |= z[3 * i] < meshes.near_depth[image];
    }
    return {signs >> 31 == 0 && all_finite(meshes.positions, 3 * vertices) &&
                (!meshes.attributes || all_finite(meshes.attributes, vertices * meshes.channels)),
            crosses != 0};
}

const char* available_isas() {
    static const std::string names = [] {
        std::string all;
        for (const Kernels* one : runnable_kernels()) all += (all.empty() ? "" : " ") + std::string(one->name);
        return all;
    }();
    return names.c_str();
}

const char* current_isa() { return kernels().name; }

bool select_isa(const char* name) {
    for (const Kernels* one : runnable_kernels()) {
        if (std::strcmp(one->name, name) == 0) {
            selected.store(one);
            return true;
        }
    }
    return false;
}

int64_t workspace_bytes() { return static_cast<int64_t>(kept_workspace.bytes()); }

int64_t select_list_budget(int64_t numbers) { return list_budget.exchange(numbers > 0 ? numbers : kListBudget); }

double measure_fma_rate() {
    using Clock = std::chrono::steady_clock;
    const Kernels& isa = kernels();
    constexpr int kRounds = 1 << 20;
    double best = 0;
    for (int trial = 0; trial < 5; ++trial) {
        int flops_per_round = 0;
        const auto begin = Clock::now();
        isa.multiply_adds(kRounds, &flops_per_round);
        const std::chrono::duration<double> seconds = Clock::now() - begin;
        best = std::max(best, 1e-9 * kRounds * flops_per_round / seconds.count());
    }
    return best;
}

}  // namespace mien
