// What the bind_*.cpp share: they check the arrays that come in, make those that go out, and release the GIL in
// between. A wrong dtype raises TypeError, everything else ValueError. native/kernels.py documents the functions.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "bitmap.hpp"
#include "groups.hpp"
#include "memory.hpp"

namespace py = pybind11;

namespace hvd {

// Each registers the functions of one topic.
void bind_bitmap(py::module_& m);
void bind_elementwise(py::module_& m);
void bind_index_code(py::module_& m);
void bind_lowrank(py::module_& m);
void bind_pack(py::module_& m);
void bind_process(py::module_& m);
void bind_quantize(py::module_& m);
void bind_random(py::module_& m);
void bind_reduce(py::module_& m);
void bind_scatter(py::module_& m);
void bind_select(py::module_& m);
void bind_sketch(py::module_& m);

// --- arguments

// An array argument that is never converted: a hidden copy would cost time, and what a kernel writes to it be lost.
inline py::arg array(const char* name) {
    py::arg argument(name);
    argument.noconvert();
    return argument;
}

using Words = std::pair<uint32_t, uint32_t>;  // of a stream

template <class T>
struct Span {
    T* data;
    int64_t size;
};

template <class T>
void check(const py::array& array, const char* name) {
    if (!array.dtype().equal(py::dtype::of<T>())) {
        throw py::type_error(
            std::string(name) + " must be of dtype " + std::string(py::str(py::dtype::of<T>())) + ", not " +
            std::string(py::str(array.dtype()))
        );
    }
    const int flags = array.flags();
    if (array.ndim() != 1 || !(flags & py::array::c_style) || !(flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) {
        throw py::value_error(std::string(name) + " must be one-dimensional, contiguous and aligned");
    }
}

template <class T>
Span<const T> in(const py::array& array, const char* name) {
    check<T>(array, name);
    return {static_cast<const T*>(array.data()), array.size()};
}

template <class T>
Span<T> inout(py::array& array, const char* name) {
    check<T>(array, name);
    if (!array.writeable()) throw py::value_error(std::string(name) + " must be writable");
    return {static_cast<T*>(array.mutable_data()), array.size()};
}

// A vector of the given size, or null for None.
template <class T>
const T* optional_in(const py::object& array, int64_t size, const char* name) {
    if (array.is_none()) return nullptr;
    const auto found = in<T>(array.cast<py::array>(), name);
    require(found.size == size, "vectors must be of one length");
    return found.data;
}

inline void require_count(int64_t count) {
    require(0 <= count && count <= int64_t{1} << 40, "a count or size must be in 0 to 2^40");
}

using Division = std::variant<int64_t, std::vector<int64_t>>;  // the size of blocks, or the lengths of all groups

inline Groups groups_of(const Division& division, int64_t size) {
    if (std::holds_alternative<int64_t>(division)) {
        const int64_t block = std::get<int64_t>(division);
        require(1 <= block && block < int64_t{1} << 40, "a block must be in 1 to 2^40 - 1");
        return {size, block, {}};
    }
    Groups groups{size, 0, {}};
    int64_t end = 0;
    for (const int64_t length : std::get<std::vector<int64_t>>(division)) {
        require(0 <= length && length <= size - end, "the groups' lengths must add up to the vector's");
        groups.ends.push_back(end += length);
    }
    require(end == size, "the groups' lengths must add up to the vector's");
    return groups;
}

// --- results

// A new array, not initialized. The memory of a large one is kept for reuse once it is freed.
template <class T>
py::array_t<T> make(int64_t size) {
    const auto bytes = static_cast<std::size_t>(size) * sizeof(T);
    if (bytes < LARGE) return py::array_t<T>(size);
    struct Block {
        void* data;
        std::size_t bytes;
    };
    auto block = std::make_unique<Block>(Block{acquire(bytes), bytes});
    const py::capsule owner(block.get(), [](void* pointer) {
        const std::unique_ptr<Block> freed(static_cast<Block*>(pointer));
        release(freed->data, freed->bytes);
    });
    T* data = static_cast<T*>(block.release()->data);
    return py::array_t<T>(size, data, owner);
}

template <class F>
auto unlocked(F f) {
    const py::gil_scoped_release release;
    return f();
}

// A new array that f(data) fills, without the GIL.
template <class T, class F>
py::array_t<T> filled(int64_t size, F f) {
    auto result = make<T>(size);
    T* data = result.mutable_data();
    unlocked([&] { f(data); });
    return result;
}

inline py::array_t<int64_t> positions_of(const Bits& bits) {
    const auto positions = unlocked([&] { return Positions(bits); });
    return filled<int64_t>(positions.count(), [&](int64_t* out) { positions.write(out); });
}

// The positions that f(selection) selects of `size` coordinates, without the GIL.
template <class F>
py::array_t<int64_t> selected(int64_t size, F f) {
    Selection selection(size);
    unlocked([&] { f(selection); });
    return positions_of(selection.bits());
}

}  // namespace hvd
