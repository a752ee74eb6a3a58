#include <cmath>
#include <type_traits>
#include <utility>

#include "dispatch.hpp"

#ifdef HVD_X86
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,f16c,bmi,bmi2,lzcnt,popcnt,prefer-vector-width=512")
#define HVD_LEVEL 3
#define HVD_NAME "avx512"
#define HVD_TABLE AVX512
#include "level.inc"
#endif
