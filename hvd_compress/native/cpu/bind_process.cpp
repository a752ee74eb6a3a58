#include <cfenv>
#include <cstring>
#include <optional>

#include "bind.hpp"
#include "dispatch.hpp"
#include "parallel.hpp"

namespace hvd {
namespace {

py::bytes float_environment(const std::optional<std::string>& to) {
    std::fenv_t before, after;
    require(!to || to->size() == sizeof after, "this is no environment that was returned before");
    std::fegetenv(&before);
    if (to) std::memcpy(&after, to->data(), sizeof after);
    std::fesetenv(to ? &after : FE_DFL_ENV);
    return py::bytes(reinterpret_cast<const char*>(&before), sizeof before);
}

}  // namespace

void bind_process(py::module_& m) {
    m.def("simd_levels", simd_levels);
    m.def("simd", [] { return loops().name; });
    m.def("set_simd", set_simd, py::arg("level"));
    m.def("threads", threads);
    m.def("set_threads", set_threads, py::arg("count"));
    m.def("float_environment", float_environment, py::arg("to").none(true));
}

}  // namespace hvd
