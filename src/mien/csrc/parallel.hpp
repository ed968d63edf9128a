// Work is done by torch's own OpenMP threads where they are known, else by threads that live for one call. Torch's wait
// for their next task in a loop: threads of our own beside them would get half a core each. After a fork only the
// forking thread is left, and OpenMP does not notice: the child starts threads of its own. Starting one takes some
// 20 µs, which is why work is handed out in few and large tasks.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
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

// libgomp's entry for a parallel region: calls function(data) on each thread of a team of at most `threads`.
using GompParallel = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

inline long process_id() {
#if defined(__unix__) || defined(__APPLE__)
    return static_cast<long>(getpid());
#else
    return 0;
#endif
}

// Torch's OpenMP and the process that it lives in; set once, before the first call.
struct OpenMp {
    GompParallel parallel = nullptr;
    long process = 0;
};

inline OpenMp& openmp() {
    static OpenMp instance;
    return instance;
}

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
    const OpenMp& team = openmp();
    if (team.parallel && team.process == process_id() && threads > 1 && tasks > 1) {
        struct Region {
            const decltype(work)& run;
            std::atomic<int> workers;
        } region{work, {0}};
        const auto enter = [](void* data) {
            Region& own = *static_cast<Region*>(data);
            own.run(own.workers.fetch_add(1));
        };
        team.parallel(enter, &region, static_cast<unsigned>(std::min(threads, tasks)), 0);
        if (failure) std::rethrow_exception(failure);
        return;
    }
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
