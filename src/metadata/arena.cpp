#include "metadata/arena.hpp"

#include "metadata/arena_limit.hpp"
#include "os/guarded.hpp"
#include "os/virtual_memory.hpp"

#include <atomic>
#include <bit>
#include <cstring>
#include <mutex>
#include <new>

namespace pmr_debug::metadata {

namespace {

constexpr std::size_t smallest = 64;
// A run that small pieces share; also the step of sizes above it, up to the largest of that sort.
constexpr std::size_t small_run = std::size_t{1} << 12;
constexpr std::size_t most_by_runs = 16 * small_run;
constexpr std::size_t commit_step = std::size_t{1} << 18;
// What an arena that expects protection takes by pages of the usual size: most resources need no more.
constexpr std::size_t small_pages = std::size_t{1} << 18;
constexpr std::size_t least_reserve = std::size_t{1} << 18;
// Of an arena that nobody limits: many of them fit into the addresses of a process, and a large one has few ranges.
constexpr std::size_t first_reserve = std::size_t{1} << 26;
// What an arena with a shared start begins with.
constexpr std::size_t shared_reserve = std::size_t{1} << 19;
// Under a limit of address space: parts of it that one range takes at first, and later.
constexpr std::size_t first_parts = 256;
constexpr std::size_t later_parts = 64;

constinit std::atomic<std::size_t> most_bytes{SIZE_MAX};

[[nodiscard]] std::size_t size_of(std::size_t bytes) noexcept {
    if (bytes > small_run && bytes <= most_by_runs) {
        return os::round_up(bytes, small_run);
    }
    return std::bit_ceil(bytes < smallest ? smallest : bytes);
}

/// 0 to 6: 64 bytes to 4 KiB; to 21: 8 to 64 KiB in steps of 4; then powers of two again.
[[nodiscard]] std::size_t bucket_of(std::size_t size) noexcept {
    const auto power = static_cast<std::size_t>(std::countr_zero(size));
    if (size <= small_run) {
        return power - 6;
    }
    return size <= most_by_runs ? 5 + size / small_run : power + 5;
}

}  // namespace

void limit_arenas(std::size_t bytes) noexcept {
    most_bytes.store(bytes, std::memory_order_relaxed);
}

bool arena::add_range(std::size_t least) noexcept {
    const std::size_t page = os::page_size();
    if (count_ == most_ranges || reserved_ >= limit_) {
        return false;
    }
    // As much as there is already, so that there are few ranges.
    const std::size_t wanted = reserved_ < first_reserve
                                   ? os::share_of_addresses(first_reserve, first_parts)
                                   : os::share_of_addresses(std::bit_floor(reserved_), later_parts);
    least = os::round_up(least, page);
    if (least > limit_ - reserved_) {
        return false;
    }
    for (std::size_t bytes = wanted;; bytes = os::round_up(bytes / 4, page)) {
        bytes = bytes < least ? least : bytes;
        bytes = bytes < limit_ - reserved_ ? bytes : limit_ - reserved_;
        if (void* const p = os::reserve(bytes + 2 * page, page); p != nullptr) {
            range& r = ranges_[count_];
            r = {.base = static_cast<unsigned char*>(p) + page, .reserved = bytes};
            reserved_ += bytes;
            ++count_;
            if (huge_) {
                const auto address = reinterpret_cast<std::uintptr_t>(r.base);
                const std::size_t first = os::round_up(address, os::huge_page) - address;
                if (bytes >= 32 * os::huge_page) {
                    os::prefer_huge_pages(r.base + first, bytes - first);
                    r.huge_from = first;
                }
            }
            return true;
        }
        if (bytes <= least) {
            return false;
        }
    }
}

void arena::give_back(range& r) noexcept {
    const std::size_t page = os::page_size();
    os::unmap(r.base - page, r.reserved + 2 * page);
}

bool arena::open(std::size_t bytes, home where) noexcept {
    const std::size_t most = most_bytes.load(std::memory_order_relaxed);
    limit_ = os::round_up(bytes < most ? bytes : most, os::page_size());
    arena* const all = where == home::shared && limit_ >= shared_reserve ? process_arena() : nullptr;
    void* const p = all != nullptr ? all->allocate(shared_reserve) : nullptr;
    if (p == nullptr) {
        return add_range(least_reserve < limit_ ? least_reserve : limit_);
    }
    // Others take and free pieces of this size, too, and leave them as they are.
    if (!os::discard(p, shared_reserve)) {
        std::memset(p, 0, shared_reserve);
    }
    ranges_[0] = {.base = static_cast<unsigned char*>(p), .reserved = shared_reserve, .committed = shared_reserve};
    reserved_ = shared_reserve;
    count_ = 1;
    shared_ = true;
    return true;
}

void arena::close() noexcept {
    for (std::size_t i = count_; i > 0; --i) {
        range& r = ranges_[i - 1];
        if (i != 1 || !shared_) {
            give_back(r);
        } else {
            os::discard(r.base, r.reserved);  // the memory: whoever gets the piece next zeroes it
            process_arena()->free(r.base, r.reserved);
        }
        r = {};
    }
    count_ = limit_ = reserved_ = used_ = 0;
    shared_ = huge_ = false;
    small_next_ = nullptr;
    small_left_ = 0;
    for (piece*& head : free_) {
        head = nullptr;
    }
}

arena* arena::open_within(std::size_t bytes, home where) noexcept {
    arena outside;
    if (!outside.open(bytes, where)) {
        return nullptr;
    }
    void* const place = outside.allocate(sizeof(arena));
    if (place == nullptr) {
        outside.close();
        return nullptr;
    }
    auto* const inside = ::new (place) arena;
    inside->ranges_[0] = outside.ranges_[0];
    inside->count_ = outside.count_;
    inside->limit_ = outside.limit_;
    inside->reserved_ = outside.reserved_;
    inside->used_ = outside.used_;
    inside->shared_ = outside.shared_;
    inside->small_next_ = outside.small_next_;
    inside->small_left_ = outside.small_left_;
    return inside;
}

void arena::close_within(arena* a) noexcept {
    arena outside;  // the first range, with the arena in it, goes last
    outside.ranges_[0] = a->ranges_[0];
    outside.count_ = 1;
    outside.shared_ = a->shared_;
    for (std::size_t i = a->count_; i > 1; --i) {
        a->give_back(a->ranges_[i - 1]);
    }
    outside.close();
}

std::size_t arena::place_in(const range& r, std::size_t size) const noexcept {
    const std::size_t page = os::page_size();
    std::size_t start = os::round_up(r.next, size < page ? smallest : page);
    const std::size_t small = &r == ranges_ ? small_pages : 0;
    if (start < r.huge_from && start + size > small) {
        start = r.huge_from;
    }
    return start > r.reserved || size > r.reserved - start ? SIZE_MAX : start;
}

void* arena::take(range& r, std::size_t start, std::size_t size) noexcept {
    if (start + size > r.committed) {
        // A huge page lies within pages of equal permissions, so they are committed as a whole; near the end of what
        // the system has, less may do.
        const auto address = reinterpret_cast<std::uintptr_t>(r.base);
        const bool huge = r.huge_from != 0 && start >= r.huge_from;
        const std::size_t least = os::round_up(start + size - r.committed, commit_step);
        std::size_t want = huge ? os::round_up(address + start + size, os::huge_page) - (address + r.committed) : least;
        want = want < r.reserved - r.committed ? want : r.reserved - r.committed;
        if (!os::commit(r.base + r.committed, want)) {
            if (least >= want || !os::commit(r.base + r.committed, least)) {
                return nullptr;
            }
            want = least;
        }
        r.committed += want;
    }
    r.next = start + size;
    return r.base + start;
}

void* arena::take_fresh(std::size_t size) noexcept {
    // The last two: a large piece may have left much of the last but one.
    range* from = nullptr;
    std::size_t start = SIZE_MAX;
    for (std::size_t i = count_; i > 0 && i + 2 > count_ && start == SIZE_MAX; --i) {
        from = ranges_ + i - 1;
        start = place_in(*from, size);
    }
    if (start == SIZE_MAX) {
        if (!add_range(size)) {
            return nullptr;
        }
        from = ranges_ + count_ - 1;
        start = place_in(*from, size);
    }
    return start != SIZE_MAX ? take(*from, start, size) : nullptr;
}

void* arena::take_small(std::size_t size) noexcept {
    if (size > small_left_) {
        constexpr std::size_t runs = 6;
        piece* const freed = free_[runs];
        void* const run = freed != nullptr ? freed : take_fresh(small_run);
        if (run == nullptr) {
            return nullptr;
        }
        if (freed != nullptr) {
            free_[runs] = freed->next;
        }
        while (small_left_ != 0) {
            const std::size_t part = std::bit_floor(small_left_);
            keep(small_next_, part);
            small_next_ += part;
            small_left_ -= part;
        }
        small_next_ = static_cast<unsigned char*>(run);
        small_left_ = small_run;
    }
    void* const p = small_next_;
    small_next_ += size;
    small_left_ -= size;
    return p;
}

void arena::keep(void* p, std::size_t size) noexcept {
    piece*& head = free_[bucket_of(size)];
    head = ::new (p) piece{head};
}

void* arena::allocate(std::size_t bytes) noexcept {
    if (bytes > limit_) {
        return nullptr;
    }
    const std::size_t size = size_of(bytes);
    const std::scoped_lock hold(lock_);
    void* p = nullptr;
    if (piece*& freed = free_[bucket_of(size)]; freed != nullptr) {
        p = freed;
        freed = freed->next;
    } else {
        p = size < small_run ? take_small(size) : take_fresh(size);
    }
    used_ += p != nullptr ? size : 0;
    return p;
}

void* arena::allocate_zeroed(std::size_t bytes) noexcept {
    void* const p = allocate(bytes);
    if (p != nullptr) {
        std::memset(p, 0, bytes);
    }
    return p;
}

void arena::free(void* p, std::size_t bytes) noexcept {
    const std::size_t size = size_of(bytes);
    const std::scoped_lock hold(lock_);
    keep(p, size);
    used_ -= size;
}

void arena::give_up(void* p, std::size_t bytes) noexcept {
    const std::size_t page = os::page_size();
    const std::size_t size = size_of(bytes);
    if (size >= 4 * page) {  // else the call is not worth it
        os::discard_in_place(static_cast<unsigned char*>(p) + page, size - page);
    }
    free(p, bytes);
}

std::size_t arena::used() const noexcept {
    const os::look seen(lock_);
    return used_;
}

void arena::expect_protection() noexcept {
    huge_ = true;
    range& r = ranges_[0];
    const auto address = reinterpret_cast<std::uintptr_t>(r.base);
    std::size_t first = os::round_up(address, os::huge_page) - address;
    first += first < small_pages ? os::huge_page : 0;
    if (r.reserved >= 32 * os::huge_page) {  // in a small one the pages before the first huge page would be missed
        os::prefer_huge_pages(r.base + first, r.reserved - first);
        r.huge_from = first;
    }
}

bool arena::protect() noexcept {
    bool all = true;
    for (std::size_t i = 0; i < count_; ++i) {
        all = (ranges_[i].committed == 0 || os::protect_read(ranges_[i].base, ranges_[i].committed)) && all;
    }
    return all;
}
bool arena::unprotect() noexcept {
    // The first one holds the arena itself, maybe.
    for (std::size_t i = 0; i < count_; ++i) {
        if (ranges_[i].committed != 0 && !os::protect_read_write(ranges_[i].base, ranges_[i].committed)) {
            return false;
        }
    }
    return true;
}

namespace {

// Not destroyed at the end of the program: reports may be written by static destructors that run late.
struct process_memory {
    arena all;
    std::atomic<arena*> shared{nullptr};
    os::spin_lock opening;
};
constinit os::guarded<process_memory> the_process;
const os::guard_pages the_process_guards(the_process);

}  // namespace

arena* process_arena() noexcept {
    constexpr auto& shared = the_process->shared;
    arena* a = shared.load(std::memory_order_acquire);
    if (a == nullptr) {
        const std::scoped_lock hold(the_process->opening);
        a = shared.load(std::memory_order_relaxed);
        if (a == nullptr) {
            a = &the_process->all;
            if (!a->open(std::size_t{1} << 34)) {
                return nullptr;  // the next call may have more luck
            }
            shared.store(a, std::memory_order_release);
        }
    }
    return a;
}

void give_back_process_arena() noexcept {
    if (arena* const a = the_process->shared.exchange(nullptr, std::memory_order_acq_rel); a != nullptr) {
        a->close();
    }
}

}  // namespace pmr_debug::metadata
