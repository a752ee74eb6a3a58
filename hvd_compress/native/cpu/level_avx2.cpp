#include <cmath>
#include <type_traits>
#include <utility>

#include "dispatch.hpp"

#ifdef HVD_X86
#include <immintrin.h>

#pragma GCC target("avx2,f16c,bmi,bmi2,lzcnt,popcnt")
#define HVD_LEVEL 2
#define HVD_NAME "avx2"
#define HVD_TABLE AVX2
#include "level.inc"
#endif
