// The Python module: it checks the arrays that come in, makes those that go out, and releases the GIL in between.
// `_kernels.pyi` documents the functions.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cfenv>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <variant>

#include "algorithms.hpp"
#include "invertible.hpp"
#include "quantize.hpp"
#include "sketch.hpp"

namespace py = pybind11;

namespace {

using Words = std::pair<uint32_t, uint32_t>;

template <class T>
struct Span {
    T* data;
    int64_t size;
};

template <class T>
void check(const py::array& array, const char* name) {
    if (!array.dtype().equal(py::dtype::of<T>())) {
        throw py::type_error(std::string(name) + " must be of dtype " + std::string(py::str(py::dtype::of<T>())) +
                             ", not " + std::string(py::str(array.dtype())));
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

void require(bool sound, const char* message) {
    if (!sound) throw py::value_error(message);
}

py::bytes float_environment(const std::optional<std::string>& to) {
    std::fenv_t before, after;
    require(!to || to->size() == sizeof after, "this is no environment that was returned before");
    std::fegetenv(&before);
    if (to) std::memcpy(&after, to->data(), sizeof after);
    std::fesetenv(to ? &after : FE_DFL_ENV);
    return py::bytes(reinterpret_cast<const char*>(&before), sizeof before);
}

void require_count(int64_t count) {
    require(0 <= count && count <= int64_t{1} << 40, "a count or size must be in 0 to 2^40");
}

void require_bits(int bits) { require(0 <= bits && bits <= 30, "bits must be in 0 to 30"); }

// A new array with any content; a large one gives its memory back to be used again.
template <class T>
py::array_t<T> make(int64_t size) {
    const auto bytes = static_cast<std::size_t>(size) * sizeof(T);
    if (bytes < hvd::LARGE) return py::array_t<T>(size);
    struct Block {
        void* data;
        std::size_t bytes;
    };
    auto block = std::make_unique<Block>(Block{hvd::acquire(bytes), bytes});
    const py::capsule owner(block.get(), [](void* pointer) {
        const std::unique_ptr<Block> freed(static_cast<Block*>(pointer));
        hvd::release(freed->data, freed->bytes);
    });
    T* data = static_cast<T*>(block.release()->data);
    return py::array_t<T>(size, data, owner);
}

template <class F>
auto unlocked(F f) {
    const py::gil_scoped_release release;
    return f();
}

py::array_t<int64_t> positions_of(const hvd::Bits& bits) {
    const auto positions = unlocked([&] { return hvd::Positions(bits); });
    auto result = make<int64_t>(positions.count());
    int64_t* out = result.mutable_data();
    unlocked([&] { positions.write(out); });
    return result;
}

// --- making and copying

py::array_t<float> empty(int64_t size) {
    require_count(size);
    return make<float>(size);
}

py::array_t<float> zeros(int64_t size) {
    auto result = empty(size);
    float* out = result.mutable_data();
    unlocked([&] { hvd::zero(out, 4 * size); });
    return result;
}

void copy(py::array to, const py::array& source) {
    const auto target = inout<float>(to, "to");
    const auto x = in<float>(source, "source");
    require(target.size == x.size, "to and source must be of one length");
    unlocked([&] { hvd::copy(target.data, x.data, 4 * target.size); });
}

void add_(py::array total, const py::array& vector) {
    const auto target = inout<float>(total, "total");
    const auto source = in<float>(vector, "vector");
    require(target.size == source.size, "total and vector must be of one length");
    unlocked([&] { hvd::add(target.data, source.data, target.size); });
}

// A vector of the same length, or null for None.
const float* optional_in(const py::object& array, int64_t size, const char* name) {
    if (array.is_none()) return nullptr;
    const auto found = in<float>(array.cast<py::array>(), name);
    require(found.size == size, "vectors must be of one length");
    return found.data;
}

py::array affine(const py::array& x, float a, const py::array& y, float b, const py::object& to) {
    const auto first = in<float>(x, "x"), second = in<float>(y, "y");
    require(first.size == second.size, "x and y must be of one length");
    py::array result = to.is_none() ? py::array(empty(first.size)) : to.cast<py::array>();
    const auto target = inout<float>(result, "out");
    require(target.size == first.size, "out must be of the length of x");
    unlocked([&] { hvd::affine(first.data, a, second.data, b, first.size, target.data); });
    return result;
}

py::array_t<uint16_t> half_rest(py::array& vector, const py::object& residual) {
    const auto x = inout<float>(vector, "vector");
    const float* plus = optional_in(residual, x.size, "residual");
    auto result = make<uint16_t>(x.size);
    uint16_t* out = result.mutable_data();
    unlocked([&] { hvd::half_rest(x.data, plus, x.size, out); });
    return result;
}

py::array_t<uint16_t> to_half(const py::array& vector) {
    const auto x = in<float>(vector, "vector");
    auto result = make<uint16_t>(x.size);
    uint16_t* out = result.mutable_data();
    unlocked([&] { hvd::to_half(x.data, x.size, out); });
    return result;
}

py::array_t<float> from_half(const py::array& halves) {
    const auto x = in<uint16_t>(halves, "halves");
    auto result = make<float>(x.size);
    float* out = result.mutable_data();
    unlocked([&] { hvd::from_half(x.data, x.size, out); });
    return result;
}

bool all_finite(const py::array& vector) {
    const auto x = in<float>(vector, "vector");
    return unlocked([&] { return hvd::all_finite(x.data, x.size); });
}

// --- groups

py::array_t<float> group_max_abs(const py::array& vector, const py::array& lengths, const py::object& plus) {
    const auto x = in<float>(vector, "vector");
    const float* added = optional_in(plus, x.size, "plus");
    const auto groups = in<int64_t>(lengths, "lengths");
    auto result = make<float>(groups.size);
    float* out = result.mutable_data();
    unlocked([&] { hvd::group_max_abs(x.data, added, x.size, groups.data, groups.size, out); });
    return result;
}

std::pair<py::array_t<float>, py::array_t<double>> group_max_square(const py::array& vector, const py::array& lengths, const py::object& plus) {
    const auto x = in<float>(vector, "vector");
    const float* added = optional_in(plus, x.size, "plus");
    const auto groups = in<int64_t>(lengths, "lengths");
    auto max = make<float>(groups.size);
    auto square = make<double>(groups.size);
    float* largest = max.mutable_data();
    double* sums = square.mutable_data();
    unlocked([&] { hvd::group_max_square(x.data, added, x.size, groups.data, groups.size, largest, sums); });
    return {max, square};
}

py::array_t<double> group_sides(const py::array& vector, const py::array& lengths, const py::object& plus) {
    const auto x = in<float>(vector, "vector");
    const float* added = optional_in(plus, x.size, "plus");
    const auto groups = in<int64_t>(lengths, "lengths");
    auto result = make<double>(3 * groups.size);
    double* out = result.mutable_data();
    unlocked([&] { hvd::group_sides(x.data, added, x.size, groups.data, groups.size, out); });
    return result;
}

// --- quantizers

using Code = std::tuple<std::string, int, float, int, int, int>;
using Division = std::variant<int64_t, std::vector<int64_t>>;

hvd::Codec codec_of(const Code& code, const Division& groups, int64_t size) {
    const auto& [kind, bits, numerator, low, high, scales_each] = code;
    constexpr const char* KINDS[] = {"levels", "natural", "dynamic", "bfloat", "sign"};
    const auto found = std::find(std::begin(KINDS), std::end(KINDS), kind);
    require(found != std::end(KINDS), "a code must be of kind levels, natural, dynamic, bfloat or sign");
    const auto number = static_cast<hvd::Quantizer::Kind>(found - std::begin(KINDS));
    const bool wide = number == hvd::Quantizer::natural || number == hvd::Quantizer::bfloat;
    require(wide ? bits == (number == hvd::Quantizer::natural ? 9 : 16) : 1 <= bits && bits <= 12, "bits do not fit the kind");
    require(number == hvd::Quantizer::levels || wide || bits == (number == hvd::Quantizer::sign ? 1 : 8), "bits do not fit the kind");
    require(number != hvd::Quantizer::levels || (low <= 0 && high - low < 1 << bits), "levels do not fit the bits");
    require(0 <= scales_each && scales_each <= 2, "a group has at most two scales");
    hvd::Groups division{size, 0, {}};
    if (std::holds_alternative<int64_t>(groups)) {
        division.block = std::get<int64_t>(groups);
        require(1 <= division.block && division.block < int64_t{1} << 40, "a block must be in 1 to 2^40 - 1");
    } else {
        int64_t end = 0;
        for (const int64_t length : std::get<std::vector<int64_t>>(groups)) {
            require(0 <= length && length <= size - end, "the groups' lengths must add up to the vector's");
            division.ends.push_back(end += length);
        }
        require(end == size, "the groups' lengths must add up to the vector's");
    }
    return {{number, bits, numerator, low, high}, std::move(division), scales_each};
}

py::array_t<uint8_t> quantize(
    py::array& vector, const py::object& residual, bool rest, const Code& code, const Division& groups,
    const py::object& scales, const Words& stream
) {
    const auto x = in<float>(vector, "vector");
    if (rest) inout<float>(vector, "vector");
    const auto codec = codec_of(code, groups, x.size);
    auto payload = make<uint8_t>(codec.payload_bytes());
    uint8_t* out = payload.mutable_data();
    const float* add = optional_in(residual, x.size, "residual");
    require(!add || rest, "a residual goes with rest");
    auto norm = hvd::Norm::none;
    if (py::isinstance<py::str>(scales)) {
        const auto name = scales.cast<std::string>();
        require((name == "max" || name == "l2") && codec.scales_each == 1, "scales must be max, l2 or given");
        require(codec.groups.block > 0, "max and l2 are for blocks");
        norm = name == "max" ? hvd::Norm::max : hvd::Norm::l2;
    } else if (codec.scales_each) {
        const auto array = scales.cast<py::array>();
        const auto values = in<float>(array, "scales");
        require(4 * values.size == codec.scales_bytes(), "there must be as many scales as the groups have");
        std::memcpy(out, values.data, static_cast<std::size_t>(4 * values.size));
    }
    float* data = const_cast<float*>(x.data);  // changed only with `rest`
    unlocked([&] { hvd::quantize(codec, norm, data, add, rest, stream.first, stream.second, out); });
    return payload;
}

std::pair<py::array_t<uint8_t>, py::array_t<double>> signs(
    const py::array& vector, const std::vector<int64_t>& lengths, int64_t header
) {
    const auto x = in<float>(vector, "vector");
    require_count(header);
    const auto codec = codec_of({"sign", 1, 1, 0, 0, 0}, lengths, x.size);
    auto payload = make<uint8_t>(header + (x.size + 7) / 8);
    auto sides = make<double>(3 * codec.groups.count());
    uint8_t* packed = payload.mutable_data() + header;
    double* sums = sides.mutable_data();
    unlocked([&] { hvd::signs(codec.groups, x.data, packed, sums); });
    return {payload, sides};
}

py::array dequantize(
    const std::vector<py::array>& payloads, const Code& code, const Division& groups, int64_t size, float factor,
    bool vote, const py::object& total
) {
    require_count(size);
    const auto codec = codec_of(code, groups, size);
    std::vector<const uint8_t*> data;
    for (const auto& payload : payloads) {
        const auto bytes = in<uint8_t>(payload, "payload");
        require(bytes.size == codec.payload_bytes(), "a payload of a wrong length came in");
        data.push_back(bytes.data);
    }
    py::array result = total.is_none() ? py::array(empty(size)) : total.cast<py::array>();
    const auto target = inout<float>(result, "total");
    require(target.size == size, "total must be of the given size");
    float* out = target.data;
    unlocked([&] { hvd::dequantize(codec, data, factor, !total.is_none(), vote, out); });
    return result;
}

// --- selection

py::array_t<int64_t> top_k(const py::array& vector, int64_t count) {
    const auto x = in<float>(vector, "vector");
    require_count(count);
    hvd::Selection selection(x.size);
    unlocked([&] { hvd::select_top(hvd::Vector(x.data, x.size), std::min(count, x.size), selection); });
    return positions_of(selection.bits());
}

py::array_t<int64_t> above(const py::array& vector, float threshold) {
    const auto x = in<float>(vector, "vector");
    hvd::Selection selection(x.size);
    unlocked([&] { hvd::select_above(x.data, x.size, threshold, selection); });
    return positions_of(selection.bits());
}

py::array_t<int64_t> draw(const py::array& vector, float scale, const Words& stream) {
    const auto x = in<float>(vector, "vector");
    hvd::Selection selection(x.size);
    unlocked([&] { hvd::draw(x.data, x.size, scale, stream.first, stream.second, selection); });
    return positions_of(selection.bits());
}

std::pair<double, int64_t> sum_abs_below(const py::array& vector, float bound) {
    const auto x = in<float>(vector, "vector");
    double result[2];
    unlocked([&] { hvd::sum_below(x.data, x.size, bound, result); });
    return {result[0], static_cast<int64_t>(result[1])};
}

py::array_t<float> take(const py::array& vector, const py::array& indices) {
    const auto x = in<float>(vector, "vector");
    const auto at = in<int64_t>(indices, "indices");
    auto result = make<float>(at.size);
    float* out = result.mutable_data();
    unlocked([&] { hvd::take(x.data, x.size, at.data, at.size, out); });
    return result;
}

py::array_t<float> scatter(int64_t size, const std::vector<std::pair<py::array, py::array>>& parts, float factor) {
    auto result = empty(size);
    float* out = result.mutable_data();
    std::vector<hvd::Sparse> sparse;
    for (const auto& [indices, values] : parts) {
        const auto at = in<int64_t>(indices, "indices");
        const auto source = in<float>(values, "values");
        require(at.size == source.size, "indices and values must be of one length");
        require(at.size <= size, "there are more indices than coordinates");
        sparse.push_back({at.data, source.data, at.size});
    }
    unlocked([&] { hvd::scatter(sparse, factor, size, out); });
    return result;
}

void scatter_add(py::array& total, const py::array& indices, const py::array& values) {
    const auto target = inout<float>(total, "total");
    const auto at = in<int64_t>(indices, "indices");
    const auto source = in<float>(values, "values");
    require(at.size == source.size, "indices and values must be of one length");
    unlocked([&] { hvd::scatter_add(target.data, target.size, at.data, at.size, source.data); });
}

// --- random numbers

py::array_t<float> uniform(int64_t count, const Words& stream) {
    auto result = empty(count);
    float* out = result.mutable_data();
    unlocked([&] { hvd::uniform(stream.first, stream.second, count, out); });
    return result;
}

py::array_t<int64_t> distinct(int64_t count, int64_t size, const Words& stream) {
    require_count(count);
    require(count <= size, "distinct: count must be in 0 to size");
    auto result = make<int64_t>(count);
    int64_t* out = result.mutable_data();
    unlocked([&] { hvd::distinct(stream.first, stream.second, size, count, out); });
    return result;
}

// --- bytes and bits

template <class T>
py::array_t<uint8_t> pack_as(const py::array& numbers, int bits) {
    const auto x = in<T>(numbers, "numbers");
    auto result = make<uint8_t>(hvd::packed_bytes(x.size, bits));
    uint8_t* out = result.mutable_data();
    unlocked([&] { hvd::pack(x.data, x.size, bits, out); });
    return result;
}

// --- count sketches

using Arrays = std::tuple<py::array, py::array, py::array>;  // shifts, flips and signs

struct Table {
    hvd::Hashing hashing;
    Span<const float> sums;
};

template <class T>
void require_below(Span<const T> numbers, T limit, const char* message) {
    for (int64_t i = 0; i < numbers.size; ++i) require(0 <= numbers.data[i] && numbers.data[i] < limit, message);
}

hvd::Rotation rotation_of(int64_t size, int rows, int64_t sums, const py::array& array) {
    require(1 <= rows && rows <= hvd::MOST_ROWS, "rows must be in 1 to 15");
    require(1 <= size && size <= int64_t{1} << 40, "size must be in 1 to 2^40");
    require(sums >= rows && sums % rows == 0, "table must have as many sums in each row");
    const auto shifts = in<int64_t>(array, "shifts");
    const hvd::Rotation rotation{size, sums / rows, rows, shifts.data};
    require(shifts.size == rows * rotation.blocks(), "shifts do not fit the table");
    require_below(shifts, rotation.columns, "a shift is out of range");
    return rotation;
}

Table table_of(const py::array& table, int64_t size, int rows, const Arrays& arrays) {
    const auto sums = in<float>(table, "table");
    require(1 <= rows && rows <= hvd::MOST_ROWS && rows % 2, "rows must be odd, in 1 to 15");
    const auto rotation = rotation_of(size, rows, sums.size, std::get<0>(arrays));
    const auto flips = in<uint8_t>(std::get<1>(arrays), "flips");
    const auto signs = in<uint32_t>(std::get<2>(arrays), "signs");
    const hvd::Hashing hashing{rotation, flips.data, signs.data};
    const bool fits = flips.size == rows * hashing.blocks() && signs.size == (hashing.columns + 31) / 32;
    require(fits, "flips or signs do not fit the table");
    require_below(flips, uint8_t{2}, "a flip is out of range");
    return {hashing, sums};
}

void sketch(py::array& table, int64_t size, int rows, const Arrays& arrays, const py::array& vector, int64_t offset) {
    const auto hashing = table_of(table, size, rows, arrays).hashing;
    const auto x = in<float>(vector, "vector");
    require(0 <= offset && x.size <= size - offset, "the vector must lie in the size");
    float* sums = inout<float>(table, "table").data;
    unlocked([&] { hvd::sketch(hashing, x.data, offset, x.size, sums); });
}

void sketch_sparse(
    py::array& table, int64_t size, int rows, const Arrays& arrays, const py::array& indices, const py::array& values
) {
    const auto hashing = table_of(table, size, rows, arrays).hashing;
    const auto at = in<int64_t>(indices, "indices");
    const auto x = in<float>(values, "values");
    require(at.size == x.size, "indices and values must be of one length");
    float* sums = inout<float>(table, "table").data;
    unlocked([&] { hvd::sketch_sparse(hashing, {at.data, x.data, at.size}, sums); });
}

py::array_t<float> estimate(
    const py::array& table, int64_t size, int rows, const Arrays& arrays, const py::object& indices
) {
    const auto [hashing, sums] = table_of(table, size, rows, arrays);
    const auto* data = sums.data;
    if (indices.is_none()) {
        auto result = empty(size);
        float* out = result.mutable_data();
        unlocked([&, h = hashing] { hvd::estimate(h, data, out); });
        return result;
    }
    const auto at = in<int64_t>(indices.cast<py::array>(), "indices");
    auto result = make<float>(at.size);
    float* out = result.mutable_data();
    unlocked([&, h = hashing] { hvd::estimate_at(h, data, at.data, at.size, out); });
    return result;
}

py::array_t<int64_t> heavy(const py::array& table, int64_t size, int rows, const Arrays& arrays, int64_t count) {
    const auto [hashing, sums] = table_of(table, size, rows, arrays);
    require_count(count);
    const auto* data = sums.data;
    hvd::Selection selection(size);
    unlocked([&, h = hashing] { hvd::select_heavy(h, data, std::min(count, size), selection); });
    return positions_of(selection.bits());
}

std::pair<py::array_t<int64_t>, int64_t> recover(
    const py::array& table, int64_t size, int rows, const py::array& shifts, const py::array& multiples,
    const py::array& owners, int64_t passes
) {
    const auto sums = in<int32_t>(table, "table");
    const auto codes = in<int32_t>(multiples, "multiples");
    const auto blocks = in<int64_t>(owners, "owners");
    const hvd::Invertible sketch{rotation_of(size, rows, sums.size, shifts), codes.data, blocks.data, codes.size};
    require(codes.size == blocks.size && codes.size <= int64_t{1} << 30, "multiples and owners must be of one length");
    require(0 <= passes && passes <= 1 << 20, "passes must be in 0 to 2^20");
    require_below(blocks, std::min(sketch.blocks(), int64_t{1} << 31), "an owner is out of range");
    hvd::Selection found(size);
    const auto left = unlocked([&] {
        std::vector<uint32_t> copy(sums.data, sums.data + sums.size);
        return hvd::recover(sketch, passes, copy.data(), found);
    });
    return {positions_of(found.bits()), left};
}

// --- products of low rank

hvd::Matrices matrices_of(
    int64_t size, const std::vector<int64_t>& offsets, const std::pair<int64_t, int64_t>& shape, int64_t rank
) {
    const auto [rows, columns] = shape;
    require_count(rows);
    require_count(columns);
    require(1 <= rank && rank <= 1 << 16, "rank must be in 1 to 65536");
    require(!rows || columns <= size / rows, "the matrices must lie in the vector");
    for (const int64_t offset : offsets) {
        require(0 <= offset && offset <= size - rows * columns, "the matrices must lie in the vector");
    }
    return {offsets, rows, columns, static_cast<int>(rank)};
}

template <class F>
py::array_t<float> product(
    F f, const py::array& vector, const std::vector<int64_t>& offsets, const std::pair<int64_t, int64_t>& shape,
    const py::array& factor, int64_t rank, int64_t factor_rows, int64_t result_rows
) {
    const auto x = in<float>(vector, "vector"), y = in<float>(factor, "factor");
    const auto m = matrices_of(x.size, offsets, shape, rank);
    require(y.size == m.count() * factor_rows * rank, "the factor does not fit the matrices");
    auto result = make<float>(m.count() * result_rows * rank);
    float* out = result.mutable_data();
    unlocked([&] { f(m, x.data, y.data, out); });
    return result;
}

py::array_t<float> times(
    const py::array& vector, const std::vector<int64_t>& offsets, const std::pair<int64_t, int64_t>& shape,
    const py::array& right, int64_t rank
) {
    return product(hvd::times, vector, offsets, shape, right, rank, shape.second, shape.first);
}

py::array_t<float> times_transposed(
    const py::array& vector, const std::vector<int64_t>& offsets, const std::pair<int64_t, int64_t>& shape,
    const py::array& left, int64_t rank
) {
    return product(hvd::times_transposed, vector, offsets, shape, left, rank, shape.first, shape.second);
}

void add_product(
    py::array& total, const std::vector<int64_t>& offsets, const std::pair<int64_t, int64_t>& shape,
    const py::array& left, const py::array& right, int64_t rank, float factor
) {
    const auto target = inout<float>(total, "total");
    const auto x = in<float>(left, "left"), y = in<float>(right, "right");
    const auto m = matrices_of(target.size, offsets, shape, rank);
    require(x.size == m.count() * m.rows * rank, "left does not fit the matrices");
    require(y.size == m.count() * m.columns * rank, "right does not fit the matrices");
    unlocked([&] { hvd::add_product(m, x.data, y.data, factor, target.data); });
}

py::array_t<uint8_t> pack(const py::array& numbers, int bits) {
    require_bits(bits);
    if (numbers.dtype().equal(py::dtype::of<uint8_t>())) return pack_as<uint8_t>(numbers, bits);
    if (numbers.dtype().equal(py::dtype::of<int32_t>())) return pack_as<int32_t>(numbers, bits);
    return pack_as<int64_t>(numbers, bits);
}

py::array_t<int32_t> unpack(const py::array& payload, int bits, int64_t count) {
    const auto bytes = in<uint8_t>(payload, "payload");
    require_bits(bits);
    require_count(count);
    require(bytes.size == hvd::packed_bytes(count, bits), "payload is of the wrong length");
    auto result = make<int32_t>(count);
    int32_t* out = result.mutable_data();
    unlocked([&] { hvd::unpack(bytes.data, count, bits, out); });
    return result;
}

py::array_t<uint8_t> bitmap(const py::array& indices, int64_t size) {
    const auto at = in<int64_t>(indices, "indices");
    require_count(size);
    auto result = make<uint8_t>(hvd::packed_bytes(size, 1));
    uint8_t* out = result.mutable_data();
    unlocked([&] { hvd::encode_bitmap(at.data, at.size, size, out); });
    return result;
}

py::array_t<int64_t> set_bits(const py::array& payload, int64_t size) {
    const auto bytes = in<uint8_t>(payload, "payload");
    require_count(size);
    require(bytes.size >= hvd::packed_bytes(size, 1), "payload is too short");
    return positions_of({bytes.data, size});
}

py::array_t<uint8_t> encode_indices(const py::array& indices, int64_t size) {
    const auto at = in<int64_t>(indices, "indices");
    require_count(size);
    const hvd::IndexCode code(size, at.size);
    auto result = make<uint8_t>(code.bytes());
    uint8_t* out = result.mutable_data();
    unlocked([&] { hvd::encode_indices(code, at.data, out); });
    return result;
}

py::array_t<int64_t> decode_indices(const py::array& payload, int64_t size, int64_t count) {
    const auto bytes = in<uint8_t>(payload, "payload");
    require_count(size);
    const hvd::IndexCode code(size, count);
    require(bytes.size == code.bytes(), "the bytes of indices that came in are of the wrong length");
    auto result = make<int64_t>(count);
    int64_t* out = result.mutable_data();
    unlocked([&] { hvd::decode_indices(code, bytes.data, out); });
    return result;
}

}  // namespace

PYBIND11_MODULE(_kernels, m) {
    m.doc() = "Compiled kernels; see _kernels.pyi.";
    const char* level = std::getenv("HVD_COMPRESS_SIMD");
    try {
        hvd::set_simd(level && *level ? level : hvd::simd_levels().back());
    } catch (const std::invalid_argument& error) {
        throw py::import_error(std::string("HVD_COMPRESS_SIMD: ") + error.what());
    }

    // No conversions: a copy made on the way in would cost time unseen, and what is written to it would be lost.
    const auto array = [](const char* name) { return py::arg(name).noconvert(); };
    m.def("simd_levels", hvd::simd_levels);
    m.def("simd", hvd::simd);
    m.def("set_simd", hvd::set_simd, py::arg("level"));
    m.def("threads", hvd::threads);
    m.def("set_threads", hvd::set_threads, py::arg("count"));
    m.def("float_environment", float_environment, py::arg("to").none(true));

    m.def("empty", empty, py::arg("size"));
    m.def("zeros", zeros, py::arg("size"));
    m.def("copy", copy, array("to"), array("source"));
    m.def("add_", add_, array("total"), array("vector"));
    m.def("affine", affine, array("x"), py::arg("a"), array("y"), py::arg("b"), py::arg("out").none(true));
    m.def("half_rest", half_rest, py::arg("vector"), py::arg("residual").none(true));
    m.def("to_half", to_half, py::arg("vector"));
    m.def("from_half", from_half, py::arg("halves"));
    m.def("all_finite", all_finite, array("vector"));
    m.def("group_max_abs", group_max_abs, array("vector"), array("lengths"), py::arg("plus").none(true));
    m.def("group_max_square", group_max_square, array("vector"), array("lengths"), py::arg("plus").none(true));
    m.def("group_sides", group_sides, array("vector"), array("lengths"), py::arg("plus").none(true));

    m.def("top_k", top_k, array("vector"), py::arg("count"));
    m.def("above", above, array("vector"), py::arg("threshold"));
    m.def("draw", draw, array("vector"), py::arg("scale"), py::arg("stream"));
    m.def(
        "times", times, array("vector"), py::arg("offsets"), py::arg("shape"), array("right"), py::arg("rank")
    );
    m.def(
        "times_transposed", times_transposed, array("vector"), py::arg("offsets"), py::arg("shape"), array("left"),
        py::arg("rank")
    );
    m.def(
        "add_product", add_product, array("total"), py::arg("offsets"), py::arg("shape"), array("left"),
        array("right"), py::arg("rank"), py::arg("factor")
    );
    m.def("scatter", scatter, py::arg("size"), py::arg("parts"), py::arg("factor"));
    m.def("sum_abs_below", sum_abs_below, array("vector"), py::arg("bound"));
    m.def("take", take, array("vector"), array("indices"));
    m.def("scatter_add", scatter_add, array("total"), array("indices"), array("values"));

    m.def(
        "quantize", quantize, array("vector"), py::arg("residual").none(true), py::arg("rest"), py::arg("code"),
        py::arg("groups"), py::arg("scales").none(true), py::arg("stream")
    );
    m.def("signs", signs, array("vector"), py::arg("lengths"), py::arg("header"));
    m.def(
        "dequantize", dequantize, py::arg("payloads"), py::arg("code"), py::arg("groups"), py::arg("size"),
        py::arg("factor"), py::arg("vote"), py::arg("total").none(true)
    );

    m.def(
        "sketch", sketch, array("table"), py::arg("size"), py::arg("rows"), py::arg("hashing"), array("vector"),
        py::arg("offset")
    );
    m.def(
        "sketch_sparse", sketch_sparse, array("table"), py::arg("size"), py::arg("rows"), py::arg("hashing"),
        array("indices"), array("values")
    );
    m.def(
        "estimate", estimate, array("table"), py::arg("size"), py::arg("rows"), py::arg("hashing"),
        py::arg("indices").none(true)
    );
    m.def(
        "heavy", heavy, array("table"), py::arg("size"), py::arg("rows"), py::arg("hashing"), py::arg("count")
    );

    m.def(
        "recover", recover, array("table"), py::arg("size"), py::arg("rows"), array("shifts"), array("multiples"),
        array("owners"), py::arg("passes")
    );

    m.def("uniform", uniform, py::arg("count"), py::arg("stream"));
    m.def("distinct", distinct, py::arg("count"), py::arg("size"), py::arg("stream"));

    m.def("pack", pack, array("numbers"), py::arg("bits"));
    m.def("unpack", unpack, array("payload"), py::arg("bits"), py::arg("count"));
    m.def("bitmap", bitmap, array("indices"), py::arg("size"));
    m.def("set_bits", set_bits, array("payload"), py::arg("size"));
    m.def("encode_indices", encode_indices, array("indices"), py::arg("size"));
    m.def("decode_indices", decode_indices, array("payload"), py::arg("size"), py::arg("count"));
}
