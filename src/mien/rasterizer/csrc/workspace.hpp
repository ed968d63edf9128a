// The working memory of the driver, kept from call to call.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "kernels.hpp"

namespace mien {
namespace {

struct FreeAligned {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};

// Memory that grows and is not initialised: std::vector would write every byte once more.
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

// Number of triangles that are prepared together, each piece into its own part of the memory; large enough for a task.
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

// Fresh memory costs a millisecond of page faults, so every calling thread keeps its workspace up to this size.
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
    Workspace& lent_;  // a reference, because the name kept_workspace means another object in a worker thread
};

}  // namespace
}  // namespace mien
