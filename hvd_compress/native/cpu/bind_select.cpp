#include <algorithm>

#include "bind.hpp"
#include "select.hpp"

namespace hvd {

void bind_select(py::module_& m) {
    m.def(
        "top_k",
        [](const py::array& vector, int64_t count) {
            const auto x = in<float>(vector, "vector");
            require_count(count);
            return selected(x.size, [&](Selection& selection) {
                select_top(Vector(x.data, x.size), std::min(count, x.size), selection);
            });
        },
        array("vector"), py::arg("count")
    );
    m.def(
        "top_k_each",
        [](const py::array& vector, const std::vector<py::slice>& places, const std::vector<int64_t>& counts) {
            const auto x = in<float>(vector, "vector");
            if (places.size() != counts.size()) throw std::invalid_argument("places and counts must be as many");
            struct Part {
                int64_t begin, size, count;
            };
            std::vector<Part> parts;
            int64_t total = 0;
            for (std::size_t i = 0; i < places.size(); ++i) {
                py::ssize_t begin = 0, end = 0, step = 0, size = 0;
                require_count(counts[i]);
                if (!places[i].compute(x.size, &begin, &end, &step, &size)) throw py::error_already_set();
                if (step != 1) throw std::invalid_argument("places must be of step 1");
                parts.push_back({begin, size, std::min<int64_t>(counts[i], size)});
                total += parts.back().count;
            }
            return filled<int64_t>(total, [&](int64_t* out) {
                for (const Part& part : parts) {
                    Selection selection(part.size);
                    select_top(Vector(x.data + part.begin, part.size), part.count, selection);
                    Positions(selection.bits()).write(out);
                    for (int64_t i = 0; i < part.count; ++i) out[i] += part.begin;
                    out += part.count;
                }
            });
        },
        array("vector"), py::arg("places"), py::arg("counts")
    );
    m.def(
        "above",
        [](const py::array& vector, float threshold) {
            const auto x = in<float>(vector, "vector");
            return selected(x.size, [&](Selection& selection) { select_above(x.data, x.size, threshold, selection); });
        },
        array("vector"), py::arg("threshold")
    );
    m.def(
        "draw",
        [](const py::array& vector, float scale, const Words& stream) {
            const auto x = in<float>(vector, "vector");
            return selected(x.size, [&](Selection& selection) {
                draw(x.data, x.size, scale, stream.first, stream.second, selection);
            });
        },
        array("vector"), py::arg("scale"), py::arg("stream")
    );
}

}  // namespace hvd
