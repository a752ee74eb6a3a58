#include "dispatch.hpp"

#include <atomic>

namespace hvd {

// Each in a file of its own, which includes level.inc.
extern const Loops PORTABLE;
#ifdef HVD_X86
extern const Loops AVX2;
extern const Loops AVX512;
#endif

namespace {

std::atomic<const Loops*> chosen{nullptr};

std::vector<const Loops*> available() {
    std::vector<const Loops*> levels{&PORTABLE};
#ifdef HVD_X86
    // Every processor with AVX2 has F16C.
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
        __builtin_cpu_supports("popcnt")) {
        levels.push_back(&AVX2);
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
            levels.push_back(&AVX512);
        }
    }
#endif
    return levels;
}

}  // namespace

const Loops& loops() { return *chosen.load(std::memory_order_relaxed); }

std::vector<std::string> simd_levels() {
    std::vector<std::string> names;
    for (const Loops* level : available()) names.emplace_back(level->name);
    return names;
}

void set_simd(const std::string& level) {
    for (const Loops* candidate : available()) {
        if (level == candidate->name) return chosen.store(candidate);
    }
    throw std::invalid_argument("no such level of SIMD on this processor: " + level);
}

}  // namespace hvd
