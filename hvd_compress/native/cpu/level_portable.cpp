#include <cmath>
#include <type_traits>
#include <utility>

#include "dispatch.hpp"

#define HVD_LEVEL 1
#define HVD_NAME "portable"
#define HVD_TABLE PORTABLE
#include "level.inc"
