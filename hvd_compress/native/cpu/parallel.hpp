// Threads, and how work is divided among them. They sleep while they wait: OpenMP's threads spin, which takes the cores
// from other ranks on the same machine.
#pragma once

#include <algorithm>
#include <cstdint>

namespace hvd {

int threads();  // the most that a kernel uses
void set_threads(int count);

// Calls call(context, part) for part 0 to count - 1, which must not throw, in this thread and in others that are free.
void run_parts(int count, void (*call)(void*, int), void* context);

template <class F>
void for_parts(int count, F f) {
    run_parts(count, [](void* context, int part) { (*static_cast<F*>(context))(part); }, &f);
}

constexpr int64_t ENOUGH = 1 << 16;  // elements that make it worth waking a thread

int parts_of(int64_t n);  // into which to divide n elements

// Where part `part` of `count` begins: a multiple of `unit`, or n.
inline int64_t begin_of(int part, int count, int64_t n, int64_t unit) {
    const int64_t units = (n + unit - 1) / unit;
    return std::min(n, units / count * part * unit + std::min<int64_t>(part, units % count) * unit);
}

// Divides [0, n) into parts that begin at multiples of `unit` and calls f(begin, end) for each.
template <class F>
void for_ranges(int64_t n, int64_t unit, F f) {
    const int parts = parts_of(n);
    for_parts(parts, [&](int part) {
        const int64_t begin = begin_of(part, parts, n, unit), end = begin_of(part + 1, parts, n, unit);
        if (begin < end) f(begin, end);
    });
}

}  // namespace hvd
