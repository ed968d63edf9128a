// The driver: cuts the work into tasks, sorts triangles into blocks, and calls the kernels of the best instruction set.
//
// With at least as many images as threads every image is one task; otherwise images follow one another, and the
// threads share each of them. The result is the same to the last bit.
#include "soft_raster.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "parallel.hpp"

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

// ---------------------------------------------------------------------------------------------------- workspace

struct FreeAligned {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};

// Memory that grows and is not initialised: a vector would write every byte once more.
template <typename Item>
class Buffer {
public:
    Item* at_least(size_t items) {
        if (items > items_) {
            memory_.reset();
            items_ = 0;
            memory_.reset(static_cast<Item*>(::operator new(items * sizeof(Item), std::align_val_t(64))));
            items_ = items;
        }
        return memory_.get();
    }
    Item* get() const { return memory_.get(); }
    size_t bytes() const { return items_ * sizeof(Item); }

private:
    std::unique_ptr<Item, FreeAligned> memory_;
    size_t items_ = 0;
};

// Triangles are prepared in pieces of this many, each to its own stretch of memory; big enough to be worth a task.
constexpr int kPiece = 1024;

int pieces_of(int triangles) { return (triangles + kPiece - 1) / kPiece; }

struct PreparedTriangles {
    Buffer<Triangle> triangles;
    Buffer<Box> boxes;
    Buffer<int> drawn;  // per piece
};

// Which triangles touch each block of a region of the image; see `Band`.
struct SortedTriangles {
    Buffer<int32_t> start, list, next;
};

// Indexed by worker, but owned by the caller, as the workers live for one loop only.
struct Workspace {
    std::vector<PreparedTriangles> prepared;
    std::vector<SortedTriangles> sorted;
    std::vector<Buffer<float>> scratch, packed, corners;

    size_t bytes() const {
        size_t sum = 0;
        for (const PreparedTriangles& one : prepared)
            sum += one.triangles.bytes() + one.boxes.bytes() + one.drawn.bytes();
        for (const SortedTriangles& one : sorted) sum += one.start.bytes() + one.list.bytes() + one.next.bytes();
        for (const auto* buffers : {&scratch, &packed, &corners})
            for (const Buffer<float>& one : *buffers) sum += one.bytes();
        return sum;
    }
};

// Fresh memory costs a millisecond of page faults, so every thread that calls keeps its workspace up to this size.
constexpr size_t kKeptBytes = size_t(256) << 20;

thread_local Workspace kept_workspace;

// The calling thread's workspace for one call.
class BorrowedWorkspace {
public:
    explicit BorrowedWorkspace(int threads) : lent_(kept_workspace) {
        const size_t workers = static_cast<size_t>(threads);
        if (lent_.scratch.size() >= workers) return;
        lent_.prepared.resize(workers);
        lent_.sorted.resize(workers);
        lent_.packed.resize(workers);
        lent_.corners.resize(workers);
        lent_.scratch.resize(workers);
    }
    ~BorrowedWorkspace() {
        if (lent_.bytes() > kKeptBytes) lent_ = Workspace();
    }
    BorrowedWorkspace(const BorrowedWorkspace&) = delete;
    BorrowedWorkspace& operator=(const BorrowedWorkspace&) = delete;
    Workspace* operator->() { return &lent_; }

private:
    Workspace& lent_;  // not kept_workspace by its name, which in a worker is the worker's own
};

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

// Prepares all triangles of one image on `threads` threads.
void prepare_triangles(const Kernels& isa, const Frame& frame, int triangles, int threads, PreparedTriangles& out) {
    const int pieces = pieces_of(triangles);
    Triangle* const prepared = out.triangles.at_least(triangles);
    Box* const boxes = out.boxes.at_least(triangles);
    int* const drawn = out.drawn.at_least(pieces);
    parallel_for(threads, pieces, [&](int piece, int) {
        const int first = piece * kPiece;
        drawn[piece] = isa.prepare(frame, first, std::min(first + kPiece, triangles), prepared + first, boxes + first);
    });
}

// --------------------------------------------------------------------------------------------- triangles into blocks

constexpr int kColumnShift = 2;  // blocks are 4 pixels wide
constexpr int kMostParts = 16;   // stretches of the triangles that are sorted side by side

