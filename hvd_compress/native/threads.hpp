// The threads that kernels divide their work among. They sleep while they wait: OpenMP's spin, which costs its users
// many times the work itself where several ranks share the cores.
#pragma once

namespace hvd {

int threads();  // the most that a kernel uses
void set_threads(int count);

// Calls call(context, part) for part 0 to count - 1, which must not throw, in this thread and in others that are free.
void run_parts(int count, void (*call)(void*, int), void* context);

template <class F>
void for_parts(int count, F f) {
    run_parts(count, [](void* context, int part) { (*static_cast<F*>(context))(part); }, &f);
}

}  // namespace hvd
