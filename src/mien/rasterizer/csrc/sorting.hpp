// Sorts prepared triangles into blocks of pixels, on several threads, with bounded memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>

#include "kernels.hpp"
#include "parallel.hpp"
#include "workspace.hpp"

namespace mien {
namespace {

constexpr int kColumnShift = 2;  // blocks are 4 pixels wide
constexpr int kMostParts = 16;   // maximum number of parts of the triangles that are sorted in parallel

// A rectangle of blocks, its ends exclusive.
struct Region {
    int first_row, end_row, first_column, end_column;
    int rows() const { return end_row - first_row; }
    int columns() const { return end_column - first_column; }
    int64_t blocks() const { return static_cast<int64_t>(rows()) * columns(); }
};

// Sorts the triangles of one image into blocks.
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
};

// Counts the triangles that touch each block of a region, part by part; returns how many numbers sort_into_blocks stores.
int64_t count_blocks(const Sorting& sorting, const Region& region, Team& team, SortedTriangles& space) {
    const int64_t blocks = region.blocks(), columns = region.columns();
    int32_t* const counts = space.next.at_least(sorting.parts * blocks);
    int64_t sizes[kMostParts] = {};
    team.parallel_for(sorting.parts, [&](int part, int) {
        int32_t* const count = counts + part * blocks;
        std::fill(count, count + blocks, 0);
        int64_t size = blocks;
        sorting.for_each_box(part, region, [&](const Region& touched, int) {
            size += touched.blocks();
            for (int row = touched.first_row; row < touched.end_row; ++row) {
                int32_t* const of_row = count + (row - region.first_row) * columns - region.first_column;
                for (int column = touched.first_column; column < touched.end_column; ++column) ++of_row[column];
            }
        });
        sizes[part] = size;
    });
    return std::accumulate(sizes, sizes + sorting.parts, int64_t(0));
}

// Sorts the prepared triangles into the blocks of a region after count_blocks: a counting sort, in which every thread takes
// a part of the triangles. Lists stay in the order of the triangles.
Band sort_into_blocks(const Sorting& sorting, const Region& region, Team& team, SortedTriangles& space) {
    const int parts = sorting.parts, columns = region.columns();
    const size_t blocks = static_cast<size_t>(region.blocks());
    int32_t* const start = space.start.at_least(blocks + 1);
    int32_t* const next = space.next.get();
    int32_t filled = 0;  // cannot overflow: see kListBudget
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
    team.parallel_for(parts, [&](int part, int) {
        int32_t* const place = next + part * blocks;
        sorting.for_each_box(part, region, [&](const Region& touched, int i) {
            for (int row = touched.first_row; row < touched.end_row; ++row) {
                int32_t* const of_row = place + static_cast<int64_t>(row - region.first_row) * columns - region.first_column;
                for (int column = touched.first_column; column < touched.end_column; ++column) list[of_row[column]++] = i;
            }
        });
    });
    return {region.first_row, region.end_row, region.first_row, region.first_column, columns, start, list,
            sorting.prepared.triangles.get()};
}

// A region whose lists would hold more numbers than this and than twice the number of triangles is divided into halves,
// which are sorted one after the other: memory stays bounded for any number of triangles per pixel.
constexpr int64_t kListBudget = 4 << 20;
std::atomic<int64_t> list_budget{kListBudget};

// Calls draw(band) for regions that cover `region`, each sorted by the team.
template <typename Draw>
void for_each_sorted(const Sorting& sorting, const Region& region, int64_t budget, Team& team, SortedTriangles& space,
                     const Draw& draw) {
    const bool fits = sorting.parts * region.blocks() <= budget && count_blocks(sorting, region, team, space) <= budget;
    if (fits || region.blocks() == 1) {
        if (!fits) count_blocks(sorting, region, team, space);
        return draw(sort_into_blocks(sorting, region, team, space));
    }
    Region one = region, other = region;
    if (region.rows() >= region.columns()) one.end_row = other.first_row = region.first_row + region.rows() / 2;
    else one.end_column = other.first_column = region.first_column + region.columns() / 2;
    for_each_sorted(sorting, one, budget, team, space, draw);
    for_each_sorted(sorting, other, budget, team, space, draw);
}

}  // namespace
}  // namespace mien
