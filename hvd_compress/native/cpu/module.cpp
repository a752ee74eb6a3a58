// The Python module. HVD_COMPRESS_SIMD chooses the level of SIMD that it begins with.
#include <cstdlib>

#include "bind.hpp"
#include "dispatch.hpp"

PYBIND11_MODULE(_kernels, m) {
    m.doc() = "Compiled kernels; see hvd_compress/native/kernels.py.";
    const char* level = std::getenv("HVD_COMPRESS_SIMD");
    try {
        hvd::set_simd(level && *level ? level : hvd::simd_levels().back());
    } catch (const std::invalid_argument& error) {
        throw py::import_error(std::string("HVD_COMPRESS_SIMD: ") + error.what());
    }
    hvd::bind_process(m);
    hvd::bind_elementwise(m);
    hvd::bind_reduce(m);
    hvd::bind_quantize(m);
    hvd::bind_select(m);
    hvd::bind_scatter(m);
    hvd::bind_lowrank(m);
    hvd::bind_sketch(m);
    hvd::bind_random(m);
    hvd::bind_pack(m);
    hvd::bind_bitmap(m);
    hvd::bind_index_code(m);
}
