// Threads that live for one call: safe under fork, nothing to configure, and nobody else's pool to collide with.
// Starting one takes some 20 µs, which is why work is handed out in few and large tasks.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace mien {

// Weights far behind the nearest surface are denormal numbers, on which x86 is a hundred times slower; nobody can see
// them, so they count as zero while this object lives.
class FlushDenormals {
public:
#if defined(__SSE2__)
    FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }  // flush to zero, denormals are zero
    ~FlushDenormals() { _mm_setcsr(saved_); }

private:
    unsigned saved_;
#endif
};

// Calls body(task, worker) once for every task in [0, tasks), on up to `threads` threads, the caller's among them.
// Tasks start in order. The first exception ends the loop and is thrown again here.
template <typename Body>
void parallel_for(int threads, int tasks, const Body& body) {
    std::atomic<int> next{0};
    std::exception_ptr failure;
    std::mutex failure_lock;
    const auto work = [&](int worker) {
        [[maybe_unused]] const FlushDenormals guard;  // empty where denormals cost nothing
        try {
            for (int task; (task = next.fetch_add(1)) < tasks;) body(task, worker);
        } catch (...) {
            next.store(tasks);
            const std::lock_guard<std::mutex> hold(failure_lock);
            if (!failure) failure = std::current_exception();
        }
    };
    std::vector<std::thread> others;
    others.reserve(std::max(std::min(threads, tasks) - 1, 0));  // from here on nothing throws but a thread's start
    for (int worker = 1; worker < threads && worker < tasks; ++worker) {
        try {
            others.emplace_back(work, worker);
        } catch (const std::system_error&) {
            break;  // the machine gives no more threads: those there are do the work
        }
    }
    work(0);
    for (std::thread& other : others) other.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace mien
