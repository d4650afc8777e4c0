#pragma once

// What all resources together keep of freed memory, floor 1. One budget for the process: a program has ten resources as
// easily as one.
//
//   budget = min(128 MiB, max(16 MiB, twice the live bytes)), or what the options of resources ask for if that is more,
//            but at most a quarter of what the process may have (RLIMIT_AS, memory.max of its control group)
//
// Where one resource stands on another, what the upper one keeps of freed memory lives in the lower one, as its blocks
// do. Counted there it would have the budget grow by what the budget lets it keep. So each level of resources is
// counted by itself, less what those above keep; the largest counts, as one that frees little tells the books little.
//
// Nobody is asked to give something up: who retires memory is told what it may keep, and evicts its own.

#include <atomic>
#include <cstddef>

namespace pmr_debug::metadata {

/// One resource's part in it. Thread safety: any thread; settle() from one at a time, or the books are off for a
/// moment.
class quarantine_share {
public:
    quarantine_share() = default;
    quarantine_share(const quarantine_share&) = delete;
    quarantine_share& operator=(const quarantine_share&) = delete;

    /// Effects: enters the books. \p wanted: the resource's option, the most it keeps; \p usual: its default. One that
    /// is set higher than that raises the budget. \p below: resources in the books that it stands on.
    void open(std::size_t wanted, std::size_t usual, unsigned below) noexcept;
    /// Effects: leaves them.
    void close() noexcept;

    /// Effects: notes that the resource keeps \p kept bytes of freed memory, and that \p live bytes of it live.
    /// Returns: how many it may keep.
    std::size_t settle(std::size_t kept, std::size_t live) noexcept;

    /// Returns: what the last settle() did.
    [[nodiscard]] std::size_t limit() const noexcept { return limit_.load(std::memory_order_relaxed); }

private:
    std::size_t wanted_ = 0;
    std::size_t raise_ = 0;
    unsigned level_ = 0;
    std::atomic<std::size_t> kept_{0};
    std::atomic<std::size_t> live_{0};
    std::atomic<std::size_t> limit_{0};
};

/// The process's budget, and what is kept of it.
struct quarantine_totals {
    std::size_t budget = 0;
    std::size_t kept = 0;
    std::size_t live = 0;
};
[[nodiscard]] quarantine_totals quarantine_now() noexcept;

}  // namespace pmr_debug::metadata
