#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// Counters of a resource, and what each one means.

#include <pmr_debug/report.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

namespace pmr_debug {

/// How often each kind of error was reported.
class error_counts {
public:
    [[nodiscard]] constexpr std::uint64_t operator[](error_kind kind) const noexcept {
        return counts_[static_cast<std::size_t>(kind)];
    }
    constexpr std::uint64_t& operator[](error_kind kind) noexcept { return counts_[static_cast<std::size_t>(kind)]; }
    /// Sum over all kinds.
    [[nodiscard]] constexpr std::uint64_t total() const noexcept {
        std::uint64_t sum = 0;
        for (const std::uint64_t n : counts_) {
            sum += n;
        }
        return sum;
    }

private:
    std::array<std::uint64_t, error_kind_count> counts_{};
};

/// A snapshot of a resource's counters. Byte counts are bytes as requested, unless said otherwise. Resources give
/// theirs in signal handlers, too: where one interrupts the resource at work, the numbers are those of that moment,
/// some changed already and others not, and those that take a walk through a list (resident, overhead) may be missing.
struct statistics {
    std::uint64_t live_blocks = 0;          ///< allocated, not yet freed. High at the end: leaks
    std::uint64_t live_bytes = 0;           ///< bytes of those
    std::uint64_t peak_blocks = 0;          ///< most live blocks so far
    std::uint64_t peak_bytes = 0;           ///< most live bytes so far. Size buffers and limits by it
    std::uint64_t total_allocations = 0;    ///< successful allocations so far. High per unit of work: churn
    std::uint64_t total_deallocations = 0;  ///< deallocations carried out so far
    std::uint64_t total_bytes = 0;          ///< bytes of all allocations so far
    std::uint64_t failed_allocations = 0;   ///< allocations that ended in bad_alloc
    std::uint64_t upstream_bytes = 0;       ///< held from the upstream now, address space of retired units included
    std::uint64_t resident_bytes =
        0;  ///< of those, not given back to the operating system (live, free, or quarantined)
    std::uint64_t overhead_bytes = 0;    ///< private memory for this resource's own records
    std::uint64_t retired_units = 0;     ///< units whose blocks are all freed and that wait, not to be used again
    std::uint64_t untrapped_units = 0;   ///< of those, units that could not be made inaccessible
    std::uint64_t untrapped_blocks = 0;  ///< chosen by trap_freed, and not made inaccessible when they were freed
    std::uint64_t recycled_units = 0;    ///< retired units used again because address space or the upstream ran out
    std::uint64_t reused_slots = 0;  ///< freed blocks' places handed out again, as more freed memory than the budget
                                     ///< allows was kept, or memory ran out
    std::uint64_t quarantined_bytes = 0;  ///< freed memory that is kept, or a little more: what waits for anything
    std::uint64_t quarantine_limit = 0;   ///< most of that which this resource may keep now; 0: keeps none by itself
};

}  // namespace pmr_debug

#endif  // PMR_DEBUG_LANGUAGE
