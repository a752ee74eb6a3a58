#include "memory.hpp"

#include <sys/mman.h>

#include <cstdlib>
#include <deque>
#include <mutex>
#include <new>

namespace hvd {
namespace {

constexpr std::size_t HUGE_PAGE = std::size_t{2} << 20;
constexpr std::size_t KEPT = 8;

struct Block {
    void* data;
    std::size_t bytes;
};

// Never destroyed: arrays may outlive the static objects of this module.
std::mutex& lock() {
    static auto* mutex = new std::mutex;
    return *mutex;
}

std::deque<Block>& kept() {
    static auto* blocks = new std::deque<Block>;
    return *blocks;
}

std::size_t mapped_size(std::size_t bytes) {
    const std::size_t page = bytes < 16 * HUGE_PAGE ? 4096 : HUGE_PAGE;
    return (bytes + page - 1) / page * page;
}

void* map(std::size_t size) {
    void* raw = mmap(nullptr, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) throw std::bad_alloc();
    char* start = static_cast<char*>(raw);
    const std::size_t before = (HUGE_PAGE - reinterpret_cast<std::uintptr_t>(start) % HUGE_PAGE) % HUGE_PAGE;
    if (before) munmap(start, before);
    munmap(start + before + size, HUGE_PAGE - before);
#ifdef MADV_HUGEPAGE
    madvise(start + before, size, MADV_HUGEPAGE);  // a hint: that it may fail does no harm
#endif
    return start + before;
}

}  // namespace

void* acquire(std::size_t bytes, bool kept_before) {
    if (bytes > PTRDIFF_MAX / 2) throw std::bad_alloc();
    if (bytes < LARGE) {
        void* data = nullptr;
        if (posix_memalign(&data, 64, bytes)) throw std::bad_alloc();
        return data;
    }
    const std::size_t size = mapped_size(bytes);
    if (kept_before) {
        const std::lock_guard<std::mutex> guard(lock());
        auto& blocks = kept();
        for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {  // the newest is the likeliest in cache
            if (block->bytes == size) {
                void* data = block->data;
                blocks.erase(std::next(block).base());
                return data;
            }
        }
    }
    return map(size);
}

void release(void* data, std::size_t bytes, bool keep) noexcept {
    if (bytes < LARGE) return std::free(data);
    const std::size_t size = mapped_size(bytes);
    if (!keep) {
        munmap(data, size);
        return;
    }
    Block dropped{data, size};
    try {
        const std::lock_guard<std::mutex> guard(lock());
        auto& blocks = kept();
        blocks.push_back({data, size});
        dropped = {nullptr, 0};
        if (blocks.size() > KEPT) {
            dropped = blocks.front();
            blocks.pop_front();
        }
    } catch (const std::bad_alloc&) {
    }
    if (dropped.data) munmap(dropped.data, dropped.bytes);
}

}  // namespace hvd
