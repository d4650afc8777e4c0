#pragma once

// Private memory for bookkeeping, floor 1. It never comes from the program's heap nor from any user resource, so a
// debug resource may be installed as the default one or under global new, and a rogue write from a neighbouring user
// block meets a guard page first.

#include "os/fork_locks.hpp"
#include "os/thread.hpp"

#include <cstddef>
#include <cstdint>

namespace pmr_debug::metadata {

/// Reserved ranges, each handed out from its start; freed pieces are kept by size and handed out again. Small pieces
/// share pages, so that a small one between two of pages does not take a page of its own.
///
///   | guard page | committed … | reserved … | guard page |     | guard page | committed … | reserved … | …
///
/// The first range is small; one is added when the last has no room. So an arena takes address space, and a limit of
/// it, only in proportion to what it holds. Memory is committed in steps. Thread safety: allocate, free and used lock;
/// everything else is the caller's to order.
class arena {
public:
    arena() = default;
    arena(const arena&) = delete;
    arena& operator=(const arena&) = delete;

    /// Where an arena's first range is.
    enum class home : std::uint8_t {
        own_range,  ///< in a range of its own
        shared,  ///< in the process's arena, if there is room: takes no mapping, as thousands of arenas together would
    };

    /// Effects: opens an arena of at most \p bytes.
    /// Returns: false if nothing could be reserved.
    bool open(std::size_t bytes, home where = home::own_range) noexcept;

    /// Effects: gives everything back, and leaves the arena as after construction.
    void close() noexcept;

    /// Effects: opens an arena that lives at the start of its own first range, so that protect() covers it too.
    /// Returns: null if nothing could be reserved. End it with close_within().
    [[nodiscard]] static arena* open_within(std::size_t bytes, home where = home::own_range) noexcept;

    /// Effects: closes an arena made by open_within; \p a is gone afterwards.
    static void close_within(arena* a) noexcept;

    /// Returns: \p bytes, rounded up: to a power of two of at least 64 up to 4 KiB and above 64 KiB, to a multiple of
    ///   4 KiB between them. Aligned to 64 (to a page from one page up).
    ///   Not zeroed where a freed piece is used again. Null if the arena's limit or the system's memory is used up.
    [[nodiscard]] void* allocate(std::size_t bytes) noexcept;

    /// As allocate, zeroed.
    [[nodiscard]] void* allocate_zeroed(std::size_t bytes) noexcept;

    /// Preconditions: \p p came from allocate(\p bytes).
    void free(void* p, std::size_t bytes) noexcept;

    /// Effects: as free; but for its first page a larger piece goes back to the system. It stays mapped.
    void give_up(void* p, std::size_t bytes) noexcept;

    /// Bytes handed out now, after rounding.
    [[nodiscard]] std::size_t used() const noexcept;

    /// True in a signal handler that interrupted a call: another one would not return.
    [[nodiscard]] bool is_busy_here() const noexcept { return lock_.is_mine(); }

    /// Effects: a fork takes the lock.
    void hold(os::fork_locks& locks) noexcept { locks.take(lock_); }

    /// Effects: memory beyond the first 256 KiB is taken by huge pages. What protect() costs grows with the number of
    ///   pages, so that a large arena would be slow without. Call before so much is used.
    /// Preconditions: the first range is the arena's own.
    void expect_protection() noexcept;

    /// Effects: makes all committed pages read-only / writable. Returns: false if the system refuses.
    /// Preconditions: the first range is the arena's own.
    bool protect() noexcept;
    bool unprotect() noexcept;

private:
    struct piece {
        piece* next;
    };
    struct range {
        unsigned char* base = nullptr;
        std::size_t reserved = 0;
        std::size_t committed = 0;
        std::size_t next = 0;
        std::size_t huge_from = 0;  ///< offset of the first huge page; 0: none
    };
    static constexpr std::size_t most_ranges = 48;

    [[nodiscard]] bool add_range(std::size_t least) noexcept;
    /// Returns: \p size bytes that were never handed out; null if there are none. Lock held, as for the next two.
    [[nodiscard]] void* take_fresh(std::size_t size) noexcept;
    [[nodiscard]] void* take_small(std::size_t size) noexcept;
    void keep(void* p, std::size_t size) noexcept;
    /// Returns: the offset where a piece would go; SIZE_MAX if there is no room.
    [[nodiscard]] std::size_t place_in(const range& r, std::size_t size) const noexcept;
    [[nodiscard]] void* take(range& r, std::size_t start, std::size_t size) noexcept;
    void give_back(range& r) noexcept;

    range ranges_[most_ranges];
    std::size_t count_ = 0;
    std::size_t limit_ = 0;  ///< bytes of all ranges together
    std::size_t reserved_ = 0;
    std::size_t used_ = 0;
    bool shared_ = false;  ///< the first range is a piece of the process's arena
    bool huge_ = false;
    mutable os::spin_lock lock_;
    unsigned char* small_next_ = nullptr;  ///< the rest of a page for small pieces
    std::size_t small_left_ = 0;
    piece* free_[56]{};
};

/// The arena that process-wide tables share. Opened at first use. Null if the system has no memory.
[[nodiscard]] arena* process_arena() noexcept;

/// Effects: gives its memory back, as the library is unloaded.
void give_back_process_arena() noexcept;

}  // namespace pmr_debug::metadata
