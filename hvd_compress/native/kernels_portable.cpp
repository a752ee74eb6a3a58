#include "kernels.hpp"

#include <cmath>
#include <type_traits>

#define HVD_LEVEL 1
#define HVD_NAME "portable"
#define HVD_TABLE PORTABLE
#include "kernels.inc"
