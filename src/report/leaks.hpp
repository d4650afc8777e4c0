#pragma once

// Leaked blocks by call path, floor 3.

#include <pmr_debug/report.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace pmr_debug::detail {

/// Sums leaked blocks by the trace that allocated them; blocks without a trace by their size. One hash table in private
/// pages, doubled when half full.
///
///   | leak_group … | lowest serial … | hash slots: index of a group + 1, or 0 |
///
/// Thread safety: one thread at a time.
class leak_grouper {
public:
    leak_grouper() = default;
    leak_grouper(const leak_grouper&) = delete;
    leak_grouper& operator=(const leak_grouper&) = delete;
    ~leak_grouper();

    /// Effects: adds a block of \p bytes at \p address. \p serial: 1-based number of the block, 0 if not kept.
    /// Returns: false if private memory is used up: the block then counts into one group of blocks without trace, and
    ///   into the totals. Preconditions: finish() was not called.
    bool add(trace_id allocated, std::size_t bytes, const void* address, std::uint64_t serial) noexcept;

    /// Effects: sorts the groups, most bytes first. Returns: them, valid as long as this object.
    [[nodiscard]] std::span<const leak_group> finish() noexcept;

    [[nodiscard]] std::size_t total_blocks() const noexcept { return total_blocks_; }
    [[nodiscard]] std::size_t total_bytes() const noexcept { return total_bytes_; }

    /// For tests: no more than \p groups groups are kept apart.
    void limit_groups(std::size_t groups) noexcept { most_groups_ = groups; }

private:
    bool grow() noexcept;
    [[nodiscard]] std::uint32_t* find_slot(trace_id allocated, std::size_t bytes) const noexcept;

    leak_group* groups_ = nullptr;      // capacity_ + 1: the last one is for rest_
    std::uint64_t* serials_ = nullptr;  // capacity_: serial number of each group's example
    std::uint32_t* slots_ = nullptr;    // slot_mask_ + 1
    std::size_t size_ = 0;
    std::size_t capacity_ = 0;
    std::size_t slot_mask_ = 0;
    std::size_t mapped_ = 0;
    std::size_t most_groups_ = std::size_t{1} << 31;
    leak_group rest_;
    std::size_t total_blocks_ = 0;
    std::size_t total_bytes_ = 0;
};

}  // namespace pmr_debug::detail
