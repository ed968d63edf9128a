// One call of the driver is one team of threads, which runs several loops one after another. The threads are torch's own
// OpenMP threads if these are known, else threads that exist during the call only. Torch's threads wait for their next task
// in a busy loop, so that additional threads would get half a core each. After a fork only the forking thread exists, and
// OpenMP does not notice; the child process starts its own threads.
//
// Between loops the caller waits for tasks that have begun, not for threads: on a busy machine, a helper thread that the
// system does not schedule causes no delay before the end of the call.
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

// Weights far behind the nearest surface are denormal numbers, on which x86 is a hundred times slower. They are not visible,
// so they count as zero while this object exists.
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

// The OpenMP of torch and its process; set once, before the first call.
struct OpenMp {
    GompParallel parallel = nullptr;
    long process = 0;
};

inline OpenMp& openmp() {
    static OpenMp instance;
    return instance;
}

class Team {
public:
    // Calls drive(team) on this thread, beside up to threads - 1 helpers. Exceptions arrive here.
    template <typename Drive>
    static void run(int threads, const Drive& drive) {
        Team team(std::max(threads, 1));
        const OpenMp& shared = openmp();
        if (threads > 1 && shared.parallel && shared.process == process_id()) {
            struct Region {
                Team& team;
                const Drive& drive;
            } region{team, drive};
            const auto enter = [](void* data) {
                Region& own = *static_cast<Region*>(data);
                if (std::this_thread::get_id() == own.team.caller_) own.team.lead(own.drive);
                else own.team.help();
            };
            shared.parallel(enter, &region, static_cast<unsigned>(threads), 0);
        } else {
            std::vector<std::thread> helpers;
            helpers.reserve(team.threads_ - 1);
            for (int i = 1; i < threads; ++i) {
                try {
                    helpers.emplace_back([&team] { team.help(); });
                } catch (const std::system_error&) {
                    break;  // the system gives no more threads: continue with those that exist
                }
            }
            team.lead(drive);
            for (std::thread& helper : helpers) helper.join();
        }
        if (team.failure_) std::rethrow_exception(team.failure_);
    }

    // A team of the calling thread alone.
    Team() : Team(1) {}
    ~Team() {
        for (Loop* loop = first_.following.load(); loop;) {
            Loop* const following = loop->following.load();
            delete loop;
            loop = following;
        }
    }
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int threads() const { return threads_; }

    // Calls body(task, worker) once for every task in [0, tasks); workers are below threads(). Tasks start in order. For
    // the thread that leads. The first exception ends the loop and is thrown again here.
    template <typename Body>
    void parallel_for(int tasks, const Body& body) {
        if (threads_ == 1 || tasks <= 1) {
            for (int task = 0; task < tasks; ++task) body(task, 0);
            return;
        }
        Loop* const loop = new Loop;
        loop->run = [](const void* of, int task, int worker) { (*static_cast<const Body*>(of))(task, worker); };
        loop->body = &body;
        loop->tasks = tasks;
        last_->following.store(loop, std::memory_order_release);
        last_ = loop;
        work_on(*loop, 0);
        for (int turn = 0; loop->done.load(std::memory_order_acquire) < tasks; ++turn) pause(turn);
        if (failed_.load()) std::rethrow_exception(failure_);
    }

private:
    // Late helpers still walk through finished loops, so loops exist as long as their team.
    struct Loop {
        void (*run)(const void* body, int task, int worker) = nullptr;
        const void* body = nullptr;
        int tasks = 0;
        std::atomic<int> next{0}, done{0};
        std::atomic<Loop*> following{nullptr};
    };

    explicit Team(int threads) : threads_(threads), caller_(std::this_thread::get_id()) {}
    template <typename Drive>
    void lead(const Drive& drive) {
        [[maybe_unused]] const FlushDenormals guard;  // empty where denormals cost nothing
        try {
            drive(*this);
        } catch (...) {
            keep_failure();
        }
        finished_.store(true, std::memory_order_release);
    }

    void help() {
        [[maybe_unused]] const FlushDenormals guard;
        const int worker = workers_.fetch_add(1);
        for (Loop* loop = &first_;;) {
            Loop* following = nullptr;
            for (int turn = 0; !(following = loop->following.load(std::memory_order_acquire)); ++turn) {
                if (finished_.load(std::memory_order_acquire)) return;
                pause(turn);
            }
            loop = following;
            work_on(*loop, worker);
        }
    }

    void work_on(Loop& loop, int worker) {
        for (int task; (task = loop.next.fetch_add(1)) < loop.tasks;) {
            if (!failed_.load()) {
                try {
                    loop.run(loop.body, task, worker);
                } catch (...) {
                    keep_failure();
                }
            }
            loop.done.fetch_add(1, std::memory_order_acq_rel);
        }
    }

    void keep_failure() {
        const std::lock_guard<std::mutex> hold(failure_lock_);
        if (!failure_) failure_ = std::current_exception();
        failed_.store(true);
    }

    // Waits briefly; after many turns it yields the core to other threads.
    static void pause(int turn) {
        if (turn > 1000) return std::this_thread::yield();
#if defined(__SSE2__)
        _mm_pause();
#endif
    }

    const int threads_;
    const std::thread::id caller_;
    Loop first_;  // without tasks
    Loop* last_ = &first_;
    std::atomic<int> workers_{1};
    std::atomic<bool> finished_{false}, failed_{false};
    std::exception_ptr failure_;
    std::mutex failure_lock_;
};

}  // namespace mien
