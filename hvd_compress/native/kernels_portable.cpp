#include "kernels.hpp"

#define HVD_LEVEL 1
#define HVD_NAME "portable"
#define HVD_TABLE PORTABLE
#include "kernels.inc"
