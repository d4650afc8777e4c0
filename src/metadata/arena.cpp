#include "metadata/arena.hpp"

#include "os/virtual_memory.hpp"

#include <atomic>
#include <bit>
#include <cstring>
#include <mutex>
#include <new>

namespace pmr_debug::metadata {

namespace {

constexpr std::size_t smallest = 64;
constexpr std::size_t commit_step = std::size_t{1} << 18;
// What an arena that expects protection takes by pages of the usual size: most resources need no more.
constexpr std::size_t small_pages = std::size_t{1} << 18;
constexpr std::size_t least_reserve = std::size_t{1} << 20;

}  // namespace

bool arena::open(std::size_t bytes) noexcept {
    const std::size_t page = os::page_size();
    for (bytes = os::round_up(bytes, page); bytes >= least_reserve; bytes = os::round_up(bytes / 4, page)) {
        if (void* p = os::reserve(bytes + 2 * page, page); p != nullptr) {
            base_ = static_cast<unsigned char*>(p) + page;
            reserved_ = bytes;
            return true;
        }
    }
    return false;
}

void arena::close() noexcept {
    if (base_ != nullptr) {
        const std::size_t page = os::page_size();
        os::unmap(base_ - page, reserved_ + 2 * page);
    }
    base_ = nullptr;
    reserved_ = committed_ = next_ = used_ = 0;
    huge_from_ = 0;
    for (piece*& head : free_) {
        head = nullptr;
    }
}

arena* arena::open_within(std::size_t bytes) noexcept {
    arena outside;
    if (!outside.open(bytes)) {
        return nullptr;
    }
    void* const home = outside.allocate(sizeof(arena));
    if (home == nullptr) {
        outside.close();
        return nullptr;
    }
    auto* const inside = ::new (home) arena;
    inside->base_ = outside.base_;
    inside->reserved_ = outside.reserved_;
    inside->committed_ = outside.committed_;
    inside->next_ = outside.next_;
    inside->used_ = outside.used_;
    return inside;
}

void arena::close_within(arena* a) noexcept {
    const std::size_t page = os::page_size();
    os::unmap(a->base_ - page, a->reserved_ + 2 * page);
}

void* arena::allocate(std::size_t bytes) noexcept {
    if (bytes > reserved_) {
        return nullptr;
    }
    const std::size_t size = std::bit_ceil(bytes < smallest ? smallest : bytes);
    const auto bucket = static_cast<std::size_t>(std::countr_zero(size));
    const std::scoped_lock hold(lock_);
    if (piece* const p = free_[bucket]; p != nullptr) {
        free_[bucket] = p->next;
        used_ += size;
        return p;
    }
    const std::size_t page = os::page_size();
    std::size_t start = os::round_up(next_, size < page ? smallest : page);
    if (start < huge_from_ && start + size > small_pages) {
        start = huge_from_;
    }
    if (start > reserved_ || size > reserved_ - start) {
        return nullptr;
    }
    if (start + size > committed_) {
        // A huge page lies within pages of equal permissions, so they are committed as a whole; near the end of what
        // the system has, less may do.
        const auto address = reinterpret_cast<std::uintptr_t>(base_);
        const bool huge = huge_from_ != 0 && start >= huge_from_;
        const std::size_t least = os::round_up(start + size - committed_, commit_step);
        std::size_t want = huge ? os::round_up(address + start + size, os::huge_page) - (address + committed_) : least;
        want = want < reserved_ - committed_ ? want : reserved_ - committed_;
        if (!os::commit(base_ + committed_, want)) {
            if (least >= want || !os::commit(base_ + committed_, least)) {
                return nullptr;
            }
            want = least;
        }
        committed_ += want;
    }
    next_ = start + size;
    used_ += size;
    return base_ + start;
}

void* arena::allocate_zeroed(std::size_t bytes) noexcept {
    void* const p = allocate(bytes);
    if (p != nullptr) {
        std::memset(p, 0, bytes);
    }
    return p;
}

void arena::free(void* p, std::size_t bytes) noexcept {
    const std::size_t size = std::bit_ceil(bytes < smallest ? smallest : bytes);
    const auto bucket = static_cast<std::size_t>(std::countr_zero(size));
    const std::scoped_lock hold(lock_);
    auto* const freed = ::new (p) piece{free_[bucket]};
    free_[bucket] = freed;
    used_ -= size;
}

std::size_t arena::used() const noexcept {
    const os::look seen(lock_);
    return used_;
}

void arena::expect_protection() noexcept {
    const auto address = reinterpret_cast<std::uintptr_t>(base_);
    std::size_t first = os::round_up(address, os::huge_page) - address;
    first += first < small_pages ? os::huge_page : 0;
    if (reserved_ >= 32 * os::huge_page) {  // in a small one the pages before the first huge page would be missed
        os::prefer_huge_pages(base_ + first, reserved_ - first);
        huge_from_ = first;
    }
}

bool arena::protect() noexcept {
    return committed_ == 0 || os::protect_read(base_, committed_);
}
bool arena::unprotect() noexcept {
    return committed_ == 0 || os::protect_read_write(base_, committed_);
}

arena* process_arena() noexcept {
    // Never destroyed: reports may be written by static destructors that run late.
    alignas(arena) static unsigned char storage[sizeof(arena)];
    constinit static std::atomic<arena*> shared{nullptr};
    constinit static os::spin_lock opening;
    arena* a = shared.load(std::memory_order_acquire);
    if (a == nullptr) {
        const std::scoped_lock hold(opening);
        a = shared.load(std::memory_order_relaxed);
        if (a == nullptr) {
            a = ::new (storage) arena;
            if (!a->open(std::size_t{1} << 34)) {
                return nullptr;  // the next call may have more luck
            }
            shared.store(a, std::memory_order_release);
        }
    }
    return a;
}

}  // namespace pmr_debug::metadata
