#include "parallel.hpp"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

namespace hvd {
namespace {

constexpr int MOST_THREADS = 16;  // enough to saturate any memory

int default_threads() {
    const char* wanted = std::getenv("OMP_NUM_THREADS");
    if (wanted && std::atoi(wanted) >= 1) return std::atoi(wanted);
    cpu_set_t cores;
    const int count = sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
    return std::clamp(count, 1, MOST_THREADS);
}

std::atomic<int> thread_count{default_threads()};

// Set in a child process, which does not inherit the helper threads.
std::atomic<bool> forked{false};
[[maybe_unused]] const int watch_forks = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

// Runs one job at a time; the caller and the helpers take its parts one after the other.
class Pool {
public:
    bool run(int count, void (*call)(void*, int), void* context) {
        std::unique_lock<std::mutex> lock(mutex_);
        if (busy_) return false;  // with another caller's job
        busy_ = true;
        const int helpers = std::min(count, threads()) - 1;
        start_helpers(helpers);
        leave_core();
        call_ = call;
        context_ = context;
        next_ = 0;
        count_ = count;
        for (int i = 0; i < helpers; ++i) wake_.notify_one();
        while (next_ < count_) take_part(lock);
        // Wait only for helpers that have taken a part: one that wakes up later finds none left.
        done_.wait(lock, [&] { return running_ == 0; });
        busy_ = false;
        return true;
    }

private:
    void take_part(std::unique_lock<std::mutex>& lock) {
        const int part = next_++;
        ++running_;
        lock.unlock();
        call_(context_, part);
        lock.lock();
        if (--running_ == 0) done_.notify_one();
    }

    void start_helpers(int wanted) {
        sigset_t all, before;  // blocked in helpers: Python's main thread handles signals
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        try {
            while (static_cast<int>(helpers_.size()) < wanted) {
                std::thread helper([this] { help(); });
                helpers_.push_back(helper.native_handle());
                helper.detach();
                core_ = -1;
            }
        } catch (const std::system_error&) {  // go on with fewer
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    // Keeps helpers off the caller's core: a scheduler may wake them there, where they would wait for the caller.
    void leave_core() {
        const int core = sched_getcpu();
        cpu_set_t cores;
        if (core < 0 || core == core_ || sched_getaffinity(0, sizeof cores, &cores) != 0) return;
        core_ = core;
        if (CPU_COUNT(&cores) > 1) CPU_CLR(core, &cores);
        for (const pthread_t helper : helpers_) pthread_setaffinity_np(helper, sizeof cores, &cores);
    }

    void help() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return next_ < count_; });
            take_part(lock);
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;
    bool busy_ = false;
    std::vector<pthread_t> helpers_;
    int core_ = -1;  // the caller's, which helpers keep off
    int next_ = 0, count_ = 0, running_ = 0;
    void (*call_)(void*, int) = nullptr;
    void* context_ = nullptr;
};

}  // namespace

int threads() { return forked ? 1 : thread_count.load(std::memory_order_relaxed); }

void set_threads(int count) {
    if (count < 1) throw std::invalid_argument("threads must be at least 1");
    thread_count.store(count);
}

void run_parts(int count, void (*call)(void*, int), void* context) {
    static Pool& pool = *new Pool;  // never destroyed: the helpers wait in it until the process ends
    if (count > 1 && threads() > 1 && pool.run(count, call, context)) return;
    for (int part = 0; part < count; ++part) call(context, part);
}

int parts_of(int64_t n) {
    // Several for each thread, so that one that has to share its core (with a thread that spins, say) takes fewer.
    return threads() == 1 ? 1 : static_cast<int>(std::clamp<int64_t>(n / ENOUGH, 1, 8 * threads()));
}

}  // namespace hvd
