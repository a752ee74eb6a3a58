// Large arrays without page faults: huge pages, and a few freed blocks kept for the next array of the same size.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hvd {

// Bytes from which a block is mapped and kept. Under AddressSanitizer all are malloc's, which it watches.
#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t LARGE = SIZE_MAX;
#else
constexpr std::size_t LARGE = std::size_t{1} << 20;
#endif

// Returns a block of at least `bytes`, aligned to 64, not initialized; with `kept_before`, a kept one of this size if
// there is one. Throws std::bad_alloc.
void* acquire(std::size_t bytes, bool kept_before = true);

// Frees a block of `acquire`, given the same `bytes`; with `keep`, the next `acquire` of this size may get it.
void release(void* block, std::size_t bytes, bool keep = true) noexcept;

// A kernel's working memory. It is not kept: it may be a tenth of the vector's size.
template <class T>
class Scratch {
public:
    explicit Scratch(int64_t count)
        : bytes_(static_cast<std::size_t>(count) * sizeof(T)), data_(static_cast<T*>(acquire(bytes_, false))) {}
    Scratch(Scratch&& other) noexcept : bytes_(other.bytes_), data_(other.data_) { other.data_ = nullptr; }
    ~Scratch() {
        if (data_) release(data_, bytes_, false);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    T* get() { return data_; }
    const T* get() const { return data_; }
    T& operator[](int64_t i) { return data_[i]; }

private:
    std::size_t bytes_;
    T* data_;
};

}  // namespace hvd
