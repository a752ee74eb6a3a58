// The inner loops of all topics, compiled once for each level of SIMD, and the choice of a level. All levels give the
// same bits.
#pragma once

#include <string>
#include <vector>

#include "bitmap.hpp"
#include "elementwise.hpp"
#include "lowrank.hpp"
#include "pack.hpp"
#include "quantize.hpp"
#include "random.hpp"
#include "reduce.hpp"
#include "select.hpp"
#include "sketch.hpp"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HVD_X86  // and a compiler that takes `#pragma GCC target`
#endif

namespace hvd {

struct Loops {
    const char* name;  // of the level
    const BitmapLoops& bitmap;
    const ElementwiseLoops& elementwise;
    const LowrankLoops& lowrank;
    const PackLoops& pack;
    const QuantizeLoops& quantize;
    const RandomLoops& random;
    const ReduceLoops& reduce;
    const SelectLoops& select;
    const SketchLoops& sketch;
};

const Loops& loops();  // of the level in use

std::vector<std::string> simd_levels();  // those that this processor has, the best one last
void set_simd(const std::string& level);

}  // namespace hvd
