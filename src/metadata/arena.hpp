#pragma once

// Private memory for bookkeeping, floor 1. It never comes from the program's heap nor from any user resource, so a
// debug resource may be installed as the default one or under global new, and a rogue write from a neighbouring user
// block meets a guard page first.

#include "os/fork_locks.hpp"
#include "os/thread.hpp"

#include <cstddef>
#include <cstdint>

namespace pmr_debug::metadata {

/// One reserved range, handed out from its start; freed pieces are kept by power-of-two size and handed out again.
///
///   | guard page | committed … | reserved … | guard page |
///
/// Thread safety: allocate, free and used lock; everything else is the caller's to order.
class arena {
public:
    arena() = default;
    arena(const arena&) = delete;
    arena& operator=(const arena&) = delete;

    /// Effects: reserves up to \p bytes of address space, less if the system refuses that much (down to 1 MiB).
    /// Returns: false if nothing could be reserved.
    bool open(std::size_t bytes) noexcept;

    /// Effects: gives everything back, and leaves the arena as after construction.
    void close() noexcept;

    /// Effects: opens an arena that lives at the start of its own range, so that protect() covers it too.
    /// Returns: null if nothing could be reserved. End it with close_within().
    [[nodiscard]] static arena* open_within(std::size_t bytes) noexcept;

    /// Effects: closes an arena made by open_within; \p a is gone afterwards.
    static void close_within(arena* a) noexcept;

    /// Returns: \p bytes, rounded up to a power of two of at least 64, aligned to 64 (to a page from one page up).
    ///   Not zeroed where a freed piece is used again. Null if the range or the system's memory is used up.
    [[nodiscard]] void* allocate(std::size_t bytes) noexcept;

    /// As allocate, zeroed.
    [[nodiscard]] void* allocate_zeroed(std::size_t bytes) noexcept;

    /// Preconditions: \p p came from allocate(\p bytes).
    void free(void* p, std::size_t bytes) noexcept;

    /// Bytes handed out now, after rounding.
    [[nodiscard]] std::size_t used() const noexcept;

    /// True in a signal handler that interrupted a call: another one would not return.
    [[nodiscard]] bool is_busy_here() const noexcept { return lock_.is_mine(); }

    /// Effects: a fork takes the lock.
    void hold(os::fork_locks& locks) noexcept { locks.take(lock_); }

    /// Effects: memory beyond the first 256 KiB is taken by huge pages. What protect() costs grows with the number of
    ///   pages, so that a large arena would be slow without. Call before so much is used.
    void expect_protection() noexcept;

    /// Effects: makes all committed pages read-only / writable. Returns: false if the system refuses.
    bool protect() noexcept;
    bool unprotect() noexcept;

private:
    struct piece {
        piece* next;
    };

    unsigned char* base_ = nullptr;
    std::size_t reserved_ = 0;
    std::size_t committed_ = 0;
    std::size_t next_ = 0;
    std::size_t used_ = 0;
    std::size_t huge_from_ = 0;  ///< offset of the first huge page; 0: none
    mutable os::spin_lock lock_;
    piece* free_[40]{};
};

/// The arena that process-wide tables share. Opened at first use; never closed. Null if the system has no memory.
[[nodiscard]] arena* process_arena() noexcept;

}  // namespace pmr_debug::metadata