// A rectangle of blocks, its ends exclusive.
struct Region {
    int first_row, end_row, first_column, end_column;
    int rows() const { return end_row - first_row; }
    int columns() const { return end_column - first_column; }
    int64_t blocks() const { return static_cast<int64_t>(rows()) * columns(); }
};

// One image's triangles on their way into blocks.
struct Sorting {
    const PreparedTriangles& prepared;
    int pieces, parts, row_shift;

    Sorting(const PreparedTriangles& prepared_, int triangles, int threads, int block_rows)
        : prepared(prepared_),
          pieces(pieces_of(triangles)),
          parts(std::max(std::min({threads, pieces, kMostParts}), 1)),
          row_shift(__builtin_ctz(block_rows)) {}

    // Calls body(blocks, i) for the triangles of a part that touch the region, with the blocks of it in their boxes.
    template <typename Body>
    void for_each_box(int part, const Region& region, const Body& body) const {
        const int end_piece = static_cast<int>(static_cast<int64_t>(pieces) * (part + 1) / parts);
        for (int piece = static_cast<int>(static_cast<int64_t>(pieces) * part / parts); piece < end_piece; ++piece) {
            const int first = piece * kPiece, end = first + prepared.drawn.get()[piece];
            for (int i = first; i < end; ++i) {
                const Box box = prepared.boxes.get()[i];
                const Region blocks = {std::max(box.top >> row_shift, region.first_row),
                                       std::min((box.bottom >> row_shift) + 1, region.end_row),
                                       std::max(box.left >> kColumnShift, region.first_column),
                                       std::min((box.right >> kColumnShift) + 1, region.end_column)};
                if (blocks.rows() > 0 && blocks.columns() > 0) body(blocks, i);
            }
        }
    }

    // Numbers that sort_into_blocks will store.
    int64_t size(const Region& region, int threads) const {
        int64_t sizes[kMostParts] = {};
        parallel_for(threads, parts, [&](int part, int) {
            int64_t size = region.blocks();
            for_each_box(part, region, [&](const Region& blocks, int) { size += blocks.blocks(); });
            sizes[part] = size;
        });
        return std::accumulate(sizes, sizes + parts, int64_t(0));
    }
};

// Sorts the prepared triangles into the blocks of a region: a counting sort, once to count and once to fill, in which
// every thread takes a part of the triangles. Lists stay in the order of the triangles.
Band sort_into_blocks(const Sorting& sorting, const Region& region, int threads, SortedTriangles& space) {
    const int parts = sorting.parts, columns = region.columns();
    const size_t blocks = static_cast<size_t>(region.blocks());
    const auto for_each_block = [&](int part, const auto& body) {
        sorting.for_each_box(part, region, [&](const Region& box, int i) {
            for (int row = box.first_row; row < box.end_row; ++row) {
                const int64_t row_start = static_cast<int64_t>(row - region.first_row) * columns - region.first_column;
                for (int column = box.first_column; column < box.end_column; ++column) body(row_start + column, i);
            }
        });
    };

    int32_t* const start = space.start.at_least(blocks + 1);
    int32_t* const next = space.next.at_least(parts * blocks);  // part by part
    parallel_for(threads, parts, [&](int part, int) {
        int32_t* const count = next + part * blocks;
        std::fill(count, count + blocks, 0);
        for_each_block(part, [&](int64_t block, int) { ++count[block]; });
    });
    int32_t filled = 0;  // has room for them: see kListBudget
    for (size_t block = 0; block < blocks; ++block) {
        start[block] = filled;
        for (int part = 0; part < parts; ++part) {
            int32_t& place = next[part * blocks + block];
            const int32_t count = place;
            place = filled;
            filled += count;
        }
    }
    start[blocks] = filled;
    int32_t* const list = space.list.at_least(static_cast<size_t>(filled) + 1);
    parallel_for(threads, parts, [&](int part, int) {
        int32_t* const place = next + part * blocks;
        for_each_block(part, [&](int64_t block, int i) { list[place[block]++] = i; });
    });
    return {region.first_row, region.end_row, region.first_row, region.first_column, columns, start, list,
            sorting.prepared.triangles.get()};
}

// A region whose lists would hold more numbers than this, or twice the number of triangles, is cut in two and sorted half
// by half: memory stays bounded however many triangles lie over one another.
constexpr int64_t kListBudget = 4 << 20;
std::atomic<int64_t> list_budget{kListBudget};

// Calls draw(band) for regions that cover `region`, each sorted on `threads` threads.
template <typename Draw>
void for_each_sorted(const Sorting& sorting, const Region& region, int64_t budget, int threads, SortedTriangles& space,
                     const Draw& draw) {
    if (region.blocks() == 1 || sorting.size(region, threads) <= budget)
        return draw(sort_into_blocks(sorting, region, threads, space));
    Region one = region, other = region;
    if (region.rows() >= region.columns()) one.end_row = other.first_row = region.first_row + region.rows() / 2;
    else one.end_column = other.first_column = region.first_column + region.columns() / 2;
    for_each_sorted(sorting, one, budget, threads, space, draw);
    for_each_sorted(sorting, other, budget, threads, space, draw);
}

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
    const auto for_each_region = [&](const Frame& frame, int threads_here, int worker, const auto& body) {
        PreparedTriangles& prepared = workspace->prepared[worker];
        prepare_triangles(isa, frame, meshes.triangles, threads_here, prepared);
        const Sorting sorting(prepared, meshes.triangles, threads_here, isa.block_rows);
        for_each_sorted(sorting, whole, budget, threads_here, workspace->sorted[worker], body);
    };
    if (meshes.images >= threads) {
        parallel_for(threads, meshes.images, [&](int image, int worker) {
            const Frame frame = frame_of(meshes, settings, image, soft);
            for_each_region(frame, 1, worker,
                            [&](const Band& band) { draw(image, frame, band, scratch_of(worker)); });
        });
        return;
    }
    for (int image = 0; image < meshes.images; ++image) {
        const Frame frame = frame_of(meshes, settings, image, soft);
        for_each_region(frame, threads, 0, [&](const Band& region) {
            const int rows = region.end_row - region.first_row;
            const int bands = std::min(rows, 32 * threads);  // many, as objects fill the middle
            parallel_for(threads, bands, [&](int index, int worker) {
                Band band = region;
                band.first_row += static_cast<int>(static_cast<int64_t>(rows) * index / bands);
                band.end_row = region.first_row + static_cast<int>(static_cast<int64_t>(rows) * (index + 1) / bands);
                draw(image, frame, band, scratch_of(worker));
            });
        });
    }
}

void clear_gradients(const SoftGradients& of_image, int channels, int low, int high) {
    const int64_t count = high - low;
    std::memset(of_image.positions_grad + int64_t(3) * low, 0, sizeof(float) * 3 * count);
    std::memset(of_image.attributes_grad + int64_t(channels) * low, 0, sizeof(float) * channels * count);
}

// Adds the gradients of the triangles [first, end) to those of the vertices [low, high) among their corners: in the order
// of the triangles, whatever the range.
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
    if (meshes.images >= threads) {
        parallel_for(threads, meshes.images, [&](int image, int worker) {
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
        parallel_for(threads, threads, [&](int part, int) {
            isa.pack_rows(frame, static_cast<int>(int64_t(rows) * part / threads),
                          static_cast<int>(int64_t(rows) * (part + 1) / threads), one, pixels);
        });
        parallel_for(threads, pieces_of(meshes.triangles), [&](int piece, int worker) {
            const int first = piece * kPiece, end = std::min(first + kPiece, meshes.triangles);
            isa.backward(frame, first, end, pixels, corners + first * corner_size, scratch_of(worker));
        });
        parallel_for(threads, threads, [&](int part, int) {
            const int64_t v = meshes.vertices;
            const int low = static_cast<int>(v * part / threads), high = static_cast<int>(v * (part + 1) / threads);
            clear_gradients(one, meshes.channels, low, high);  // where they are needed: fresh memory costs its first touch
            scatter(frame, 0, meshes.triangles, low, high, corners, one.positions_grad, one.attributes_grad);
        });
    }
}

int64_t count_pairs(const Meshes& meshes, const Settings& settings) {
    const Kernels& isa = kernels();
    int64_t pairs = 0;
    for (int image = 0; image < meshes.images; ++image)
        pairs += isa.count_pairs(frame_of(meshes, settings, image, true), 0, meshes.triangles);
    return pairs;
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
